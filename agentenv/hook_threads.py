"""Threads that run author code: daemons, so that one which hangs keeps neither its place nor the process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class HookThreads:
    """A pool of at most `max_workers` threads that work, besides those that hang.

    The standard library's pool joins its threads when the program ends, so a call that never returns would keep the
    program from ending.

    Args:
        max_workers: threads that may work at once.
    """

    def __init__(self, max_workers: int) -> None:
        self.max_workers = max_workers
        self._calls: queue.SimpleQueue[tuple[Future[object], Callable[[], object]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = threading.Semaphore(0)
        self._num_threads = 0
        self._hung: set[Future[object]] = set()

    @property
    def num_hung(self) -> int:
        """Calls that were given up and have not come back."""
        return len(self._hung)

    def submit(self, call: Callable[[], object]) -> Future[object]:
        """Run a call in a thread as soon as one is free."""
        future: Future[object] = Future()
        self._calls.put((future, call))
        if not self._idle.acquire(blocking=False):
            self._grow()
        return future

    def give_up(self, future: Future[object]) -> None:
        """Stop waiting for a call: if it has not begun it never will; if it hangs, a new thread takes its place."""
        if future.cancel() or future.done():
            return
        self._hung.add(future)
        future.add_done_callback(self._hung.discard)
        self._grow()

    def _grow(self) -> None:
        with self._lock:
            if self._num_threads >= self.max_workers + len(self._hung):
                return
            self._num_threads += 1
            name = f"agentenv-hook-{self._num_threads}"
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                future, call = self._calls.get_nowait()
            except queue.Empty:
                self._idle.release()
                future, call = self._calls.get()
            if future.set_running_or_notify_cancel():
                _settle(future, call)
            del future, call  # what a call holds must not live until the next one comes


def _settle(future: Future[object], call: Callable[[], object]) -> None:
    try:
        value = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(value)
