"""Bounds how much runs at once, in episodes and in tokens."""

from __future__ import annotations

import asyncio
import time
from collections import deque


class Admission:
    """Admits episodes in order while the tokens that they are expected to hold fit a budget.

    An episode is expected to grow to the running mean of finished ones. One episode is always admitted, so that a
    budget smaller than an episode slows the run and does not stop it.

    Args:
        max_episodes: episodes at once.
        max_tokens: tokens that running episodes may hold together; engines' caches are sized in tokens.
        expected_tokens: first guess of an episode's length.

    Attributes:
        num_waits: episodes that had to wait for their place.
        waited_s: seconds that they waited, together.
    """

    def __init__(self, *, max_episodes: int, max_tokens: int, expected_tokens: int = 512) -> None:
        self.max_episodes = max_episodes
        self.max_tokens = max_tokens
        self._expected = float(expected_tokens)
        self._num_running = 0
        self.num_waits = 0
        self.waited_s = 0.0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def num_running(self) -> int:
        """Episodes admitted and not finished."""
        return self._num_running

    @property
    def num_waiting(self) -> int:
        """Episodes that wait for a place."""
        # cancelled ones stay in line until their turn
        return sum(num_places for place, num_places in tuple(self._waiting) if not place.done())

    async def enter(self, num_places: int = 1) -> None:
        """Wait for a place, or for several at once: episodes that wait for each other must not wait for places too."""
        if not self._waiting and self._has_room(num_places):
            self._num_running += num_places
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((place, num_places))
        self.num_waits += 1
        started = time.perf_counter()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._num_running -= num_places  # the place was given just before the cancellation
                self._fill()
            raise
        finally:
            self.waited_s += time.perf_counter() - started

    def leave(self, *, num_tokens: int) -> None:
        """Give one place back.

        Args:
            num_tokens: how many tokens the episode came to hold.
        """
        self._num_running -= 1
        self._expected += 0.05 * (num_tokens - self._expected)
        self._fill()

    def _has_room(self, num_places: int) -> bool:
        if self._num_running == 0:
            return True
        wanted = self._num_running + num_places
        return wanted <= self.max_episodes and wanted * self._expected <= self.max_tokens

    def _fill(self) -> None:
        while self._waiting and self._has_room(self._waiting[0][1]):
            place, num_places = self._waiting.popleft()
            if not place.done():
                self._num_running += num_places
                place.set_result(None)
