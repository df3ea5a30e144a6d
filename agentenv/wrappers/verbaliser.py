"""A plain Gymnasium environment with Discrete actions, played in words: `VerbalisedEnv` and the wrapper around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from agentenv.env import ToolEnv, tool_turn
from agentenv.errors import ToolError, UsageError
from agentenv.import_string import load_callable
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.spaces import Action
from agentenv.tasks import Task
from agentenv.tool import tool
from agentenv.wrappers.verbalise import action_names, plain_screen, read_action, require_sayable, told_value

Game = gymnasium.Env[Any, Any]
Paid = Literal["solved", "return"]
Describe = Callable[[Game, Any], str]
"""Turns the unwrapped game and an observation into text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """How a game is put into words.

    Attributes:
        title: what the player is told that it plays.
        rules: a few sentences; "" where the observations explain themselves.
        actions: one name per action; () numbers them.
        numbers: names of the numbers of a vector observation, or of the parts of a tuple.
        describe: replaces the general description of observations.
    """

    title: str
    rules: str = ""
    actions: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    describe: Describe | None = None


class VerbalisedEnv(ToolEnv):
    """Play a Gymnasium environment by the names of its actions, with the tool `act` or in text.

    Reward: 1.0 if the game terminated with a last reward of at least `solved_at`, else 0.0; or, with
    `paid="return"`, the game's own rewards as they come.

    Args:
        make_game: makes the environment; called at the first reset.
        words: how it is told.
        paid: what the reward is.
        solved_at: last reward of a solved game.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True

    def __init__(
        self, make_game: Callable[[], Game], *, words: Words, paid: Paid, solved_at: float = 1.0, **options: Any
    ) -> None:
        if paid not in ("solved", "return"):
            raise UsageError(f'paid is {paid!r}; allowed are "solved" and "return"')
        self.paid: Paid = paid
        self.solved_at = solved_at
        self.words = words
        self._make_game = make_game
        self._game: Game | None = None
        self.observation: Any = None
        self.game_info: dict[str, Any] = {}
        self.is_solved = False
        self._earned = 0.0
        super().__init__(**{"max_turns": 64, **options})

    @property
    def game(self) -> Game:
        """The environment that is played, made when it is first needed.

        Raises:
            UsageError: it cannot be told in words.
        """
        if self._game is None:
            made = self._make_game()
            self.words = _checked(self.words, made)
            self._game = made
        return self._game

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Reset the game."""
        self.is_solved, self._earned = False, 0.0
        self.begin(rng)
        names = ", ".join(f"{index} {name}" for index, name in enumerate(self.words.actions))
        parts = [f"You play {self.words.title}. {self.words.rules}".strip(), f"Actions: {names}.", self.describe()]
        return "\n\n".join(parts)

    def begin(self, rng: np.random.Generator) -> None:
        """Reset the game with a seed from `rng`."""
        self.reset_game(int(rng.integers(2**31)))

    def reset_game(self, seed: int) -> None:
        """Reset the game with this seed."""
        self.observation, self.game_info = self.game.reset(seed=seed)

    @tool
    def act(self, action: str) -> str:
        """Do one action.

        Args:
            action: its name, or its number.
        """
        index = read_action(action, self.words.actions)
        if index is None:
            raise ToolError(f"{action[:40]!r} is no action; choose one of {', '.join(self.words.actions)}")
        return self._play_action(index)

    def answer(self, text: str) -> str:
        """Take an action that was said without a call."""
        index = read_action(text, self.words.actions)
        if index is None:
            return f"That is no action. Say one of: {', '.join(self.words.actions)}."
        return self._play_action(index)

    @reward(low=0.0, high=1.0)
    def solved(self) -> float:
        """1.0 if the game was solved and that is what is paid."""
        return float(self.paid == "solved" and self.is_solved)

    @reward(when="turn")
    def game_reward(self) -> float:
        """What the game gave for the turn, where that is what is paid."""
        earned, self._earned = self._earned, 0.0
        return earned if self.paid == "return" else 0.0

    def describe(self) -> str:
        """Return the present observation as text."""
        game = self.game
        if self.words.describe is not None:
            return self.words.describe(game.unwrapped, self.observation)
        told = told_value(game.observation_space, self.observation, names=self.words.numbers)
        if game.render_mode == "ansi":
            screen = game.render()
            return f"{plain_screen(str(screen))}\n{told}"
        return told

    def allowed_calls(self) -> dict[str, Sequence[object] | None]:
        """Return the actions that the game does not mask; all where it has no mask."""
        mask = self.game_info.get("action_mask")
        names = self.words.actions
        return {"act": names if mask is None else [name for name, ok in zip(names, mask, strict=True) if ok]}

    def random_action(self, rng: np.random.Generator) -> Message:
        """Do any action."""
        return self.act_turn(int(rng.integers(len(self.words.actions))))

    def act_turn(self, index: int) -> Message:
        """Return the assistant turn that does an action."""
        return tool_turn("act", {"action": self.words.actions[index]}, call_id=f"call_{self.num_turns}_0")

    async def close_async(self) -> None:
        """Close the game too."""
        await super().close_async()
        if self._game is not None:
            self._game.close()

    def _play_action(self, index: int) -> str:
        space = self.game.action_space
        assert isinstance(space, spaces.Discrete)
        self.observation, value, terminated, truncated, self.game_info = self.game.step(int(space.start) + index)
        self._earned += float(value)
        told = self.describe()
        if terminated or truncated:
            self.is_solved = bool(terminated) and float(value) >= self.solved_at
            self.finish()
            return f"{told}\nThe game is over."
        return told


