"""BooleanSat: the one assignment that makes a formula of clauses true."""

from __future__ import annotations

import functools

import numpy as np

from agentenv.answer_env import AnswerEnv, Question, listed

_NUM_VARIABLES = (5, 6, 7, 8, 10)
_WIDTH = 3
"""Literals in a clause."""
_BATCH = 32
_NAMES = "abcdefghij"


class BooleanSat(AnswerEnv):
    """Find the truth values that satisfy all clauses; exactly one assignment does.

    Reward: 1.0 if the digits after the last `####` are the values of the variables in alphabetical order, 1 for true
    and 0 for false, else 0.0.

    Args:
        difficulty: 1 to 5: five, six, seven, eight or ten variables.
        **options: of `AgentEnv`.
    """

    answer_form = "one digit per variable in alphabetical order, 1 for true and 0 for false, such as 0110"

    def draw(self, rng: np.random.Generator) -> Question:
        """Plant an assignment and add clauses that it satisfies until no other is left."""
        num = _NUM_VARIABLES[self.difficulty - 1]
        planted = [int(value) for value in rng.integers(0, 2, size=num)]
        masks = _masks(num)
        left = (1 << 2**num) - 1  # bit i stands while assignment i is possible
        clauses: list[str] = []
        while left & (left - 1):
            for literals in _draw_literals(rng, num):
                if not any(planted[index] == value for index, value in literals):
                    continue
                fewer = left & (masks[literals[0]] | masks[literals[1]] | masks[literals[2]])
                if fewer != left:
                    left = fewer
                    told = " or ".join(f"{'' if value else 'not '}{_NAMES[index]}" for index, value in literals)
                    clauses.append(f"({told})")
        prompt = f"Which values of {listed(_NAMES[:num])} make all of these true?\n" + "\n".join(clauses)
        return Question(prompt=prompt, answer="".join(map(str, planted)))

    def guess(self, rng: np.random.Generator) -> str:
        """Guess every value."""
        return "".join(map(str, rng.integers(0, 2, size=_NUM_VARIABLES[self.difficulty - 1])))


def _draw_literals(rng: np.random.Generator, num: int) -> list[tuple[tuple[int, int], ...]]:
    """Return a batch of clauses: per literal a variable and the value that it wants; the variables of one differ."""
    chosen = rng.random((_BATCH, num)).argsort(axis=1)[:, :_WIDTH].tolist()
    wanted = rng.integers(0, 2, size=(_BATCH, _WIDTH)).tolist()
    return [tuple(zip(*clause, strict=True)) for clause in zip(chosen, wanted, strict=True)]


@functools.cache
def _masks(num: int) -> dict[tuple[int, int], int]:
    """Return for every literal the assignments that make it true; assignment i gives variable j the bit j of i."""
    return {
        (index, value): sum(1 << i for i in range(2**num) if i >> index & 1 == value)
        for index in range(num)
        for value in (0, 1)
    }
