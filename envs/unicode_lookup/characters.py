"""Characters to ask about, the hops from one to another, and the properties that can be asked for."""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass

import numpy as np

LAST_CODE_POINT = 0x2FFF
"""Questions are about the characters up to here: all scripts with letters, before the large ideographic blocks."""

PROPERTIES = ("name", "general category", "bidirectional class", "code point")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One step from a character to another.

    Attributes:
        text: the step in words.
        tool: that looks it up.
        arguments: of that tool, besides the code point.
        target: where it leads.
    """

    text: str
    tool: str
    arguments: dict[str, int]
    target: str


@functools.cache
def named_characters() -> tuple[str, ...]:
    """Return the characters with a name, in order of code points."""
    return tuple(chr(code) for code in range(0x21, LAST_CODE_POINT + 1) if unicodedata.name(chr(code), ""))


@functools.cache
def cased_or_composed() -> tuple[str, ...]:
    """Return the characters from which a case mapping or a decomposition leads to another."""
    return tuple(character for character in named_characters() if _mapped(character))


@functools.cache
def categories() -> tuple[str, ...]:
    """Return the general categories that occur, sorted."""
    return tuple(sorted({unicodedata.category(character) for character in named_characters()}))


@functools.cache
def bidirectional_classes() -> tuple[str, ...]:
    """Return the bidirectional classes that occur, sorted."""
    return tuple(sorted({unicodedata.bidirectional(character) for character in named_characters()}))


def code_point(character: str) -> str:
    """Return the code point in the usual form, e.g. `U+00E9`."""
    return f"U+{ord(character):04X}"


def property_of(character: str, name: str) -> str:
    """Return one of `PROPERTIES`."""
    if name == "name":
        return unicodedata.name(character)
    if name == "general category":
        return unicodedata.category(character)
    if name == "bidirectional class":
        return unicodedata.bidirectional(character)
    return code_point(character)


def single_case(character: str, case: str) -> str:
    """Return the upper- or lower-case mapping where it is one other character, else an empty text."""
    mapped = character.upper() if case == "upper" else character.lower()
    return mapped if len(mapped) == 1 and mapped != character else ""


def first_of_decomposition(character: str) -> str:
    """Return the first character of the canonical decomposition, empty where there is none."""
    parts = unicodedata.decomposition(character).split()
    return chr(int(parts[0], 16)) if parts and not parts[0].startswith("<") else ""


def random_hop(character: str, rng: np.random.Generator) -> Hop:
    """Draw a step from a character: a mapping where it has one, else a walk along the code points."""
    hops = _mapped(character)
    if hops and rng.random() < 0.8:
        return hops[int(rng.integers(len(hops)))]
    distance = int(rng.integers(3, 40))
    return Hop(
        text=f"go {distance} named characters further",
        tool="further",
        arguments={"distance": distance},
        target=further(character, distance),
    )


def further(character: str, distance: int) -> str:
    """Return the character that many named characters further, starting again at the end of the list."""
    order = named_characters()
    return order[(_positions()[character] + distance) % len(order)]


@functools.cache
def _positions() -> dict[str, int]:
    return {character: index for index, character in enumerate(named_characters())}


@functools.lru_cache(maxsize=4096)
def _mapped(character: str) -> tuple[Hop, ...]:
    found = (
        ("take its lower-case mapping", "lower_case", single_case(character, "lower")),
        ("take its upper-case mapping", "upper_case", single_case(character, "upper")),
        ("take the first character of its canonical decomposition", "decompose", first_of_decomposition(character)),
    )
    return tuple(
        Hop(text=text, tool=tool, arguments={}, target=target)
        for text, tool, target in found
        if target and ord(target) <= LAST_CODE_POINT and unicodedata.name(target, "")
    )
