"""Potential-based shaping: a reward for progress that does not change which policy is best."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium

from agentenv.import_string import load_callable
from agentenv.messages import Message
from agentenv.spaces import Action
from agentenv.step import Step
from agentenv.wrappers.agent_wrapper import AgentWrapper

Potential = Callable[[gymnasium.Env], float]
"""Says how good a state is; it is given the environment itself, without wrappers."""


class RewardShaping(AgentWrapper):
    """Adds `weight * (discount * potential(after) - potential(before))` to every turn.

    The potential of an ended episode is 0, so that with discount 1 the terms of an episode add up to minus the
    potential of its beginning, whatever was done: the order of policies stays as it was (Ng, Harada and Russell,
    "Policy invariance under reward transformations", 1999, theorem 1).

    Args:
        env: what is wrapped.
        potential: import string `module:function`, or a function (the spec is then no longer plain JSON); it takes
            the environment and returns a finite number.
        weight: multiplies the whole term.
        discount: of the potential after the turn.
        name: of the reward component.
    """

    def __init__(
        self,
        env: gymnasium.Env[str, Action],
        *,
        potential: str | Potential,
        weight: float = 1.0,
        discount: float = 1.0,
        name: str = "shaping",
    ) -> None:
        self._potential: Potential = (
            load_callable(potential, what="potential") if isinstance(potential, str) else potential
        )
        self.weight, self.discount, self.component = weight, discount, name
        self._before = 0.0
        super().__init__(env, potential=potential, weight=weight, discount=discount, name=name)

    def opening(self, step: Step) -> Step:
        """Remember where the episode began."""
        self._before = self._potential(self.unwrapped)
        return step

    def after(self, turn: Message, step: Step) -> Step:
        """Pay for the change."""
        potential = 0.0 if step.stop_reason is not None else self._potential(self.unwrapped)
        change = self.discount * potential - self._before
        self._before = potential
        return self.paid(step, self.weight * change)
