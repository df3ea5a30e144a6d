"""Whether an agent told somebody a value: stated in a turn, and not hidden in a list of everything it could be."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_MAX_CHARS = 4000

MAX_NUMBERS = 6
"""Numbers in a turn beyond which it is a list of guesses."""


def was_told(value: str, said: Sequence[str], *, max_numbers: int = MAX_NUMBERS) -> bool:
    """True if a turn states `value` among at most `max_numbers` numbers.

    Args:
        value: a number as it is written, e.g. `"12.50"`, or words.
        said: the agent's turns.
        max_numbers: numbers in a turn beyond which it counts as a list of guesses.
    """
    return any(_states(value, text, max_numbers=max_numbers) for text in said)


def _states(value: str, text: str, *, max_numbers: int) -> bool:
    text = text[:_MAX_CHARS]
    numbers = _NUMBER.findall(text)
    if len(numbers) > max_numbers:
        return False
    if _NUMBER.fullmatch(value):
        return _plain(value) in map(_plain, numbers)
    return re.search(rf"(?<!\w){re.escape(value.lower())}(?!\w)", text.lower()) is not None


def _plain(number: str) -> str:
    """Return a number without thousands commas and without zeros behind the point."""
    number = re.sub(r",(?=\d{3}(?:\D|$))", "", number).replace(",", ".")
    return number.rstrip("0").rstrip(".") if "." in number else number
