"""JSON read strictly and compared strictly: 1, 1.0, true and "1" are four things."""

from __future__ import annotations

import json
from collections.abc import Sequence

_FENCES = ("```json", "```")


def without_fence(text: str) -> str:
    """Return the inside of one code block around the whole text, else the text."""
    text = text.strip()
    for fence in _FENCES:
        if text.startswith(fence) and text.endswith("```") and len(text) >= len(fence) + 3:
            return text[len(fence) : -3].strip()
    return text


def parse(text: str) -> object:
    """Read JSON.

    Raises:
        ValueError: it is not valid, is nested too deeply, names a key twice, or holds NaN or infinity.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_same(first: object, second: object) -> bool:
    """Compare values and types; the order of keys makes no difference, that of lists does."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(is_same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(is_same, first, second))
    return first == second


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key stands twice")
    return out


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is no JSON")
