"""Finds and ends the processes of an attack on the host, by the mark in their command line or name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_GRACE_S = 1.0


def end_leftovers(mark: str) -> int:
    """End every process that carries a mark, and return how many outlived a short grace."""
    deadline = time.monotonic() + _GRACE_S
    found = _marked(mark)
    while found and time.monotonic() < deadline:
        time.sleep(0.02)
        found = _marked(mark)
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(found)


def _marked(mark: str) -> list[int]:
    wanted = mark.encode()
    return [pid for pid in _pids() if pid != os.getpid() and wanted in _names(pid)]


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


def _names(pid: int) -> bytes:
    """Return what a living process is called; nothing for one that is gone or only waits to be reaped."""
    try:
        folder = Path(f"/proc/{pid}")
        if b"\nState:\tZ" in (folder / "status").read_bytes():
            return b""
        return (folder / "cmdline").read_bytes() + b" " + (folder / "comm").read_bytes()
    except OSError:
        return b""
