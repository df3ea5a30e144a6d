"""Ends, and measures, every process below an init of ours."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

_PAGE = os.sysconf("SC_PAGE_SIZE")
_GIVE_UP_S = 5.0


def reap() -> dict[int, int]:
    """Collect every child that has ended; returns wait statuses by process id."""
    ended = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def kill_everyone(*, has_namespaces: bool) -> dict[int, int]:
    """Kill all that runs below this process, and wait for it; returns wait statuses of its children."""
    if has_namespaces:
        # as process 1 of a table of our own; atomic in the kernel, so no fork slips through
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        return _wait_for_all()
    ended: dict[int, int] = {}
    deadline = time.monotonic() + _GIVE_UP_S
    while (found := descendants()) and time.monotonic() < deadline:
        # stopped first: what is stopped forks no more while the rest is being found
        for kind in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found if kind == signal.SIGSTOP else descendants():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, kind)
        ended |= reap()
        time.sleep(0.001)
    return ended | reap()


def descendants() -> list[int]:
    """Return the process ids of all that this process started and inherited."""
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        children = _children(waiting.pop())
        found += children
        waiting += children
    return found


def memory_used(*, has_namespaces: bool, limit: int, folders: Iterable[str]) -> int:
    """Return bytes held by all processes below this one and by files in memory.

    Pages that forks share count once: the sum of resident sizes, which is cheap, is believed while it is below `limit`;
    only then the shares are asked for.
    """
    me = os.getpid()
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()] if has_namespaces else descendants()
    pids = [pid for pid in pids if pid != me]
    files = sum(_files_bytes(folder) for folder in folders)
    rough = files + sum(_resident_bytes(pid) for pid in pids)
    if rough <= limit:
        return rough
    return files + sum(_proportional_bytes(pid) for pid in pids)


def _wait_for_all() -> dict[int, int]:
    ended = {}
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return ended
        ended[pid] = status


def _children(pid: int) -> list[int]:
    children = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                children += [int(child) for child in _read(f"/proc/{pid}/task/{task}/children").split()]
    return children


def _resident_bytes(pid: int) -> int:
    try:
        return int(_read(f"/proc/{pid}/statm").split()[1]) * _PAGE
    except (OSError, IndexError):  # it ended meanwhile
        return 0


def _proportional_bytes(pid: int) -> int:
    """Count shared pages by their share; where the process hides its map, count all of them."""
    try:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except ProcessLookupError:
        return 0
    except OSError:
        pass
    return _resident_bytes(pid)


def _files_bytes(folder: str) -> int:
    size = os.statvfs(folder)
    return (size.f_blocks - size.f_bfree) * size.f_frsize


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16).decode("ascii", "replace")
    finally:
        os.close(fd)
