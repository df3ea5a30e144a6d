"""Environments and functions that the tests of wrappers name by import string."""

from typing import Any

import numpy as np

import agentenv
from agentenv import Message, Task, ToolEnv, reward, tool, tool_turn

make: Any = agentenv.make
make_bare: Any = agentenv.make_bare
"""Untyped, so that tests read what an environment has beyond the common contract."""


class Steps(ToolEnv):
    """Climb `height` steps with `climb`. Reward: 1.0 at the top, else 0.0; 0.25 for every turn that climbed."""

    inline = True

    def __init__(self, *, height: int = 3, **options: Any) -> None:
        self.height = height
        self.position = 0
        self.has_climbed = False
        super().__init__(**{"max_turns": 6, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        self.position = 0
        return f"Climb {self.height} steps."

    @tool
    def climb(self, steps: int = 1) -> str:
        """Climb.

        Args:
            steps: how many.
        """
        self.position += steps
        self.has_climbed = True
        if self.position >= self.height:
            self.finish()
        return f"step {self.position}"

    @tool
    def rest(self) -> str:
        """Do nothing."""
        return "rested"

    def answer(self, text: str) -> str:
        return "go on"

    @reward(when="turn", weight=0.25)
    def effort(self) -> float:
        climbed, self.has_climbed = self.has_climbed, False
        return float(climbed)

    @reward(low=0.0, high=1.0)
    def at_top(self) -> float:
        return float(self.position >= self.height)

    def oracle(self) -> Message:
        return tool_turn("climb", {"steps": 1}, call_id=f"call_{self.num_turns}")

    def random_action(self, rng: np.random.Generator) -> Message:
        return tool_turn("rest", {}, call_id=f"call_{self.num_turns}")


def height_left(env: Any) -> float:
    """Potential: minus what is left to climb."""
    return float(env.position - env.height)


def nothing_finite(env: Any) -> float:
    """A potential that no reward may have."""
    return float("nan")


def no_big_steps(env: Any) -> dict[str, Any]:
    """Mask: at most two steps at once, and no rest at the bottom."""
    return {"climb": [1, 2], **({"rest": None} if env.position else {})}


def climb(steps: int = 1) -> Any:
    """Return the action that climbs."""
    return tool_turn("climb", {"steps": steps}).to_dict()
