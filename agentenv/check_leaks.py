"""Closing an environment, however its episode ended, leaves no process, no file and no descriptor behind."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from agentenv.check_subject import Skipped, Subject
from agentenv.env import AgentEnv
from agentenv.errors import CheckFailed

NUM_ROUNDS = 3
_SETTLE_S = 5.0
"""How long a process that was told to end may take."""


class Held(NamedTuple):
    """What this process holds.

    Attributes:
        processes: its descendants.
        descriptors: its open ones.
        files: below the folder for temporary files.
    """

    processes: int
    descriptors: int
    files: int


def leaves_nothing(subject: Subject, endings: Mapping[str, Callable[[AgentEnv], object]]) -> str:
    """End episodes in every way, several times over, and compare what is held.

    The first round may fill caches and pools that live as long as the process; later rounds may add nothing.

    Args:
        subject: what is checked.
        endings: by name, how an episode ends before the environment is closed.
    """
    if not Path("/proc/self/fd").is_dir():
        raise Skipped("needs /proc to count processes and descriptors")
    with _own_temporary_folder() as folder:
        for run in endings.values():
            _end(subject, run)
        before = held(folder)
        for name, run in endings.items():
            for _ in range(NUM_ROUNDS):
                _end(subject, run)
            left = _growth(before, folder)
            if left:
                raise CheckFailed(f"{name}, then closed: {', '.join(left)} are left behind")
    return f"no process, descriptor or file after {NUM_ROUNDS * len(endings)} episodes"


def held(folder: Path) -> Held:
    """Count what this process holds now; files are counted below `folder`."""
    files = sum(len(names) + len(folders) for _, folders, names in os.walk(folder))
    # the listing itself opens one descriptor
    return Held(processes=len(descendants()), descriptors=len(os.listdir("/proc/self/fd")) - 1, files=files)


def descendants() -> set[int]:
    """Return the process ids of all children, children's children and so on; zombies count."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", entry, "stat").read_text(encoding="ascii", errors="replace")
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found - {os.getpid()}
        found |= more


def _end(subject: Subject, run: Callable[[AgentEnv], object]) -> None:
    env = subject.make()
    run(env)
    env.close()


def _growth(before: Held, folder: Path) -> list[str]:
    """Return what there is more of than before, once everything had the time to go."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        now = held(folder)
        left = [f"{b - a} {name}" for name, a, b in zip(Held._fields, before, now, strict=True) if b > a]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


@contextlib.contextmanager
def _own_temporary_folder() -> Iterator[Path]:
    """Let temporary files of this process go to a folder that nobody else writes to.

    A pool that was filled meanwhile may go on using it, so it is removed when the process ends.
    """
    usual = tempfile.tempdir
    folder = Path(tempfile.mkdtemp(prefix="agentenv-check-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = usual
        if not any(folder.iterdir()):
            folder.rmdir()
