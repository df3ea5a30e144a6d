"""Looks at the processes of this machine, for tests that start and kill some."""

import time
from collections.abc import Callable
from pathlib import Path


def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def is_alive(pid: int) -> bool:
    """A zombie is dead; its parent just has not looked."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def processes(*words: str) -> list[int]:
    """Return those whose command line holds all the words; wardens, which carry them too, are left out."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    lines = {pid: command_line(pid) for pid in pids}
    return [pid for pid, line in lines.items() if all(word in line for word in words) and "warden.py" not in line]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
