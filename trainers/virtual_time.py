"""An event loop whose clock jumps to the next timer: hours of waiting pass in the time that the code itself takes."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time, which begins at 0; `asyncio.sleep` and timeouts of any length return at once.

    The order of events is that of their times, and of scheduling where times are equal, so a run is a function of its
    inputs. Threads and sockets work, but no virtual time passes while they do.
    """
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(work)


class _VirtualLoop(asyncio.SelectorEventLoop):
    """Tells the time of its selector."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return seconds of virtual time."""
        return self._jumping.now_s


class _JumpingSelector(selectors.SelectSelector):
    """Never waits for a timer: it moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; without a timer, wait for it in real time."""
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout:
            self.now_s += timeout
        return ready
