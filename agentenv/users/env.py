"""`UserEnv`: an environment with a simulated user, who hears every turn that calls no tool."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, cast

import numpy as np

from agentenv.env import Prompt, ToolEnv
from agentenv.errors import UsageError
from agentenv.messages import Message
from agentenv.trajectory import StopReason
from agentenv.users.brief import User, UserBrief, UserEnd, UserTurn
from agentenv.users.scripted import ScriptedUser


class UserEnv(ToolEnv):
    """Base of environments in which the agent calls tools and talks to a user.

    `setup` of a subclass ends with `return self.meet(brief, rng, system=...)`. From then on a turn without a call goes
    to the user, whose reply is the observation, a user message like any other: seeded, recorded and rewardable. The
    episode ends when the user ends the conversation.

    Args:
        user: who plays the user. Empty: the scripted user. Else an import string `module:function`; the function takes
            the brief and `seed=` and returns a `User`. Register such a variant with `nondeterministic=True` if its
            answers are.
        **options: of `ToolEnv`.

    Attributes:
        said: the agent's turns that the user heard.
        user_end: why the conversation ended; None while it goes on.
    """

    def __init__(self, *, user: str = "", **options: Any) -> None:
        if user and ":" not in user:
            raise UsageError(f"user is {user!r}; expected an import string module:function, or nothing")
        self.user_factory = user
        self.user: User | None = None
        self.user_end: UserEnd | None = None
        self.said: list[str] = []
        super().__init__(**options)

    def meet(self, brief: UserBrief, rng: np.random.Generator, *, system: str = "") -> Prompt | Awaitable[Prompt]:
        """Make the user and return the opening: the system message, if there is one, and the user's first words."""
        self.said, self.user_end = [], None
        self.user = self.make_user(brief, rng)
        turn = self.user.begin()
        if isinstance(turn, UserTurn):
            return _opening(turn, system)
        return self._meet_later(turn, system)

    def answer(self, text: str) -> Prompt | Awaitable[Prompt]:
        """Let the user hear the agent, and return the reply."""
        assert self.user is not None, "setup must end with self.meet(...)"
        self.said.append(text)
        turn = self.user.reply(text)
        return self._heard(turn) if isinstance(turn, UserTurn) else self._hear_later(turn)

    def teardown(self) -> Awaitable[None] | None:
        """Close the user."""
        return None if self.user is None else self.user.close()

    @property
    def asked(self) -> frozenset[str]:
        """Names of the slots whose facts the user has told."""
        return frozenset() if self.user is None else frozenset(self.user.revealed)

    def _heard(self, turn: UserTurn) -> str:
        self.user_end = turn.end
        if turn.end is not None:
            is_cut = turn.end in ("turn_cap", "looped")
            self.finish(StopReason.MAX_TURNS if is_cut else StopReason.COMPLETED)
        return turn.text

    async def _hear_later(self, turn: Awaitable[UserTurn]) -> str:
        return self._heard(await turn)

    async def _meet_later(self, turn: Awaitable[UserTurn], system: str) -> Prompt:
        return _opening(await turn, system)

    def make_user(self, brief: UserBrief, rng: np.random.Generator) -> User:
        """Return the user of this episode; override it for a scripted user of your own.

        Raises:
            UsageError: the option `user` leads nowhere, or to something that is no user.
        """
        if not self.user_factory:
            return ScriptedUser(brief, rng=rng)
        made = _factory(self.user_factory)(brief, seed=int(rng.integers(2**31)))
        missing = [name for name in ("begin", "reply", "close", "revealed") if not hasattr(made, name)]
        if missing:
            raise UsageError(f"{self.user_factory} returned {type(made).__name__}, which lacks {', '.join(missing)}")
        return made

    def _never_waits(self) -> bool:
        return not self.user_factory and super()._never_waits()


def _opening(turn: UserTurn, system: str) -> tuple[Message, ...]:
    said = Message(role="user", content=turn.text)
    return (Message(role="system", content=system), said) if system else (said,)


def _factory(target: str) -> Callable[..., User]:
    module, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"user: cannot import {target!r} ({error})") from error
    if not callable(found) or inspect.isawaitable(found):
        raise UsageError(f"user: {target!r} is {type(found).__name__}; expected a function of (brief, seed=)")
    return cast(Callable[..., User], found)
