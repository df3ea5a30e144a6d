"""Arithmetic: one expression of whole numbers, in the head."""

from __future__ import annotations

import numpy as np

from agentenv.answer_env import AnswerEnv, Question, read_numbers
from agentenv.tools.calculator import evaluate

_LARGEST = (30, 50, 60, 80, 99)
"""Largest number by difficulty."""


class Arithmetic(AnswerEnv):
    """Work out an expression of whole numbers with +, - and *, in one turn and without a tool.

    Reward: 1.0 if the whole number after the last `####` is the value, else 0.0.

    Args:
        difficulty: operations in the expression, 1 to 5; numbers grow with it too.
        **options: of `AgentEnv`.
    """

    answer_form = "the number"

    def draw(self, rng: np.random.Generator) -> Question:
        """Join numbers by operations, every second one in brackets."""
        largest = _LARGEST[self.difficulty - 1]
        text = str(rng.integers(2, largest + 1))
        for index in range(self.difficulty):
            sign, number = "+-*"[int(rng.integers(3))], rng.integers(2, largest + 1)
            text = f"{text} {sign} {number}" if rng.random() < 0.5 else f"{number} {sign} {text}"
            if index % 2 == 1 and index + 1 < self.difficulty:
                text = f"({text})"
        return Question(prompt=f"What is {text}?", answer=str(evaluate(text)))

    def guess(self, rng: np.random.Generator) -> str:
        """Guess any number of up to three digits."""
        return str(rng.integers(-200, 1000))

    def is_right(self, answer: str) -> bool:
        """Compare as numbers."""
        return read_numbers(answer) == [int(self.question.answer)]
