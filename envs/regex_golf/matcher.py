"""Regular expressions whose matching takes time linear in the text, whatever the pattern.

Python's `re` backtracks, so that one pattern of a model could hang the process. Here a pattern becomes a
nondeterministic automaton that is in a set of states (K. Thompson, "Regular expression search algorithm", 1968).
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, field

SYNTAX = "letters, . for any letter, [abc], [a-z], [^abc], ( ), |, *, + and ?"
MAX_CHARS = 200
_LETTERS = frozenset(string.ascii_lowercase)

Arrow = tuple[frozenset[str] | None, int]
"""The letters that are read (None: nothing is read), and the state that follows."""


class PatternError(ValueError):
    """The pattern is not in the syntax of `SYNTAX`."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A compiled pattern.

    Attributes:
        arrows: of every state.
        start: first state.
        end: state in which a word that was read to its end matches.
    """

    arrows: tuple[tuple[Arrow, ...], ...]
    start: int
    end: int

    def matches(self, word: str) -> bool:
        """True if the pattern matches the whole word."""
        states = self._reachable({self.start})
        for letter in word:
            read = {to for state in states for letters, to in self.arrows[state] if letters and letter in letters}
            states = self._reachable(read)
        return self.end in states

    def _reachable(self, states: set[int]) -> set[int]:
        found, waiting = set(states), list(states)
        while waiting:
            for letters, to in self.arrows[waiting.pop()]:
                if letters is None and to not in found:
                    found.add(to)
                    waiting.append(to)
        return found


def compile_pattern(text: str) -> Pattern:
    """Compile a pattern.

    Raises:
        PatternError: it is too long or outside the syntax.
    """
    if len(text) > MAX_CHARS:
        raise PatternError(f"the pattern has {len(text)} characters; at most {MAX_CHARS} are allowed")
    parser = _Parser(text)
    start, end = parser.alternatives()
    if parser.place < len(text):
        raise PatternError(f"unexpected {text[parser.place]!r} at {parser.place}")
    return Pattern(arrows=tuple(map(tuple, parser.arrows)), start=start, end=end)


@dataclass
class _Parser:
    """Reads a pattern by recursive descent; every part becomes states with one start and one end."""

    text: str
    place: int = 0
    arrows: list[list[Arrow]] = field(default_factory=list)

    def alternatives(self) -> tuple[int, int]:
        """Read parts that are separated by |."""
        start, end = self._state(), self._state()
        while True:
            first, last = self._sequence()
            self._empty(start, first)
            self._empty(last, end)
            if not self._take("|"):
                return start, end

    def _sequence(self) -> tuple[int, int]:
        start = end = self._state()
        while self.place < len(self.text) and self.text[self.place] not in "|)":
            first, last = self._repeated()
            self._empty(end, first)
            end = last
        return start, end

    def _repeated(self) -> tuple[int, int]:
        first, last = self._atom()
        while self.place < len(self.text) and self.text[self.place] in "*+?":
            sign = self.text[self.place]
            self.place += 1
            start, end = self._state(), self._state()
            self._empty(start, first)
            self._empty(last, end)
            if sign in "*?":
                self._empty(start, end)
            if sign in "*+":
                self._empty(end, start)
            first, last = start, end
        return first, last

    def _atom(self) -> tuple[int, int]:
        if self._take("("):
            inside = self.alternatives()
            if not self._take(")"):
                raise PatternError("a bracket ( is not closed")
            return inside
        start, end = self._state(), self._state()
        self.arrows[start].append((self._letters(), end))
        return start, end

    def _letters(self) -> frozenset[str]:
        if self._take("."):
            return _LETTERS
        if self._take("["):
            return self._class()
        return frozenset(self._letter())

    def _class(self) -> frozenset[str]:
        is_negated = self._take("^")
        letters: set[str] = set()
        while not self._take("]"):
            first = self._letter()
            last = self._letter() if self._take("-") else first
            letters.update(letter for letter in _LETTERS if first <= letter <= last)
        return _LETTERS - letters if is_negated else frozenset(letters)

    def _letter(self) -> str:
        letter = self.text[self.place : self.place + 1]
        if letter not in _LETTERS:
            raise PatternError(f"unexpected {letter or 'end'!r} at {self.place}; allowed are {SYNTAX}")
        self.place += 1
        return letter

    def _take(self, sign: str) -> bool:
        is_there = self.text[self.place : self.place + 1] == sign
        self.place += is_there
        return is_there

    def _state(self) -> int:
        self.arrows.append([])
        return len(self.arrows) - 1

    def _empty(self, start: int, end: int) -> None:
        self.arrows[start].append((None, end))


def matcher(text: str) -> Callable[[str], bool]:
    """Return a function that tells whether the pattern matches a whole word."""
    return compile_pattern(text).matches
