"""SortWords: bring words into an order."""

from __future__ import annotations

import numpy as np

from agentenv.answer_env import AnswerEnv, Question, listed
from agentenv.envs.wordle.words import all_words

_NUM_WORDS = (5, 8, 12, 10, 16)


class SortWords(AnswerEnv):
    """Sort words, alphabetically or by their last letters.

    Reward: 1.0 if the words after the last `####`, separated by commas, are all of them in the order asked, in small
    or large letters, else 0.0.

    Args:
        difficulty: 1: five words; 2: eight; 3: twelve; 4 and 5: ten and sixteen, by last letter first.
        **options: of `AgentEnv`.
    """

    answer_form = "the sorted words, separated by commas"

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw different words."""
        num = _NUM_WORDS[self.difficulty - 1]
        words = [str(word) for word in rng.choice(all_words(), size=num, replace=False)]
        if self.difficulty < 4:
            ordered, how = sorted(words), "alphabetically"
        else:
            ordered = sorted(words, key=lambda word: (word[-1], word))
            how = "by their last letter, and words with the same last letter alphabetically"
        return Question(
            prompt=f"Sort these words {how}: {listed(words)}", answer=listed(ordered), content=listed(ordered)
        )

    def guess(self, rng: np.random.Generator) -> str:
        """Shuffle the words."""
        return listed(rng.permutation(self.question.answer.split(", ")))

    def is_right(self, answer: str) -> bool:
        """Compare word by word."""
        return [part.strip().lower() for part in answer.split(",")] == self.question.answer.split(", ")
