"""Write an environment: hidden state, tools, rewards, an oracle; play it, and check that it keeps its promises.

python examples/02_write_an_environment.py
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from agentenv import Message, Task, ToolEnv, check_env, reward, tool, tool_turn
from agentenv.errors import ToolError

DRAWERS = ("top", "middle", "bottom")


class FindKey(ToolEnv):
    """Find the key in one of three drawers, then say where it is.

    Reward: 1.0 if the answer names the right drawer, minus 0.1 for every turn that opened a drawer.
    """

    inline: ClassVar[bool] = True  # every hook returns within a millisecond
    oracle_threshold, random_threshold = 0.9, 0.5
    split_by = "seed"  # three drawers are too few to keep some for the test

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Hide the key; all chance comes from `rng`."""
        self.drawer = DRAWERS[int(rng.integers(len(DRAWERS)))]
        self.said, self.has_opened = "", False
        return "The key is in the top, middle or bottom drawer. Which one? Answer with one word."

    @tool
    def open_drawer(self, name: str) -> str:
        """Look into a drawer.

        Args:
            name: top, middle or bottom.
        """
        if name not in DRAWERS:
            raise ToolError(f"there is no drawer {name!r}; there are {', '.join(DRAWERS)}")
        self.has_opened = True
        return f"the {name} drawer holds {'the key' if name == self.drawer else 'nothing'}"

    def answer(self, text: str) -> str:
        """Take the final answer: a turn without a call."""
        self.said = text.strip().lower()
        self.finish()
        return ""

    @reward(low=0.0, high=1.0)
    def named(self) -> float:
        """1.0 if the answer is right."""
        return float(self.said == self.drawer)

    @reward(when="turn", weight=-0.1)
    def opened(self) -> float:
        """1.0 in a turn that opened a drawer."""
        opened, self.has_opened = self.has_opened, False
        return float(opened)

    def oracle(self) -> str | Message:
        """Look into the right drawer once, then answer."""
        if self.num_turns == 0:
            return tool_turn("open_drawer", {"name": self.drawer})
        return self.drawer


if __name__ == "__main__":
    env = FindKey(render_mode="ansi")
    env.reset(seed=1)
    is_over, total = False, 0.0
    while not is_over:
        turn = env.oracle()
        _, gained, terminated, truncated, _ = env.step(turn if isinstance(turn, str) else turn.to_dict())
        is_over, total = terminated or truncated, total + gained
    print(f"{env.render()}\nreturn {total:g}\n")
    print(check_env(FindKey))
