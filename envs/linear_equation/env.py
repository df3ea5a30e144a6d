"""LinearEquation: one to three unknowns, whole-number solutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agentenv.answer_env import AnswerEnv, Question, listed, read_numbers

_NAMES = "xyz"
_NUM_UNKNOWNS = (1, 1, 2, 2, 3)
_LARGEST_VALUE = (20, 40, 9, 20, 9)
"""Largest size of a solution, by difficulty."""


class LinearEquation(AnswerEnv):
    """Solve linear equations; every solution is a whole number and the only one.

    Reward: 1.0 if the numbers after the last `####`, separated by commas, are the values of the unknowns in order,
    else 0.0.

    Args:
        difficulty: 1: `a*x + b = c`; 2: x on both sides; 3 and 4: two equations with x and y; 5: three with x, y, z.
        **options: of `AgentEnv`.
    """

    answer_form = "the values of the unknowns in alphabetical order, separated by commas"

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw a solution first, then equations that have no other."""
        num = _NUM_UNKNOWNS[self.difficulty - 1]
        size = _LARGEST_VALUE[self.difficulty - 1]
        values = [int(value) for value in rng.integers(-size, size + 1, size=num)]
        equations = self._one_unknown(rng, values[0]) if num == 1 else self._system(rng, values)
        return Question(prompt="Solve:\n" + "\n".join(equations), answer=listed(values))

    def guess(self, rng: np.random.Generator) -> str:
        """Guess any values of the right size."""
        size = _LARGEST_VALUE[self.difficulty - 1]
        return listed(rng.integers(-size, size + 1, size=_NUM_UNKNOWNS[self.difficulty - 1]))

    def is_right(self, answer: str) -> bool:
        """Compare as numbers."""
        return read_numbers(answer) == read_numbers(self.question.answer)

    def _one_unknown(self, rng: np.random.Generator, value: int) -> list[str]:
        factor, constant = int(rng.integers(2, 13)), int(rng.integers(-30, 31))
        if self.difficulty == 1:
            return [f"{_sum([factor], constant)} = {factor * value + constant}"]
        other = int(rng.integers(2, 13))
        if other == factor:
            other += 1
        return [f"{_sum([factor], constant)} = {_sum([other], factor * value + constant - other * value)}"]

    def _system(self, rng: np.random.Generator, values: Sequence[int]) -> list[str]:
        num = len(values)
        while True:
            rows = [[int(a) for a in row] for row in rng.integers(-6, 7, size=(num, num))]
            if all(any(row) for row in rows) and _determinant(rows) != 0:
                break
        totals = [sum(a * v for a, v in zip(row, values, strict=True)) for row in rows]
        return [f"{_sum(row, 0)} = {total}" for row, total in zip(rows, totals, strict=True)]


def _sum(factors: Sequence[int], constant: int) -> str:
    """Write a sum such as `3x - y + 4`."""
    terms = [(a, f"{'' if abs(a) == 1 else abs(a)}{name}") for a, name in zip(factors, _NAMES, strict=False) if a]
    if constant:
        terms.append((constant, str(abs(constant))))
    first, *rest = terms
    return ("-" if first[0] < 0 else "") + first[1] + "".join(f" {'-' if a < 0 else '+'} {text}" for a, text in rest)


def _determinant(rows: Sequence[Sequence[int]]) -> int:
    """Return the determinant, exactly, by expansion along the first row."""
    if len(rows) == 1:
        return rows[0][0]
    minors = ([[*row[:i], *row[i + 1 :]] for row in rows[1:]] for i in range(len(rows)))
    return sum((-1) ** i * rows[0][i] * _determinant(minor) for i, minor in enumerate(minors))
