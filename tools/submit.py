"""The `submit` tool: hand in the final answer and end the episode."""

from __future__ import annotations

from agentenv.env import ToolEnv
from agentenv.errors import ToolError, UsageError
from agentenv.tool import tool
from agentenv.toolkit import Toolkit


class Submit(Toolkit):
    """Takes one answer; the turn in which it comes is the last.

    Args:
        max_chars: longest answer.

    Attributes:
        answer: what was handed in; None as long as nothing was.
    """

    def __init__(self, *, max_chars: int = 100_000) -> None:
        self.answer: str | None = None
        self._max_chars = max_chars
        self._env: ToolEnv | None = None

    def joined(self, env: ToolEnv) -> None:
        """Remember whose episode a submission ends."""
        self._env = env

    @tool(inline=True)
    def submit(self, answer: str) -> str:
        """Hand in the final answer. This ends the task.

        Args:
            answer: the complete final answer.
        """
        if self._env is None:
            raise UsageError("Submit belongs to no environment; give it one with attached(Submit) or attach(Submit())")
        if len(answer) > self._max_chars:
            raise ToolError(f"the answer has {len(answer):,} characters; at most {self._max_chars:,} are allowed")
        self.answer = answer
        self._env.finish()
        return "Submitted."
