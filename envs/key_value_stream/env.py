"""KeyValueStream: values come in over many turns and keep changing; at the end some are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from agentenv.answer_env import AnswerEnv, Question, listed, read_numbers
from agentenv.env import Prompt
from agentenv.envs.wordle.words import all_words
from agentenv.errors import UsageError
from agentenv.tasks import Task

_NUM_UPDATES = (10, 25, 60, 150, 400)
PER_TURN, NUM_ASKED = 5, 3
_NUM_VALUES = 100


class KeyValueStream(AnswerEnv):
    """Take in settings, five in a turn, some of which replace earlier ones, and tell the newest values of three.

    Reward: 1.0 if the three numbers after the last `####` of the last turn, separated by commas, are the newest values
    of the keys in the order asked, else 0.0. What is said before the question makes no difference.

    Args:
        difficulty: 1 to 5: 10, 25, 60, 150 or 400 settings.
        num_updates: number of settings instead; None takes the one of the difficulty.
        **options: of `AgentEnv`; `max_turns` is what the settings take.
    """

    answer_form = f"the {NUM_ASKED} numbers in this order, separated by commas"

    def __init__(self, *, difficulty: int = 2, num_updates: int | None = None, **options: Any) -> None:
        if num_updates is not None and num_updates < PER_TURN:
            raise UsageError(f"num_updates is {num_updates}; at least {PER_TURN} are needed")
        self.num_updates = num_updates
        length = num_updates or _NUM_UPDATES[min(max(difficulty, 1), self.max_difficulty) - 1]
        self.updates: list[tuple[str, int]] = []
        self.num_told = 0
        super().__init__(difficulty=difficulty, **{"max_turns": -(-length // PER_TURN) + 2, **options})

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw settings of few keys, so that most change several times."""
        length = self.num_updates or _NUM_UPDATES[self.difficulty - 1]
        keys = [str(word) for word in rng.choice(all_words(), size=max(NUM_ASKED + 1, length // 4), replace=False)]
        chosen = [*range(len(keys)), *rng.integers(len(keys), size=max(0, length - len(keys)))]
        values = rng.integers(_NUM_VALUES, size=length)
        order = rng.permutation(chosen)[:length]
        self.updates = [(keys[i], int(value)) for i, value in zip(order, values, strict=True)]
        newest = dict(self.updates)
        asked = [str(key) for key in rng.choice(sorted(newest), size=NUM_ASKED, replace=False)]
        prompt = f"What are the newest values of {listed(asked)}?"
        return Question(prompt=prompt, answer=listed(newest[key] for key in asked), content=f"{self.updates} {asked}")

    def setup(self, rng: np.random.Generator, task: Task) -> str:  # type: ignore[override]
        """Tell the first settings."""
        self.begin(rng)
        self.num_told = 0
        return f"Remember these settings; a later one replaces an earlier one. Say ok to each batch.\n{self._batch()}"

    def respond(self, text: str) -> Prompt:
        """Tell more settings, then ask, then take the answer."""
        if self.num_told < len(self.updates):
            return self._batch()
        if self._is_asking:
            return super().respond(text)
        self.num_told += 1
        return f"{self.question.prompt}\n{self.ending}"

    def is_right(self, answer: str) -> bool:
        """Compare as numbers."""
        return read_numbers(answer) == read_numbers(self.question.answer)

    def guess(self, rng: np.random.Generator) -> str:
        """Guess values."""
        return listed(rng.integers(_NUM_VALUES, size=NUM_ASKED))

    def oracle(self) -> str:
        """Say ok, and answer when asked."""
        return super().oracle() if self._is_asking else "ok"

    def cheats(self, rng: np.random.Generator) -> list[str]:
        """Repeat everything that was told, before the question and after."""
        told = "; ".join(f"{key} = {value}" for key, value in self.updates)
        newest = dict(self.updates)
        everything = [self.written(told), self.written(listed(newest.values())), f"{told}\nThese are all values."]
        # before the question the right answer is worth nothing; with it the episode would be solved
        early = [] if self._is_asking else [self.written(self.question.answer)]
        return [*everything, *early, *super().cheats(rng)]

    @property
    def _is_asking(self) -> bool:
        return self.num_told > len(self.updates)

    def _batch(self) -> str:
        batch = self.updates[self.num_told : self.num_told + PER_TURN]
        self.num_told += len(batch)
        return "\n".join(f"{key} = {value}" for key, value in batch)
