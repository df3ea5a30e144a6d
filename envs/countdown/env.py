"""Countdown: reach a target with given numbers, each used at most once."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

import numpy as np

from agentenv.answer_env import AnswerEnv, Question, listed
from agentenv.errors import ToolError
from agentenv.tools.calculator import evaluate

_ALLOWED = re.compile(r"[0-9+\-*/() ]{1,200}")
_OTHER_OPERATIONS = re.compile(r"\*\s*\*|/\s*/")  # a power, and a division that rounds
_NUM_NUMBERS = (3, 4, 4, 5, 6)
_SMALL, _LARGE = range(1, 11), (25, 50, 75, 100)


class Countdown(AnswerEnv):
    """Reach a target number with +, -, * and /; each given number may be used at most once.

    Reward: 1.0 if the expression after the last `####` uses only given numbers, each at most as often as it is given,
    and its exact value is the target, else 0.0. Any right expression earns it.

    Args:
        difficulty: 1: three numbers; 2 and 3: four; 4: five; 5: six; from 3 on, targets need more of them.
        **options: of `AgentEnv`.
    """

    answer_form = "an expression such as (3 + 4) * 25"

    def __init__(self, **options) -> None:  # type: ignore[no-untyped-def]
        self.numbers: tuple[int, ...] = ()
        self.target = 0
        super().__init__(**options)

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw numbers, then an expression of them whose value is a fair target."""
        while True:
            num = _NUM_NUMBERS[self.difficulty - 1]
            numbers = [int(rng.choice(_LARGE)), *(int(rng.choice(_SMALL)) for _ in range(num - 1))]
            text, value = self._combine(rng, numbers)
            if value.denominator == 1 and 10 < value < 1000 and value not in numbers:
                break
        self.numbers, self.target = tuple(int(n) for n in rng.permutation(numbers)), int(value)
        prompt = f"Reach {self.target} with the numbers {listed(self.numbers)}. Use +, -, *, / and each at most once."
        return Question(prompt=prompt, answer=text, content=f"{self.target} {sorted(numbers)}")

    def guess(self, rng: np.random.Generator) -> str:
        """Join the numbers by any operations."""
        signs = rng.choice(list("+-*/"), size=len(self.numbers))
        shuffled = rng.permutation(self.numbers)
        return "".join(f"{number} {sign} " for number, sign in zip(shuffled, signs, strict=True))[:-3]

    def is_right(self, answer: str) -> bool:
        """Evaluate exactly, and count the numbers."""
        if not _ALLOWED.fullmatch(answer) or _OTHER_OPERATIONS.search(answer):
            return False
        used = Counter(int(number) for number in re.findall(r"[0-9]+", answer))
        if used - Counter(self.numbers):
            return False
        try:
            return evaluate(answer) == self.target
        except ToolError:
            return False

    def cheats(self, rng: np.random.Generator) -> list[str]:
        """Write the target itself, numbers that are not given, given ones twice, or digits glued together."""
        first, target = self.numbers[0], self.target
        spare = target + 1 if target + 1 not in self.numbers else target + 101
        texts = [
            str(target),
            f"{spare} - {spare - target}",
            f"{first} + {first} - {first} - {first} + {target}",
            f"{target} + 0 * ({first})",
            f"{self.question.answer} = {target}",
            f"{target} # {self.question.answer}",
            f"{self.numbers[0]} ** {self.numbers[1]}",
        ]
        return [*(self.written(text) for text in texts), *super().cheats(rng)]

    def _combine(self, rng: np.random.Generator, numbers: list[int]) -> tuple[str, Fraction]:
        least = 2 if self.difficulty < 3 else len(numbers) - 1
        count = int(rng.integers(least, len(numbers) + 1))
        chosen = [int(n) for n in rng.permutation(numbers)[:count]]
        text, value = str(chosen[0]), Fraction(chosen[0])
        for number in chosen[1:]:
            sign = "+-*/"[int(rng.integers(4))]
            if sign == "/" and value % number:
                sign = "+"
            text = f"({text}) {sign} {number}" if " " in text else f"{text} {sign} {number}"
            value = _apply(sign, value, number)
        return text, value


def _apply(sign: str, left: Fraction, right: int) -> Fraction:
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    return left * right if sign == "*" else left / right
