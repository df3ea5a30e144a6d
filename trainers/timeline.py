"""When each phase of a run began and ended, as a Chrome trace that Perfetto and chrome://tracing open.

The format is that of the Trace Event Format's complete events (`X`, one track per thread) and nestable asynchronous
events (`b` and `e`, for what overlaps).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from agentenv.errors import describe

_log = logging.getLogger(__name__)

MAX_EVENTS = 500_000
"""Events of one process, about 60 MB; later ones are left out, and the last one says so."""

LOOP, WORKER, ROLLOUTS, WEIGHTS = "loop", "worker", "rollouts", "weights"
_TRACKS = {LOOP: 1, WORKER: 2, WEIGHTS: 3, ROLLOUTS: 4}
_END = "\n]\n"
_FLUSH_EVENTS = 512


class Timeline:
    """Collects events and appends them to a file, which is whole JSON after every flush.

    Where the file cannot be written, that is said once, and the run goes on without it.

    Args:
        path: of the file; events of an earlier process of the same run stay.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zero_us = (time.time() - time.perf_counter()) * 1e6
        self._pid = os.getpid()
        self._pending: list[dict[str, object]] = []
        self._num_events = 0
        self._numbers = itertools.count()
        self._named: set[str] = set()
        self._is_broken = False
        self._lock = threading.RLock()  # an update in its own thread records too

    def add(self, name: str, *, track: str, start: float, end: float) -> None:
        """Record a phase.

        Args:
            name: of the phase.
            track: on which it is drawn; phases of one track follow or enclose each other.
            start: `time.perf_counter()` at its start.
            end: the same at its end.
        """
        self._put(name, track=track, at=start, event={"ph": "X", "dur": round((end - start) * 1e6, 1)})

    def begin(self, name: str, *, track: str) -> Callable[[object], None]:
        """Begin something that may overlap with others of its track; returns what ends it."""
        label = {"cat": track, "id": f"{self._pid}.{next(self._numbers)}"}
        self._put(name, track=track, at=time.perf_counter(), event={"ph": "b", **label})

        def end(_: object = None) -> None:
            self._put(name, track=track, at=time.perf_counter(), event={"ph": "e", **label})

        return end

    def close(self) -> None:
        """Write what is left."""
        self._flush()

    def _put(self, name: str, *, track: str, at: float, event: dict[str, object]) -> None:
        with self._lock:
            self._put_alone(name, track=track, at=at, event=event)

    def _put_alone(self, name: str, *, track: str, at: float, event: dict[str, object]) -> None:
        if self._num_events >= MAX_EVENTS:
            return
        self._num_events += 1
        if self._num_events == MAX_EVENTS:
            name = "the timeline is full"
        place = {"pid": self._pid, "tid": _TRACKS.get(track, len(_TRACKS) + 1)}
        if track not in self._named:
            self._named.add(track)
            self._pending.append({"name": "thread_name", "ph": "M", **place, "args": {"name": track}})
        self._pending.append({"name": name, "ts": round(self._zero_us + at * 1e6, 1), **place, **event})
        if len(self._pending) >= _FLUSH_EVENTS:
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            self._write()

    def _write(self) -> None:
        pending, self._pending = self._pending, []
        if not pending or self._is_broken:
            return
        text = ",\n".join(json.dumps(event) for event in pending)
        try:
            if not self._path.exists() or self._path.stat().st_size < len(_END):
                self._path.write_text(f"[\n{text}{_END}")
                return
            with self._path.open("r+b") as file:
                file.seek(-len(_END), os.SEEK_END)
                file.write(f",\n{text}{_END}".encode())
        except OSError as error:
            self._is_broken = True
            _log.warning("the timeline %s is left out from here on: %s", self._path, describe(error))


_current: ContextVar[Timeline | None] = ContextVar("agentenv_timeline", default=None)


@contextlib.contextmanager
def recording(path: Path) -> Iterator[Timeline]:
    """Record what happens in this block, also in the tasks that it starts, into a file."""
    timeline = Timeline(path)
    token = _current.set(timeline)
    try:
        yield timeline
    finally:
        _current.reset(token)
        timeline.close()


@contextlib.contextmanager
def span(name: str, *, track: str) -> Iterator[None]:
    """Record how long this block takes; costs next to nothing where nothing is recorded."""
    timeline = _current.get()
    if timeline is None:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        timeline.add(name, track=track, start=start, end=time.perf_counter())


def note(name: str, *, track: str, start: float, end: float) -> None:
    """Record a phase that has ended; see `Timeline.add`."""
    timeline = _current.get()
    if timeline is not None:
        timeline.add(name, track=track, start=start, end=end)


def begun(name: str, *, track: str) -> Callable[[object], None]:
    """Record the start of something that overlaps with others; what is returned records its end."""
    timeline = _current.get()
    return (lambda _: None) if timeline is None else timeline.begin(name, track=track)
