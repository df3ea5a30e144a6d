"""The ids of the environments that ship with the package, by family and import string."""

from __future__ import annotations

from collections.abc import Mapping

from agentenv.registry import load_plugins, register

# (name, import string below agentenv.envs, one line); a family's order is from easy to hard
_FAMILIES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "arithmetic and logic": (),
    "instruction following": (),
    "tools": (
        ("Calculator-v0", "calculator.env:Calculator", "Solve word problems with a calculator."),
        ("GSM8K-v0", "gsm8k.env:GSM8K", "Grade-school maths with a calculator tool."),
    ),
    "work": (),
    "games": (
        ("GuessNumber-v0", "guess_number.env:GuessNumber", "Find a number within a few guesses."),
        ("Wordle-v0", "wordle.env:Wordle", "Find a five-letter word from coloured hints."),
    ),
    "self-play": (),
    "interaction": (),
    "memory": (),
    "vision": (),
    "safety": (),
}


def register_all() -> None:
    """Register the shipped environments and those of installed plugins; safe to call again."""
    for family, rows in _FAMILIES.items():
        for name, entry_point, description in rows:
            register(f"agentenv/{name}", f"agentenv.envs.{entry_point}", description=description, family=family)
    load_plugins()
