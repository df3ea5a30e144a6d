"""BaseConversion: the same number in another base."""

from __future__ import annotations

import numpy as np

from agentenv.answer_env import AnswerEnv, Question

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_RANGES = ((64, 1024), (64, 4096), (256, 65536), (4096, 10**6), (10**6, 10**9))
"""Smallest number, and the first too large one, by difficulty."""
_BASES = ((2, 10), (2, 8, 10, 16), (2, 8, 10, 16), (3, 5, 7, 10, 12, 16), tuple(range(2, 37)))


class BaseConversion(AnswerEnv):
    """Write a whole number in another base. Digits above 9 are the letters a to z.

    Reward: 1.0 if what stands after the last `####` is the number in the wanted base, without prefix or leading
    zeros, in small or large letters, else 0.0.

    Args:
        difficulty: 1: binary and decimal; 2 and 3: octal and hexadecimal too; 4: bases such as 7 and 12; 5: all bases
            from 2 to 36 and numbers of up to a thousand million.
        **options: of `AgentEnv`.
    """

    answer_form = "the digits, without a prefix"

    def __init__(self, **options) -> None:  # type: ignore[no-untyped-def]
        self.base = 10
        super().__init__(**options)

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw a number and two bases."""
        value = int(rng.integers(*_RANGES[self.difficulty - 1]))
        source, self.base = (int(base) for base in rng.choice(_BASES[self.difficulty - 1], size=2, replace=False))
        prompt = f"Write the base-{source} number {in_base(value, source)} in base {self.base}."
        return Question(prompt=prompt, answer=in_base(value, self.base))

    def guess(self, rng: np.random.Generator) -> str:
        """Guess any number of the range, in the right base."""
        return in_base(int(rng.integers(*_RANGES[self.difficulty - 1])), self.base)

    def is_right(self, answer: str) -> bool:
        """Compare the digits."""
        return answer.lower() == self.question.answer


def in_base(value: int, base: int) -> str:
    """Write a number that is not negative in a base from 2 to 36."""
    digits = DIGITS[value % base]
    while value := value // base:
        digits = DIGITS[value % base] + digits
    return digits
