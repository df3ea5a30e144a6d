"""One engine of a pool: where it stands, what runs in it, and what happened to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Literal

from agentenv.engine.concurrency import ConcurrencyConfig, ConcurrencyLimit
from agentenv.engine.protocol import Completion, Engine, EngineHealth, SamplingParams
from agentenv.engine.restart_budget import RestartBudget
from agentenv.errors import EngineError
from agentenv.messages import Image

ReplicaState = Literal["live", "replacing", "failed"]
_STORY_LINES = 5


class ReplicaLost(EngineError):
    """The replica was lost while a request was in it; the request itself is not to blame."""


class _Flight:
    """A request in a replica, which the pool may call back."""

    __slots__ = ("is_recalled", "task")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = task
        self.is_recalled = False


class Replica:
    """One engine of a pool.

    Args:
        index: within the pool.
        name: for people.
        engine: the engine.
        concurrency: how its bound moves.
        budget: how often another engine may take its place.

    Attributes:
        engine: the engine; another one after a replacement.
        state: `"live"`, `"replacing"` while a new engine is made, or `"failed"` for good.
        limit: the bound on its tokens in flight.
        health: what it last said of itself.
        num_failed_probes: looks in a row that it did not answer.
        num_restarts: how often another engine took its place.
        probe: the look that is under way.
    """

    def __init__(
        self, index: int, *, name: str, engine: Engine, concurrency: ConcurrencyConfig, budget: RestartBudget
    ) -> None:
        self.index = index
        self.name = name
        self.engine = engine
        self.state: ReplicaState = "live"
        self.limit = ConcurrencyLimit(concurrency)
        self.health: EngineHealth | None = None
        self.num_failed_probes = 0
        self.num_restarts = 0
        self.budget = budget
        self.probe: asyncio.Task[None] | None = None
        self._story: deque[str] = deque(maxlen=_STORY_LINES)
        self._flights: set[_Flight] = set()

    @property
    def story(self) -> str:
        """What happened to it, the newest last."""
        return f"{self.name}: " + ("; ".join(self._story) or "nothing happened")

    def note(self, event: str) -> None:
        """Add to the story."""
        self._story.append(event)

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image],
    ) -> Completion:
        """Ask the engine.

        Raises:
            ReplicaLost: the pool gave the replica up while the request was in it.
        """
        task = asyncio.current_task()
        assert task is not None
        flight = _Flight(task)
        self._flights.add(flight)
        num_cancellations = task.cancelling()
        try:
            return await self.engine.generate(
                prompt_ids, sampling, session_id=session_id, deadline_s=deadline_s, images=images
            )
        except asyncio.CancelledError:
            # as asyncio.timeout does: take our own request back, and let that of anybody else go on
            if flight.is_recalled and task.uncancel() <= num_cancellations:
                raise ReplicaLost(self.story) from None
            raise
        finally:
            self._flights.discard(flight)

    def recall(self) -> int:
        """Call back every request that is in the engine; returns how many."""
        flights = list(self._flights)
        for flight in flights:
            if not flight.is_recalled:
                flight.is_recalled = True
                flight.task.cancel()
        return len(flights)
