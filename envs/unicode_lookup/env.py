"""UnicodeLookup: follow mappings from character to character and report a property of the last one."""

from __future__ import annotations

import unicodedata
from typing import Any, ClassVar

import numpy as np

from agentenv.envs.question import PlannedCall, Question, QuestionEnv
from agentenv.envs.unicode_lookup import characters
from agentenv.errors import ToolError
from agentenv.tool import tool

_NUM_CANDIDATES = 30


class UnicodeLookup(QuestionEnv):
    """Start from a named character, follow steps to another, and answer with a property of that one.

    Steps are case mappings, canonical decompositions and walks along the named characters; everything is looked up in
    the Unicode database of the running Python. Reward: 1.0 if the text after the last `####` is the asked property,
    else 0.0.

    Args:
        difficulty: number of steps, 1 to 5.
        **options: of `AgentEnv`.
    """

    random_threshold: ClassVar[float] = 0.1

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        super().__init__(difficulty=difficulty, **{"max_turns": 2 * difficulty + 8, **options})

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw a start, as many steps as the difficulty says, and a property."""
        starts = characters.cased_or_composed()
        start = starts[int(rng.integers(len(starts)))]
        calls = [PlannedCall(name="find_character", arguments={"name": unicodedata.name(start)})]
        character, steps = start, []
        for _ in range(self.difficulty):
            hop = characters.random_hop(character, rng)
            arguments = {"code_point": characters.code_point(character), **hop.arguments}
            calls.append(PlannedCall(name=hop.tool, arguments=arguments))
            steps.append(hop.text)
            character = hop.target
        asked = characters.PROPERTIES[int(rng.integers(len(characters.PROPERTIES)))]
        calls.append(PlannedCall(name="properties", arguments={"code_point": characters.code_point(character)}))
        return Question(
            text=f"Start from the character {unicodedata.name(start)}. Then {', then '.join(steps)}. "
            f"What is the {asked} of the character where you arrive?",
            answer=characters.property_of(character, asked),
            calls=tuple(calls),
            candidates=_candidates(character, asked, rng),
        )

    @tool(read_only=True)
    def find_character(self, name: str) -> dict[str, str]:
        """Find a character by its full Unicode name.

        Args:
            name: e.g. "GREEK SMALL LETTER ALPHA".
        """
        try:
            return _described(unicodedata.lookup(name.strip().upper()[:200]))
        except (KeyError, UnicodeEncodeError):
            raise ToolError("no character has this name; write the full name, without the code point") from None

    @tool(read_only=True)
    def properties(self, code_point: str) -> dict[str, str]:
        """List the properties of a character.

        Args:
            code_point: e.g. "U+03B1".
        """
        character = _read(code_point)
        return {name: characters.property_of(character, name) for name in characters.PROPERTIES}

    @tool(read_only=True)
    def lower_case(self, code_point: str) -> dict[str, str]:
        """Map a character to lower case.

        Args:
            code_point: e.g. "U+0391".
        """
        return _mapped(characters.single_case(_read(code_point), "lower"), "other lower-case character")

    @tool(read_only=True)
    def upper_case(self, code_point: str) -> dict[str, str]:
        """Map a character to upper case.

        Args:
            code_point: e.g. "U+03B1".
        """
        return _mapped(characters.single_case(_read(code_point), "upper"), "other upper-case character")

    @tool(read_only=True)
    def decompose(self, code_point: str) -> list[dict[str, str]]:
        """List the characters of a character's canonical decomposition.

        Args:
            code_point: e.g. "U+00E9".
        """
        character = _read(code_point)
        if not characters.first_of_decomposition(character):
            raise ToolError(f"{characters.code_point(character)} has no canonical decomposition")
        return [_described(chr(int(part, 16))) for part in unicodedata.decomposition(character).split()]

    @tool(read_only=True)
    def further(self, code_point: str, distance: int) -> dict[str, str]:
        """Walk along the named characters in order of their code points.

        Args:
            code_point: where to start, e.g. "U+03B1".
            distance: how many named characters further, 1 to 100.
        """
        character = _read(code_point)
        if not 1 <= distance <= 100:
            raise ToolError(f"distance is {distance}; allowed are 1 to 100")
        if ord(character) > characters.LAST_CODE_POINT:
            raise ToolError(f"{characters.code_point(character)} lies beyond the list of U+0021 to U+2FFF")
        return _described(characters.further(character, distance))


def _read(code_point: str) -> str:
    digits = code_point.strip().upper().removeprefix("U+")
    if not 2 <= len(digits) <= 6 or any(digit not in "0123456789ABCDEF" for digit in digits):
        raise ToolError('a code point is written like "U+00E9": U+ and four to six hexadecimal digits')
    value = int(digits, 16)
    if value > 0x10FFFF or not unicodedata.name(chr(value), ""):
        raise ToolError(f"U+{digits} is not a named character")
    return chr(value)


def _described(character: str) -> dict[str, str]:
    return {"code_point": characters.code_point(character), "name": unicodedata.name(character, "")}


def _mapped(character: str, what: str) -> dict[str, str]:
    if not character:
        raise ToolError(f"it has no single {what}")
    return _described(character)


def _candidates(character: str, asked: str, rng: np.random.Generator) -> tuple[str, ...]:
    if asked == "general category":
        return characters.categories()
    if asked == "bidirectional class":
        return characters.bidirectional_classes()
    known = characters.named_characters()
    others = [known[int(index)] for index in rng.integers(len(known), size=_NUM_CANDIDATES - 1)]
    return tuple(characters.property_of(other, asked) for other in (*others, character))
