"""A bounded number of permits for callers on any event loop, first come first served, with a deadline."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentenv.errors import SandboxError

_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Permits:
    """Hands out permits.

    Args:
        count: how many there are.
        wait_s: how long a caller waits for one.
        what: what they are for, as errors name it.
    """

    def __init__(self, count: int, *, wait_s: float, what: str) -> None:
        self._free = count
        self._count = count
        self._wait_s = wait_s
        self._what = what
        self._lock = threading.Lock()
        self._waiting: deque[_Waiter] = deque()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold a permit; raises SandboxError when none came free in time."""
        await self.take()
        try:
            yield
        finally:
            self.give_back()

    async def take(self) -> None:
        """Take a permit, which must be given back; raises SandboxError when none came free in time."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, future))
        try:
            async with asyncio.timeout(self._wait_s):
                await future
        except TimeoutError:
            self._give_up(loop, future)
            detail = f"none of {self._count} {self._what} came free within {self._wait_s:g} s"
            raise SandboxError("the sandbox queue", detail) from None
        except BaseException:
            self._give_up(loop, future)
            raise

    def give_back(self) -> None:
        """Give a permit back; whoever waits longest gets it."""
        with self._lock:
            while self._waiting:
                loop, future = self._waiting.popleft()
                try:
                    loop.call_soon_threadsafe(self._grant, future)
                except RuntimeError:  # that loop was closed with its waiter
                    continue
                return
            self._free += 1

    def _grant(self, future: asyncio.Future[None]) -> None:
        if future.done():  # it gave up while the permit was on its way
            self.give_back()
        else:
            future.set_result(None)

    def _give_up(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        with self._lock:
            if (loop, future) in self._waiting:
                self._waiting.remove((loop, future))
        if future.done() and not future.cancelled():
            self.give_back()
        else:
            future.cancel()
