"""The ids of the environments that ship with the package, by import string."""

from __future__ import annotations

from agentenv.registry import load_plugins, register

_SHIPPED: tuple[tuple[str, str, str], ...] = (
    ("agentenv/GuessNumber-v0", "agentenv.envs.guess_number.env:GuessNumber", "Find a number within a few guesses."),
    ("agentenv/Calculator-v0", "agentenv.envs.calculator.env:Calculator", "Solve word problems with a calculator."),
    ("agentenv/GSM8K-v0", "agentenv.envs.gsm8k.env:GSM8K", "Grade-school maths with a calculator tool."),
    ("agentenv/Wordle-v0", "agentenv.envs.wordle.env:Wordle", "Find a five-letter word from coloured hints."),
)


def register_all() -> None:
    """Register the shipped environments and those of installed plugins; safe to call again."""
    for env_id, entry_point, description in _SHIPPED:
        register(env_id, entry_point, description=description)
    load_plugins()
