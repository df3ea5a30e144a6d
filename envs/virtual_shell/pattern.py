"""Globs and basic regular expressions, matched in time proportional to text times pattern.

The standard library's matcher backtracks, so a pattern that a model writes could hold up every episode.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentenv.envs.virtual_shell.file_system import ShellError

MAX_PATTERN_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """One position of a pattern: which characters fit, and whether any number of them may stand there."""

    characters: frozenset[str]
    is_negated: bool = False
    is_repeated: bool = False

    def fits(self, character: str) -> bool:
        return (character in self.characters) != self.is_negated


_ANY = _Item(characters=frozenset(), is_negated=True)
_ANY_NUMBER = _Item(characters=frozenset(), is_negated=True, is_repeated=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A sequence of items, tied to the start or the end of the text where it says so.

    Attributes:
        items: in order.
        at_start: the first item must fit the first character.
        at_end: the last item must fit the last character.
        literals: the texts between the items that fit anything, where the pattern holds nothing else; else None.
    """

    items: tuple[_Item, ...]
    at_start: bool
    at_end: bool
    literals: tuple[str, ...] | None

    def is_in(self, text: str) -> bool:
        """True where some part of the text fits, within the ties."""
        return self._fits_items(text) if self.literals is None else self._fits_literals(text, self.literals)

    def _fits_literals(self, text: str, literals: tuple[str, ...]) -> bool:
        first, last = literals[0], literals[-1]
        if len(literals) == 1 and self.at_start and self.at_end:
            return text == first
        if (self.at_start and not text.startswith(first)) or (self.at_end and not text.endswith(last)):
            return False
        # the earliest place of every literal leaves most room for the next
        start = len(first) if self.at_start else 0
        end = len(text) - len(last) if self.at_end else len(text)
        for literal in literals[self.at_start : len(literals) - self.at_end]:
            found = text.find(literal, start, end)
            if found < 0:
                return False
            start = found + len(literal)
        return start <= end

    def _fits_items(self, text: str) -> bool:
        states = self._closure({0})
        if len(self.items) in states and not self.at_end:
            return True
        for character in text:
            moved = set()
            for state in states:
                if state < len(self.items) and self.items[state].fits(character):
                    moved.add(state if self.items[state].is_repeated else state + 1)
            if not self.at_start:
                moved.add(0)
            states = self._closure(moved)
            if len(self.items) in states and not self.at_end:
                return True
        return len(self.items) in states

    def _closure(self, states: set[int]) -> set[int]:
        """Add the states that are reached by skipping repeated items."""
        found: set[int] = set()
        for first in states:
            state = first
            while state not in found:
                found.add(state)
                if state < len(self.items) and self.items[state].is_repeated:
                    state += 1
        return found


def glob(text: str) -> Pattern:
    """Read a glob: `*`, `?` and `[...]`; it must fit the whole name."""
    items: list[_Item] = []
    index = 0
    _require_short(text)
    while index < len(text):
        if text[index] == "*":
            items.append(_ANY_NUMBER)
        elif text[index] == "?":
            items.append(_ANY)
        else:
            item, index = _single(text, index, negation="!^")
            items.append(item)
        index += 1
    return _pattern(items, at_start=True, at_end=True)


def regular_expression(text: str, *, ignore_case: bool = False) -> Pattern:
    r"""Read a basic regular expression: `.`, `*`, `[...]`, `^`, `$` and `\` before a character; the rest is literal."""
    _require_short(text)
    text = text.lower() if ignore_case else text
    at_start = text.startswith("^")
    at_end = text.endswith("$") and not text.endswith("\\$")
    body = text[at_start : len(text) - at_end]
    items: list[_Item] = []
    index = 0
    while index < len(body):
        if body[index] == "*" and items:
            items[-1] = _Item(characters=items[-1].characters, is_negated=items[-1].is_negated, is_repeated=True)
        elif body[index] == ".":
            items.append(_ANY)
        else:
            item, index = _single(body, index, negation="^")
            items.append(item)
        index += 1
    return _pattern(items, at_start=at_start, at_end=at_end)


def _pattern(items: list[_Item], *, at_start: bool, at_end: bool) -> Pattern:
    literals = [""]
    for item in items:
        if item == _ANY_NUMBER:
            literals.append("")
        elif item.is_negated or item.is_repeated or len(item.characters) != 1:
            return Pattern(items=tuple(items), at_start=at_start, at_end=at_end, literals=None)
        else:
            literals[-1] += next(iter(item.characters))
    return Pattern(items=tuple(items), at_start=at_start, at_end=at_end, literals=tuple(literals))


def _single(text: str, index: int, *, negation: str) -> tuple[_Item, int]:
    """Read a set, an escaped or a literal character; return it and the index of its last character."""
    if text[index] == "\\" and index + 1 < len(text):
        return _Item(characters=frozenset(text[index + 1])), index + 1
    end = text.find("]", index + 2)
    if text[index] != "[" or end < 0:
        return _Item(characters=frozenset(text[index])), index
    body = text[index + 1 : end]
    is_negated = len(body) > 1 and body[0] in negation
    return _Item(characters=_set(body[is_negated:]), is_negated=is_negated), end


def _set(body: str) -> frozenset[str]:
    found: set[str] = set()
    index = 0
    while index < len(body):
        if body[index + 1 : index + 2] == "-" and index + 2 < len(body):
            first, last = ord(body[index]), ord(body[index + 2])
            found.update(map(chr, range(first, min(last, first + 255) + 1)))
            index += 3
        else:
            found.add(body[index])
            index += 1
    return frozenset(found)


def _require_short(text: str) -> None:
    if len(text) > MAX_PATTERN_CHARS:
        raise ShellError(f"pattern too long; at most {MAX_PATTERN_CHARS} characters are allowed")
