"""InstructFollow: write a text that keeps several rules, each of which a program can check."""

from __future__ import annotations

from typing import Any

import numpy as np

from agentenv.answer_env import AnswerEnv, Question
from agentenv.envs.instruct_follow.plan import Plan, draw_plan
from agentenv.envs.wordle.words import all_words

_MAX_GUESSED_WORDS = 40


class InstructFollow(AnswerEnv):
    """Write a text that keeps a number of rules: how many words, lines and commas, which words and letters.

    Reward: 1.0 if the whole answer keeps every rule, else 0.0. Whether it makes sense is not judged.

    Args:
        difficulty: 1 to 5; rules beside the number of words: one more than the difficulty.
        **options: of `AgentEnv`.
    """

    def __init__(self, **options: Any) -> None:
        self.plan: Plan | None = None
        super().__init__(**options)

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw rules that can be kept together."""
        self.plan = draw_plan(rng, all_words(), num_rules=self.difficulty + 1)
        words = [str(word) for word in rng.permutation(all_words())[:60]]
        rules = "\n".join(f"- {sentence}" for sentence in self.plan.sentences)
        return Question(
            prompt=f"Write a text that keeps these rules:\n{rules}", answer=self.plan.text(words), content=rules
        )

    @property
    def ending(self) -> str:
        """The last line of the prompt."""
        return "Words are what stands between white space. Answer with the text and nothing else."

    def read(self, text: str) -> str | None:
        """Take the whole answer."""
        return text.strip()

    def written(self, answer: str) -> str:
        """Give the text alone."""
        return answer

    def is_right(self, answer: str) -> bool:
        """Check every rule."""
        return self.plan is not None and not self.plan.broken(answer)

    def guess(self, rng: np.random.Generator) -> str:
        """Write any words."""
        return " ".join(str(word) for word in rng.choice(all_words(), size=int(rng.integers(1, _MAX_GUESSED_WORDS))))

    def cheats(self, rng: np.random.Generator) -> list[str]:
        """Repeat the rules, write the text twice, talk about it, or keep the number of words alone."""
        truth, plan = self.question.answer, self.plan
        count = plan.num_words if plan else 10
        return [
            self.question.prompt,
            f"{truth} {truth}",
            f"Here is the text: {truth}",
            f"{truth}\n\nAll rules are kept.",
            " ".join(["-"] * count),
            " ".join(["word"] * count),
            "All rules are kept.",
            "",
        ]
