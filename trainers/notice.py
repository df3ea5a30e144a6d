"""Leaving on notice: a spot instance that is taken back, or a scheduler's time limit, tells by a signal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

NOTICES = (signal.SIGTERM, signal.SIGUSR1)


class NoticeGiven(BaseException):
    """The work ended early because the process was told to leave; not an error, so no `Exception`.

    Attributes:
        signal: by which it was told.
    """

    def __init__(self, which: signal.Signals) -> None:
        super().__init__(f"told to leave by {which.name}")
        self.signal = which

    @property
    def exit_code(self) -> int:
        """128 + signal number, as shells report a process that a signal ended."""
        return 128 + self.signal.value


async def until_notice(work: Coroutine[Any, Any, T]) -> T:
    """Await work; `SIGTERM` or `SIGUSR1` cancels it once, so that it may save and end. Main thread only.

    Raises:
        NoticeGiven: the signal came, and the work has ended.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    given: list[signal.Signals] = []

    def hear(which: signal.Signals) -> None:
        if not given:  # schedulers say it twice, and the second must not cut the saving
            task.cancel()
        given.append(which)

    for which in NOTICES:
        loop.add_signal_handler(which, hear, which)
    try:
        return await task
    except asyncio.CancelledError:
        if given:
            raise NoticeGiven(given[0]) from None
        raise
    finally:
        for which in NOTICES:
            loop.remove_signal_handler(which)
