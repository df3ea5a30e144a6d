"""Waiting for a place on a replica: `Routing` decides, this file wakes those who wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from agentenv.engine.routing import Placement, Routing
from agentenv.errors import DeadlineExceeded, EngineError


class Places:
    """The places on the replicas of a pool, and the requests that wait for one.

    Args:
        routing: who goes where.
    """

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self._waiting: dict[int, asyncio.Future[int]] = {}

    async def take(self, session_id: str, *, tokens: int, deadline_s: float) -> int:
        """Wait for a place; returns the replica's index. Give it back with `release`.

        Raises:
            DeadlineExceeded: none was free in time.
            EngineError: what `fail_waiting` was given.
        """
        ticket, replica = self.routing.submit(session_id, tokens=tokens)
        if replica is not None:
            return replica
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = place
        scope = asyncio.timeout(deadline_s)
        try:
            async with scope:
                return await place
        except BaseException as error:
            if self._waiting.pop(ticket, None) is not None:
                self._grant(self.routing.cancel(ticket))
            elif place.done() and not place.cancelled() and place.exception() is None:
                self.release(place.result(), tokens=tokens)  # the place came in the moment of giving up
            if isinstance(error, TimeoutError) and scope.expired():
                others = f"{self.routing.num_waiting} other requests wait"
                raise DeadlineExceeded(
                    "engine", "Pool.generate", f"no room on a replica within {deadline_s:g} s; {others}"
                ) from None
            raise

    def release(self, replica: int, *, tokens: int) -> None:
        """Give a place back."""
        self._grant(self.routing.release(replica, tokens=tokens))

    def forget(self, session_id: str) -> int | None:
        """Forget a session; returns the replica that holds its prefix."""
        home, placements = self.routing.forget(session_id)
        self._grant(placements)
        return home

    def set_limit(self, replica: int, *, limit: float) -> None:
        """Change how many tokens a replica may have in flight."""
        self._grant(self.routing.set_limit(replica, limit=limit))

    def take_out(self, replica: int) -> None:
        """Give a replica nothing any more."""
        self._grant(self.routing.take_out(replica))

    def put_back(self, replica: int) -> None:
        """Let a replica serve again."""
        self._grant(self.routing.put_back(replica))

    def fail_waiting(self, error: EngineError) -> None:
        """Let every request that waits fail."""
        waiting, self._waiting = self._waiting, {}
        for ticket, place in waiting.items():
            self._grant(self.routing.cancel(ticket))
            if not place.done():
                place.set_exception(error)

    def _grant(self, placements: Iterable[Placement]) -> None:
        """Tell those who wait that they have a place."""
        given = deque(placements)
        while given:
            placement = given.popleft()
            place = self._waiting.pop(placement.ticket, None)
            if place is None or place.done():  # whoever waited gave up in this very moment
                given += self.routing.release(placement.replica, tokens=placement.tokens)
            else:
                place.set_result(placement.replica)