class Verbaliser(gymnasium.Wrapper[str, Action, Any, Any], RecordConstructorArgs):
    """Turns a plain Gymnasium environment with Discrete actions into one of this package.

    Observations become text, an action is an assistant's turn (the tool `act`, or the action's name), the reward stays
    that of the environment. The runner plays it too; wrappers of this package go around it.

    Args:
        env: what is wrapped.
        action_names: one per action.
        observation_names: of the numbers of a vector observation.
        describe: import string `module:function` (or a function) that takes the unwrapped environment and an
            observation and returns text.
        max_turns: assistant turns after which the episode is truncated.

    Raises:
        UsageError: its actions are not Discrete, its observations are too long for text, or it talks already.
    """

    def __init__(
        self,
        env: Game,
        *,
        action_names: Sequence[str] = (),
        observation_names: Sequence[str] = (),
        describe: str | Describe | None = None,
        max_turns: int = 200,
    ) -> None:
        RecordConstructorArgs.__init__(
            self,
            action_names=action_names,
            observation_names=observation_names,
            describe=describe,
            max_turns=max_turns,
        )
        if hasattr(env.unwrapped, "step_async"):
            raise UsageError(f"{type(env.unwrapped).__name__} talks already; Verbaliser is for plain environments")
        gymnasium.Wrapper.__init__(self, env)
        words = Words(
            title=type(env.unwrapped).__name__ if env.spec is None else env.spec.id,
            actions=tuple(action_names),
            numbers=tuple(observation_names),
            describe=load_callable(describe, what="describe") if isinstance(describe, str) else describe,
        )
        self.talk = VerbalisedEnv(lambda: env, words=words, paid="return", max_turns=max_turns)
        _ = self.talk.game  # tells now what cannot be told in words
        self.observation_space, self.action_space = self.talk.observation_space, self.talk.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode."""
        return self.talk.reset(seed=seed, options=options)

    def step(self, action: Action) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one assistant turn."""
        return self.talk.step(action)

    def close(self) -> None:
        """Close the environment; idempotent."""
        self.talk.close()

    def has_wrapper_attr(self, name: str) -> bool:
        """True where `get_wrapper_attr` finds something."""
        return hasattr(self.talk, name) or super().has_wrapper_attr(name)

    def get_wrapper_attr(self, name: str) -> Any:
        """Look in this wrapper, then in what it made of the environment, then in the environment."""
        return getattr(self.talk, name) if hasattr(self.talk, name) else super().get_wrapper_attr(name)

    def __getattr__(self, name: str) -> Any:
        """Take the contract of this package from what was made of the environment."""
        if name == "talk" or (name.startswith("_") and name not in ("_never_waits", "_info", "_require_open")):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.talk, name)


def _checked(words: Words, game: Game) -> Words:
    """Return the words with a name for every action, after making sure that the game can be told."""
    names = action_names(game.action_space, words.actions, what=words.title)
    if words.describe is None:
        require_sayable(game.observation_space, what=words.title)
    return Words(title=words.title, rules=words.rules, actions=names, numbers=words.numbers, describe=words.describe)
