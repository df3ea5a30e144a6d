"""What `check_env` looks at: how fresh environments are made, and the episodes played so far, each played once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gymnasium.envs.registration import EnvSpec

from agentenv.check_policies import POLICIES, Episode, PolicyName, play
from agentenv.env import AgentEnv
from agentenv.registry import constructor_options
from agentenv.splits import Split

GARBAGE_SEEDS = 20
CHEAT_SEEDS = 50
EASIEST = 1
"""The difficulty with the fewest tasks: if train and test share none there, they share none anywhere."""


class Skipped(Exception):
    """The check does not apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """Episodes of one policy, and what each asked.

    Attributes:
        episodes: one per seed.
        fingerprints: what `AgentEnv.fingerprint` said at the end of each.
    """

    episodes: tuple[Episode, ...]
    fingerprints: tuple[str, ...]

    @property
    def mean_return(self) -> float:
        """Mean over episodes of the sum of rewards."""
        return sum(step.reward for episode in self.episodes for step in episode) / len(self.episodes)


@dataclass(kw_only=True)
class Subject:
    """What is checked.

    Attributes:
        name: for the report.
        make: builds a fresh environment; takes more constructor arguments.
        num_seeds: episodes of the oracle and of the random policy.
        spec: Gymnasium's; None where it is not registered.
        splits: it can be made with `split="test"`.
        env_kwargs: constructor arguments that are checked with; empty for its defaults.
    """

    name: str
    make: Callable[..., AgentEnv]
    num_seeds: int
    spec: EnvSpec | None
    splits: bool
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    _played: dict[object, Played] = field(default_factory=dict)

    def played(self, policy: PolicyName, *, split: Split | None = None, is_easiest: bool = False) -> Played:
        """Play one episode per seed, on one environment that is used again and again.

        Args:
            policy: who plays.
            split: None takes the subject's own.
            is_easiest: at difficulty 1 instead of the subject's own.
        """
        if not self._has(policy):
            raise Skipped(f"it has no {'oracle' if policy == 'oracle' else 'cheating policy'}")
        key = (policy, split, is_easiest)
        if key not in self._played:
            more: dict[str, Any] = {} if split is None else {"split": split}
            self._played[key] = self._play(policy, **more, **({"difficulty": EASIEST} if is_easiest else {}))
        return self._played[key]

    def episodes(self, policy: PolicyName) -> tuple[Episode, ...]:
        """Return the episodes of a policy on the subject's own split and difficulty."""
        return self.played(policy).episodes

    def _play(self, policy: PolicyName, **options: Any) -> Played:
        env = self.make(**options)
        episodes: list[Episode] = []
        fingerprints: list[str] = []
        for seed in range(min(self.num_seeds, _MOST_SEEDS.get(policy, self.num_seeds))):
            episodes.append(play(env, policy, seed=seed))
            fingerprints.append(env.fingerprint())
        env.close()
        return Played(episodes=tuple(episodes), fingerprints=tuple(fingerprints))

    @functools.cached_property
    def env_class(self) -> type[AgentEnv]:
        """The class of the environment."""
        return type(self.make())

    @property
    def has_oracle(self) -> bool:
        """True when the class brings its own."""
        return self._has("oracle")

    @property
    def has_difficulty(self) -> bool:
        """True when the knob exists and is left alone."""
        return "difficulty" in constructor_options(self.env_class) and "difficulty" not in self.env_kwargs

    @property
    def means(self) -> dict[str, float]:
        """Mean return by policy, of those that played the subject's own split and difficulty."""
        return {name: self.played(name).mean_return for name in POLICIES if (name, None, False) in self._played}

    @property
    def policies(self) -> tuple[PolicyName, ...]:
        """The policies that can play it."""
        return tuple(name for name in POLICIES if self._has(name))

    @property
    def is_deterministic(self) -> bool:
        """False when its registration says that it is not."""
        return self.spec is None or not self.spec.nondeterministic

    def _has(self, policy: PolicyName) -> bool:
        if policy == "oracle":
            return self.env_class.oracle is not AgentEnv.oracle
        return policy != "cheat" or self.env_class.cheat is not AgentEnv.cheat


_MOST_SEEDS: Mapping[str, int] = {"garbage": GARBAGE_SEEDS, "cheat": CHEAT_SEEDS}
