"""The generators of reasoning-gym: one question, one answer, scored by the generator."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from agentenv.env import AgentEnv
from agentenv.envs.adapters.own_random import OwnRandom, isolate, load_isolated
from agentenv.errors import UsageError, describe, did_you_mean
from agentenv.packages import EXTRAS, require
from agentenv.reward import reward
from agentenv.tasks import Task

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_MAX_SEED = 2**30
_FORMAT = "\n\nGive your final answer once, between <answer> and </answer>."
# generators without a stored answer whose items hold one that scores 1.0
_EXAMPLES: Mapping[str, str] = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}


class ReasoningGym(AgentEnv):
    """Answer one question of a generator of reasoning-gym. Reward: 1.0 if its score is 1.0, else 0.0.

    With `partial` the score itself is paid; many generators give some of it to answers that only contain the truth.
    Items come from even seeds in train and from odd seeds in test. Answers stand between `<answer>` and `</answer>`,
    once: of two answers none is scored.

    Args:
        dataset: name of the generator.
        config: its settings, e.g. `{"max_digits": 3}`; seed and size are not among them.
        partial: pay scores below 1.0 too.
        **options: of `AgentEnv`.
    """

    random_threshold: ClassVar[float] = 0.1

    def __init__(
        self,
        *,
        dataset: str = "basic_arithmetic",
        config: Mapping[str, object] | None = None,
        partial: bool = False,
        **options: Any,
    ) -> None:
        taken = {"seed", "size"} & set(config or {})
        if taken:
            raise UsageError(f"config holds {', '.join(sorted(taken))}; the environment's own seed decides about items")
        self.dataset = dataset
        self.config = dict(config or {})
        self.partial = partial
        self.entry: dict[str, Any] = {}
        self._generator: Any = None
        self._said: str | None = None
        self._own = OwnRandom(0)
        super().__init__(**{"max_turns": 1, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw an item."""
        seed = 2 * int(rng.integers(_MAX_SEED)) + (self.split == "test")
        self._said = None
        self._own = OwnRandom(seed)
        create = _package().create_dataset
        with self._own.active():
            try:
                self._generator = create(self.dataset, seed=seed, size=1, **self.config)
            except (TypeError, ValueError, AssertionError) as error:
                raise UsageError(_why_not(self.dataset, self.config, error)) from error
            isolate("reasoning_gym")  # some generators import more when they are made
            self.entry = self._generator[0]
        return f"{self.entry['question']}{_FORMAT}"

    def respond(self, text: str) -> str:
        """Take the answer."""
        found = _ANSWER.findall(text)
        self._said = found[0].strip() if len(found) == 1 else None
        self.finish()
        return ""

    @reward(low=0.0, high=1.0)
    def right(self) -> float:
        """The generator's score, or whether it is full."""
        score = 0.0 if self._said is None else self.score(self._said)
        return score if self.partial else float(score >= 1.0)

    def score(self, answer: str) -> float:
        """Return the generator's own score of an answer, within 0 and 1; an answer that it stumbles over gets 0."""
        with self._own.active():
            try:
                score = float(self._generator.score_answer(answer, self.entry))
            except Exception:  # the answer is the model's, and most scorers expect a well-formed one
                return 0.0
        return min(max(score, 0.0), 1.0)

    def oracle(self) -> str:
        """Give the stored answer.

        Raises:
            UsageError: the generator stores none.
        """
        answer = self.entry.get("answer")
        if answer is None:
            answer = self.entry["metadata"].get(_EXAMPLES.get(self.dataset, ""))
        if answer is None:
            raise UsageError(f"{self.dataset} stores no answer; it only scores those that it is given")
        return f"<answer>{answer if isinstance(answer, str) else json.dumps(answer)}</answer>"

    def random_action(self, rng: np.random.Generator) -> str:
        """Answer with a number."""
        return f"<answer>{int(rng.integers(100))}</answer>"

    def cheat(self, rng: np.random.Generator) -> str:
        """Give many answers, one of them perhaps right."""
        return "".join(f"<answer>{number}</answer>" for number in range(-200, 2000))


def generators() -> tuple[str, ...]:
    """Return the names of the generators; `composite` is left out, because it only mixes others."""
    _package()
    factory = importlib.import_module("reasoning_gym.factory")
    return tuple(name for name in sorted(factory.DATASETS) if name != "composite")


def _package() -> Any:
    require(EXTRAS["reasoning-gym"][0], extra="reasoning-gym")
    return load_isolated("reasoning_gym")


def _why_not(dataset: str, config: Mapping[str, object], error: Exception) -> str:
    known = generators()
    if dataset not in known:
        return f"reasoning-gym has no generator {dataset!r}.{did_you_mean(dataset, known)} It has {len(known)}."
    return f"the generator {dataset} cannot be made with {dict(config)} ({describe(error)})"
