"""One question, one answer: for tasks without tools, and for models that are asked once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from agentenv.agent.chat import ChatAgent
from agentenv.context import Entry
from agentenv.episode import Episode
from agentenv.trajectory import StopReason


class SingleTurnAgent(ChatAgent):
    """Generates once and takes one step; an environment that would go on is truncated with `max_turns`."""

    uses_tools: ClassVar[bool] = False

    async def listen(
        self, episode: Episode, history: Sequence[Entry], *, replies: Sequence[Entry], is_closed: bool
    ) -> list[Entry]:
        """End the episode: nothing more is said."""
        await episode.truncate(StopReason.MAX_TURNS)
        return list(history)
