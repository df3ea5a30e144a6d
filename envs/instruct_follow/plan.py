"""Rules that a text must keep: what each says, how it is checked, and a text that keeps all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_PUNCTUATION = ".,;:!?\"'()-"
_FORBIDDEN = "aeiost"
KINDS = ("first", "last", "repeated", "letter", "case", "commas", "lines")
"""Rules that may be asked for beside the number of words."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The rules of one text. A rule whose kind is not in `kinds` does not count.

    Attributes:
        kinds: which rules hold, in the order in which they are told.
        num_words: words of the text; this rule always holds.
        first: word that it begins with.
        last: word that it ends with.
        repeated: word that occurs exactly `times` times.
        times: see `repeated`.
        letter: letter that no word holds.
        is_upper: all letters are capitals; else none is.
        commas: commas in the text.
        lines: lines of the text, none of them empty.
    """

    kinds: tuple[str, ...]
    num_words: int
    first: str
    last: str
    repeated: str
    times: int
    letter: str
    is_upper: bool
    commas: int
    lines: int

    @property
    def sentences(self) -> tuple[str, ...]:
        """The rules in words."""
        told = {
            "first": f"The first word is {self.first}.",
            "last": f"The last word is {self.last}.",
            "repeated": f"The word {self.repeated} occurs exactly {self.times} times.",
            "letter": f"The letter {self.letter} occurs nowhere, neither small nor large.",
            "case": "All letters are capitals." if self.is_upper else "No letter is a capital.",
            "commas": f"There are exactly {self.commas} commas.",
            "lines": f"There are exactly {self.lines} lines, none of them empty.",
        }
        return (f"It has exactly {self.num_words} words.", *(told[kind] for kind in self.kinds))

    def broken(self, text: str) -> tuple[str, ...]:
        """Return the kinds of the rules that a text breaks."""
        found = [word.strip(_PUNCTUATION).lower() for word in text.split()]
        lines = text.strip().split("\n")
        keeps: dict[str, Callable[[], bool]] = {
            "words": lambda: len(found) == self.num_words and all(found),
            "first": lambda: found[:1] == [self.first],
            "last": lambda: found[-1:] == [self.last],
            "repeated": lambda: found.count(self.repeated) == self.times,
            "letter": lambda: self.letter not in text.lower(),
            "case": lambda: text == (text.upper() if self.is_upper else text.lower()),
            "commas": lambda: text.count(",") == self.commas,
            "lines": lambda: len(lines) == self.lines and all(line.strip() for line in lines),
        }
        return tuple(kind for kind in ("words", *self.kinds) if not keeps[kind]())

    def text(self, words: Sequence[str]) -> str:
        """Return a text that keeps all rules, made of the given words where they are allowed."""
        special = {self.repeated, self.first, self.last}
        allowed = [word for word in words if self.letter not in word and word not in special]
        num_inner = self.num_words - 2 - self.times
        inner = [self.repeated] * self.times + [allowed[i % len(allowed)] for i in range(num_inner)]
        out = [self.first, *inner, self.last]
        out = [f"{word}," if i < self.commas else word for i, word in enumerate(out)]
        breaks = self.lines - 1
        joined = "".join(f"{word}{chr(10) if i < breaks else ' '}" for i, word in enumerate(out)).strip()
        return joined.upper() if self.is_upper else joined


def draw_plan(rng: np.random.Generator, words: Sequence[str], *, num_rules: int) -> Plan:
    """Draw rules that a text can keep together: the special words hold no forbidden letter and differ."""
    letter = str(rng.choice(list(_FORBIDDEN)))
    allowed = [word for word in words if letter not in word]
    first, last, repeated = (str(word) for word in rng.choice(allowed, size=3, replace=False))
    chosen = rng.choice(len(KINDS), size=num_rules, replace=False)
    return Plan(
        kinds=tuple(KINDS[i] for i in chosen),
        num_words=int(rng.integers(10, 31)),
        first=first,
        last=last,
        repeated=repeated,
        times=int(rng.integers(2, 5)),
        letter=letter,
        is_upper=bool(rng.integers(2)),
        commas=int(rng.integers(1, 6)),
        lines=int(rng.integers(2, 6)),
    )
