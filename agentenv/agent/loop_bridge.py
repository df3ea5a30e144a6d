"""A way onto an episode's event loop for code that runs elsewhere: in worker threads, or on a loop of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from agentenv.errors import DeadlineExceeded, EpisodeEnded, UsageError

T = TypeVar("T")


class LoopBridge:
    """Runs coroutines on the event loop on which it was made.

    Args:
        timeout_s: deadline of everything that a thread waits for.
    """

    def __init__(self, *, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._awaited: set[concurrent.futures.Future[Any]] = set()
        self._is_released = False

    def from_thread(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function on the loop and wait for it in a worker thread.

        Raises:
            UsageError: called on the loop itself, which would wait for itself.
            EpisodeEnded: the episode ended while waiting.
            DeadlineExceeded: nothing came in time.
        """
        if _running_loop() is self._loop:
            raise UsageError(
                "a synchronous call (invoke, stream) came from an async node and would block every episode; "
                "await ainvoke or astream there, or make the node a plain function, which runs in a thread"
            )
        future = self._submit(work)
        try:
            return future.result(self._timeout_s)
        except concurrent.futures.CancelledError:
            raise EpisodeEnded("the episode ended while a thread of the graph waited") from None
        except TimeoutError:
            if future.done():
                raise
            future.cancel()
            raise DeadlineExceeded("env", "graph", f"no answer within {self._timeout_s:g} s") from None
        finally:
            self._awaited.discard(future)

    async def from_any_loop(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function on the loop, also when awaited on another one."""
        if _running_loop() is self._loop:
            return await work()
        future = self._submit(work)
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._awaited.discard(future)

    def release(self) -> None:
        """Let everybody go who waits, now and later."""
        self._is_released = True
        for future in tuple(self._awaited):
            future.cancel()

    # Private.

    def _submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        coroutine = work()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise EpisodeEnded("the event loop of the episode is closed") from None
        self._awaited.add(future)
        if self._is_released:
            future.cancel()
        return future


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
