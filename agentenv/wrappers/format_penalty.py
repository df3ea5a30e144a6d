"""A penalty for turns that break the format: malformed calls, calls of tools that are not there, a missing pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import gymnasium

from agentenv.errors import UsageError
from agentenv.messages import Message
from agentenv.spaces import Action
from agentenv.step import Step
from agentenv.wrappers.agent_wrapper import AgentWrapper


class FormatPenalty(AgentWrapper):
    """Takes `penalty` off the reward of every turn that breaks the format; at most once a turn.

    Args:
        env: what is wrapped.
        penalty: how much, as a positive number.
        pattern: regular expression that must be found in the text of a turn; "" asks for nothing.
        name: of the reward component.
    """

    def __init__(
        self,
        env: gymnasium.Env[str, Action],
        *,
        penalty: float = 0.1,
        pattern: str = "",
        name: str = "format_penalty",
    ) -> None:
        if not penalty > 0:
            raise UsageError(f"penalty is {penalty}; write how much is taken off as a number above 0")
        try:
            self.pattern = re.compile(pattern, re.DOTALL) if pattern else None
        except re.error as error:
            raise UsageError(f"pattern {pattern!r} is no regular expression: {error}") from None
        self.penalty = penalty
        self.component = name
        super().__init__(env, penalty=penalty, pattern=pattern, name=name)

    def after(self, turn: Message, step: Step) -> Step:
        """Judge the turn."""
        return self.paid(step, -self.penalty if self._is_broken(turn, step) else 0.0)

    def _is_broken(self, turn: Message, step: Step) -> bool:
        if step.num_malformed_calls or (self.pattern is not None and not self.pattern.search(turn.content)):
            return True
        if not turn.tool_calls:
            return False
        names = {cast(Mapping[str, Any], spec["function"])["name"] for spec in self.tool_specs}
        return any(call.name not in names for call in turn.tool_calls)
