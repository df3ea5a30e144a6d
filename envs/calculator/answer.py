"""Numbers in final answers: where they stand in a text, and their exact value."""

from __future__ import annotations

import re
from fractions import Fraction

_MAX_CHARS = 400
"""How much of a marked answer is read, and how long the last number of a text may be."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_CURRENCY = r"(?:\\?[$£€](?P<inner>[-−])?)?"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w.)])[-−+])?{_CURRENCY}"
    rf"(?:\\[dt]?frac\{{\s*(?P<over>-?[0-9]+)\s*\}}\{{\s*(?P<under>-?[0-9]+)\s*\}}"
    rf"|(?P<digits>{_DIGITS})(?:\s?/\s?(?P<divisor>[0-9]+)(?![0-9.,]*[0-9/]))?)"
)
_MARK = "####"
_BOX = "\\boxed{"


def marked_answer(text: str) -> Fraction | None:
    r"""Return the number after the last `####`, else the one in the last `\boxed{}`, else None.

    Read are signs, `$`, thousands commas, decimals, `a/b` and `\frac{a}{b}`; what follows the number (a unit, a full
    stop, `%`) is ignored.
    """
    if _MARK in text:
        line = text[text.rindex(_MARK) + len(_MARK) :].lstrip()[:_MAX_CHARS]
        return first_number(line.partition("\n")[0])
    if _BOX in text:
        return first_number(_until_closed(text[text.rindex(_BOX) + len(_BOX) :][:_MAX_CHARS]))
    return None


def last_number(text: str) -> Fraction | None:
    """Return the last number of a text, None where there is none."""
    matches = list(_NUMBER.finditer(text[-_MAX_CHARS:]))
    return _value(matches[-1]) if matches else None


def first_number(text: str) -> Fraction | None:
    """Return the first number of a text, None where there is none."""
    match = _NUMBER.search(text[:_MAX_CHARS])
    return None if match is None else _value(match)


def _value(match: re.Match[str]) -> Fraction | None:
    numerator, denominator = match["over"] or match["digits"], match["under"] or match["divisor"] or "1"
    if int(denominator) == 0:
        return None
    value = Fraction(numerator.replace(",", "")) / int(denominator)
    is_negative = bool(match["inner"]) != (match["sign"] in ("-", "−"))
    return -value if is_negative else value


def _until_closed(text: str) -> str:
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:index]
    return text
