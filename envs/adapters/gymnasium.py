"""Any Gymnasium environment with Discrete actions, verbalised."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import gymnasium
import numpy as np

from agentenv.envs.adapters.toy_games import ToyGame, known
from agentenv.errors import UsageError, describe
from agentenv.import_string import load_callable
from agentenv.messages import Message
from agentenv.wrappers.verbaliser import Describe, Paid, VerbalisedEnv, Words

_NUM_TRIED_SEEDS = 64
_NUM_ALIKE = 8


class Gymnasium(VerbalisedEnv):
    """Play a Gymnasium environment in words. Reward: 1.0 if the game was solved, else 0.0 (`paid="solved"`).

    With `paid="return"`, the default for games that have no goal to reach, the rewards of the game are paid as they
    come. Where a game begins in more than one way, four fifths of its openings belong to the train split.

    Args:
        env: id in Gymnasium's registry; it must be registered in this process (`module:Name-v0` imports a module).
        game: keyword arguments of `gymnasium.make`, e.g. `{"is_slippery": False}`.
        action_names: one per action; games that come with Gymnasium have their own.
        observation_names: of the numbers of a vector observation.
        describe: import string `module:function` that takes the unwrapped game and an observation and returns text.
        paid: `"solved"` or `"return"`; None chooses by the game.
        solved_at: last reward of a solved game; None is known for games that come with Gymnasium.
        **options: of `AgentEnv`.
    """

    def __init__(
        self,
        *,
        env: str = "Taxi-v4",
        game: Mapping[str, object] | None = None,
        action_names: Sequence[str] = (),
        observation_names: Sequence[str] = (),
        describe: str | None = None,
        paid: Paid | None = None,
        solved_at: float | None = None,
        **options: Any,
    ) -> None:
        self.env_name = env
        self.toy = known(env) or ToyGame(words=Words(title=env))
        solved_at = self.toy.solved_at if solved_at is None else solved_at
        if paid == "solved" and solved_at is None:
            raise UsageError(
                f'{env} has no known goal; give solved_at=LAST_REWARD with paid="solved", or paid="return"'
            )
        told = self.toy.words
        words = replace(
            told,
            actions=tuple(action_names) or told.actions,
            numbers=tuple(observation_names) or told.numbers,
            describe=cast(Describe, load_callable(describe, what="describe")) if describe else told.describe,
        )
        self.oracle_threshold = self.toy.oracle_threshold  # type: ignore[misc]
        self.random_threshold = self.toy.random_threshold  # type: ignore[misc]
        super().__init__(
            lambda: _make_game(env, dict(game or {})),
            words=words,
            paid=paid or ("return" if solved_at is None else "solved"),
            solved_at=1.0 if solved_at is None else solved_at,
            **options,
        )

    def begin(self, rng: np.random.Generator) -> None:
        """Reset the game with a seed whose opening belongs to the split."""
        seeds = [int(seed) for seed in rng.integers(2**31, size=_NUM_TRIED_SEEDS)]
        seen: set[str] = set()
        for count, seed in enumerate(seeds, start=1):
            self.reset_game(seed)
            told = self.describe()
            seen.add(told)
            if (sum(told.encode()) % 5 == 0) == (self.split == "test"):
                return
            if count == _NUM_ALIKE and len(seen) == 1:
                break  # it always begins in the same way, so the splits share it
        self.reset_game(seeds[0])

    @functools.cached_property
    def policy(self) -> dict[Any, int]:
        """The best action in every state.

        Raises:
            UsageError: the game is too large for value iteration, or unknown.
        """
        if self.toy.policy is not None:
            return self.toy.policy(self.game.unwrapped)
        raise UsageError(f"there is no oracle for {self.env_name}; its transitions are not known")

    def oracle(self) -> Message:
        """Play best, by value iteration over the game's transitions."""
        return self.act_turn(self.policy[self.toy.state(self.game.unwrapped, self.observation)])

    def cheat(self, rng: np.random.Generator) -> str:
        """Name all actions at once and claim to be done."""
        return f"{' '.join(self.words.actions)}\nThe game is over. reward: 20"


def _make_game(env: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    try:
        spec = gymnasium.spec(env.partition(":")[2] or env) if ":" not in env else None
        if spec is not None and "render_mode" not in kwargs and _has_text_rendering(spec, env):
            kwargs = {"render_mode": "ansi", **kwargs}
        return gymnasium.make(env, **kwargs)
    except (gymnasium.error.Error, ImportError) as error:
        raise UsageError(f"Gymnasium cannot make {env!r} ({describe(error)})") from error
    except TypeError as error:
        raise UsageError(f"Gymnasium cannot make {env!r} with {kwargs}: {error}") from error


def _has_text_rendering(spec: Any, env: str) -> bool:
    """True for an environment that draws itself in text and for which we have no words of our own."""
    if known(env) is not None:
        return False
    creator = (
        spec.entry_point if callable(spec.entry_point) else load_callable(str(spec.entry_point), what="entry point")
    )
    return "ansi" in getattr(creator, "metadata", {}).get("render_modes", ())
