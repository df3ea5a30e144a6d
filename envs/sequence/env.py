"""Sequence: the next two numbers of a sequence that follows one rule."""

from __future__ import annotations

import numpy as np

from agentenv.answer_env import AnswerEnv, Question, listed, read_numbers

NUM_SHOWN, NUM_ASKED = 7, 2
_RULES = (
    "add the same number each time",
    "multiply by a number, then add one",
    "the differences grow by the same number each time",
    "every number is a sum of multiples of the two before it",
    "two sequences take turns; each adds the same number each time",
)
"""What the prompt says of the rule; a harder level also draws from the easier rules."""


class Sequence(AnswerEnv):
    """Continue a sequence of whole numbers by two.

    Reward: 1.0 if the two numbers after the last `####`, separated by a comma, are the next ones, else 0.0. The prompt
    names every rule that may be at work, so the answer is the only one.

    Args:
        difficulty: how many rules may be at work, 1 to 5.
        **options: of `AgentEnv`.
    """

    answer_form = f"the next {NUM_ASKED} numbers, separated by a comma"

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw a rule and a beginning."""
        numbers = _continue(rng, rule=int(rng.integers(self.difficulty)))
        shown, asked = numbers[:NUM_SHOWN], numbers[NUM_SHOWN:]
        rules = "; or ".join(_RULES[: self.difficulty])
        return Question(
            prompt=f"Continue: {listed(shown)}\nThe rule: {rules}.", answer=listed(asked), content=listed(numbers)
        )

    def guess(self, rng: np.random.Generator) -> str:
        """Guess two numbers of up to three digits."""
        return listed(sorted(rng.integers(0, 500, size=NUM_ASKED)))

    def is_right(self, answer: str) -> bool:
        """Compare as numbers."""
        return read_numbers(answer) == read_numbers(self.question.answer)


def _continue(rng: np.random.Generator, *, rule: int) -> list[int]:
    """Return the shown and the asked numbers of one rule."""
    count = NUM_SHOWN + NUM_ASKED
    first, step, other, growth = (int(n) for n in rng.integers((1, 2, 2, 1), (60, 30, 30, 9)))
    if rule == 0:
        return [first + step * n for n in range(count)]
    if rule == 2:
        return [first + step * n + growth * n * (n - 1) // 2 for n in range(count)]
    if rule == 4:
        second = first + growth
        return [(first + step * (n // 2)) if n % 2 == 0 else (second + other * (n // 2)) for n in range(count)]
    numbers = [first % 12 + 1, other % 12 + 1]
    factor, more = (growth % 3 + 2, step % 5) if rule == 1 else (growth % 2 + 1, step % 2 + 1)
    while len(numbers) < count:
        numbers.append(factor * numbers[-1] + (1 if rule == 1 else more * numbers[-2]))
    if rule == 1:
        numbers = [numbers[0]]
        while len(numbers) < count:
            numbers.append(factor * numbers[-1] + 1)
    return numbers
