"""LetterCount: how often some letters occur in a line of words."""

from __future__ import annotations

import numpy as np

from agentenv.answer_env import AnswerEnv, Question, listed, read_numbers
from agentenv.envs.wordle.words import all_words

_COMMON = "aeiorstlnc"
NUM_LETTERS = 3


class LetterCount(AnswerEnv):
    """Count how often each of three letters occurs in a line of words.

    Reward: 1.0 if the three numbers after the last `####`, separated by commas, are the counts in the order asked,
    else 0.0.

    Args:
        difficulty: 1 to 5; the line has four words times the difficulty.
        **options: of `AgentEnv`.
    """

    answer_form = f"the {NUM_LETTERS} numbers in this order, separated by commas"

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw words and letters that occur in them."""
        line = " ".join(str(word) for word in rng.choice(all_words(), size=4 * self.difficulty))
        present = sorted(set(line) & set(_COMMON))
        while len(present) < NUM_LETTERS:
            present.append(str(rng.choice(sorted(set(_COMMON) - set(present)))))
        letters = [str(letter) for letter in rng.choice(present, size=NUM_LETTERS, replace=False)]
        prompt = f"How often do the letters {listed(letters)} occur in: {line}"
        return Question(prompt=prompt, answer=listed(line.count(letter) for letter in letters))

    def guess(self, rng: np.random.Generator) -> str:
        """Guess small numbers."""
        return listed(rng.integers(0, 3 + 3 * self.difficulty, size=NUM_LETTERS))

    def is_right(self, answer: str) -> bool:
        """Compare as numbers."""
        return read_numbers(answer) == read_numbers(self.question.answer)
