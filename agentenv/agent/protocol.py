"""What an agent is: something that plays an episode to its end."""

from __future__ import annotations

from typing import Protocol

from agentenv.episode import Episode


class Agent(Protocol):
    """Plays one episode. An agent holds no state of an episode: many play through one agent at the same time."""

    async def play(self, episode: Episode) -> None:
        """Drive the episode until `episode.stop_reason` is set.

        Raises:
            EpisodeError: a side failed; the runner turns it into a trajectory with a status.
        """
        ...
