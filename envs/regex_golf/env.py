"""RegexGolf: a short regular expression that matches one list of words and none of another."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from agentenv.answer_env import AnswerEnv, Question, listed
from agentenv.envs.regex_golf.matcher import SYNTAX, PatternError, compile_pattern
from agentenv.envs.wordle.words import all_words

_COMMON = "abcdefghilmnoprstuw"
_NUM_WORDS = (5, 6, 7, 8, 8)
"""Words of each list, by difficulty."""
_SPARE_CHARS = 2


class RegexGolf(AnswerEnv):
    """Write a regular expression that matches every word of one list, whole, and no word of another.

    Reward: 1.0 if the pattern after the last `####` is within the length allowed, matches all words of the first list
    and none of the second, else 0.0. Patterns are run by an automaton in linear time, so none can hang.

    Args:
        difficulty: 1: words that begin with a letter; 2: that end with or contain two; 3: a letter in a place and one
            anywhere after it; 4: either of two beginnings with an end; 5: vowels and consonants in a pattern.
        **options: of `AgentEnv`.
    """

    answer_form = "the pattern"

    def __init__(self, **options: Any) -> None:
        self.wanted: tuple[str, ...] = ()
        self.unwanted: tuple[str, ...] = ()
        self.max_chars = 0
        super().__init__(**options)

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw a pattern that enough words match and enough do not."""
        num = _NUM_WORDS[self.difficulty - 1]
        while True:
            hidden = _draw_pattern(rng, difficulty=self.difficulty)
            matched, others = _parted(hidden)
            if len(matched) >= num and len(others) >= num:
                break
        self.wanted = tuple(str(word) for word in rng.choice(matched, size=num, replace=False))
        self.unwanted = tuple(str(word) for word in rng.choice(others, size=num, replace=False))
        self.max_chars = len(hidden) + _SPARE_CHARS
        prompt = (
            f"Write a regular expression of at most {self.max_chars} characters that matches, from beginning to end, "
            f"each of: {listed(self.wanted)}\nand none of: {listed(self.unwanted)}\nAllowed are {SYNTAX}."
        )
        return Question(prompt=prompt, answer=hidden, content=hidden)

    def is_right(self, answer: str) -> bool:
        """Run the pattern over both lists."""
        if len(answer) > self.max_chars:
            return False
        try:
            pattern = compile_pattern(answer)
        except PatternError:
            return False
        return all(map(pattern.matches, self.wanted)) and not any(map(pattern.matches, self.unwanted))

    def guess(self, rng: np.random.Generator) -> str:
        """Write any pattern of the right kind."""
        return _draw_pattern(rng, difficulty=self.difficulty)

    def cheats(self, rng: np.random.Generator) -> list[str]:
        """Name all words, match everything, use what is not allowed, or try to hang the grader."""
        truth = self.question.answer
        texts = [
            "|".join(self.wanted),
            f"({'|'.join(self.wanted)})",
            ".*",
            ".+",
            "....." if self.max_chars > 4 else ".*",
            f"({truth})|.*",
            f"{truth}|.+",
            f"^{truth}$",
            f"(?!{'|'.join(self.unwanted)}).*",
            "(.*)*.*",
            "((.+)+)+",
            "[",
        ]
        return [*(self.written(text) for text in texts), *super().cheats(rng)]


def _draw_pattern(rng: np.random.Generator, *, difficulty: int) -> str:
    a, b, c = (str(letter) for letter in rng.choice(list(_COMMON), size=3))
    vowels = "[aeiou]"
    kinds = {
        1: (f"{a}.*",),
        2: (f".*{a}{b}", f".*{a}{b}.*", f".*{a}"),
        3: (f".{a}.*{b}.*", f"{a}.*{b}", f"..{a}.*{b}"),
        4: (f"({a}|{b}).*{c}", f"({a}|{b}).*{c}.*", f"[{a}{b}{c}].*{vowels}"),
        5: (
            f"[^aeiou]+{vowels}[^aeiou]+{vowels}",
            f"{vowels}.*[{a}{b}].*",
            f"[^aeiou]+{vowels}+[^{a}aeiou]+",
            f"(.{vowels})+[{a}{b}{c}]?",
        ),
    }[difficulty]
    return kinds[int(rng.integers(len(kinds)))]


@functools.lru_cache(maxsize=4096)
def _parted(pattern: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words that one of our own patterns matches, and the others."""
    matches = re.compile(pattern).fullmatch
    found = tuple(word for word in all_words() if matches(word))
    matched = set(found)
    return found, tuple(word for word in all_words() if word not in matched)
