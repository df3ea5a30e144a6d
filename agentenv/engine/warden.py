"""Runs one command and sees to it that nothing of it outlives the process that asked for it.

    python -I -S warden.py --owner PID --grace SECONDS -- COMMAND ARGUMENT...

A program of its own, standard library only, so that it starts in milliseconds. It watches its standard input and the
process PID. When the first is closed or says anything, when PID ends (also by SIGKILL), or when a signal asks, the
warden ends the command and every descendant: SIGTERM, then, after the grace, SIGKILL. It is their reaper (Linux:
PR_SET_CHILD_SUBREAPER), so that descendants which called setsid or lost their parent are still found.

The warden is two processes, one below the other, and both do the same: whichever of them is killed, the other one ends
what is left. Should both be killed at once, the kernel at least kills the command (PR_SET_PDEATHSIG).

It ends with the command's exit code, with 128 + n where signal n killed it, or with 127 where it could not be started.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence

_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36
_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL_S = 0.02
NOT_STARTED = 127
"""Exit code of a warden whose command could not be started."""


def guarded(command: Sequence[str], *, grace_s: float) -> list[str]:
    """Return the command that runs a command under a warden of this process.

    Its standard input must be a pipe that this process keeps: closing it ends everything.
    """
    warden = [sys.executable, "-I", "-S", __file__, "--owner", str(os.getpid()), "--grace", str(grace_s), "--"]
    return [*warden, *command]


def main(arguments: Sequence[str]) -> int:
    """Run the command to its end, or to ours; returns the exit code."""
    owner, grace_s, command = _parse(arguments)
    _prctl(_SET_CHILD_SUBREAPER, 1)
    outer = os.getpid()
    reading, writing = os.pipe2(os.O_CLOEXEC)  # the outer process holds the end to write, so that its death is seen
    inner = os.fork()
    if inner == 0:
        os.close(writing)
        os.setsid()
        _prctl(_SET_CHILD_SUBREAPER, 1)
        os._exit(_guard(_start(command), owner=outer, asking_fd=reading, grace_s=grace_s))
    os.close(reading)
    # the inner process needs its grace first
    return _guard(inner, owner=owner, asking_fd=sys.stdin.fileno(), grace_s=grace_s + 1.0)


def _guard(child: int, *, owner: int, asking_fd: int, grace_s: float) -> int:
    """Wait until the child ends, or make it end because the owner is gone or asks for it; nobody below is left."""
    wake_fd = _wake_by_signals()
    watched = select.poll()
    for descriptor in (asking_fd, wake_fd, *_process_descriptor(owner)):
        watched.register(descriptor, select.POLLIN)
    code = _reaped(child)
    while code is None and not _is_over(watched, wake_fd):
        code = _reaped(child)
    ended = _end_all(child, grace_s=grace_s)
    return ended if code is None else code


def _parse(arguments: Sequence[str]) -> tuple[int, float, list[str]]:
    if len(arguments) < 6 or arguments[0] != "--owner" or arguments[2] != "--grace" or arguments[4] != "--":
        sys.exit("usage: warden.py --owner PID --grace SECONDS -- COMMAND ARGUMENT...")
    return int(arguments[1]), float(arguments[3]), list(arguments[5:])


def _prctl(option: int, value: int) -> None:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _wake_by_signals() -> int:
    """Let signals arrive as bytes in a pipe, so that none is lost between two looks; returns the end to read."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_ASKING):
        signal.signal(number, lambda *_: None)
    return reading


def _process_descriptor(owner: int) -> tuple[int, ...]:
    """Return a descriptor that turns readable when the owner ends; none on kernels that have no such thing."""
    try:
        return (os.pidfd_open(owner),)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGTERM)  # it is gone already
    except OSError:
        pass
    return ()


def _start(command: list[str]) -> int:
    """Fork and execute the command in a session of its own; returns its process id."""
    warden = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != warden:
            os._exit(NOT_STARTED)  # the warden died before the kernel knew what to do then
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *_ASKING, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.execvp(command[0], command)
    except BaseException as error:
        os.write(2, f"cannot start {command[0]}: {error}\n".encode())
    finally:
        os._exit(NOT_STARTED)


def _is_over(watched: select.poll, wake_fd: int) -> bool:
    """Wait for something to happen; True where the owner is gone or somebody asked for the end."""
    for descriptor, _ in watched.poll():
        if descriptor != wake_fd:
            return True
        with contextlib.suppress(BlockingIOError):
            if any(number in _ASKING for number in os.read(wake_fd, 512)):
                return True
    return False


def _reaped(child: int) -> int | None:
    """Reap whatever has ended; returns the exit code of the command if it is among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == child:
                number = os.waitstatus_to_exitcode(status)
                code = number if number >= 0 else 128 - number
    return code


def _end_all(child: int, *, grace_s: float) -> int:
    """End all descendants. None is left once this process has no child, because orphans become its children."""
    for pid in descendants(os.getpid()):
        _kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    code = 128 + signal.SIGKILL
    while True:
        reaped = _reaped(child)
        code = code if reaped is None else reaped
        if not _has_children():
            return code
        if time.monotonic() >= deadline:
            for pid in descendants(os.getpid()):
                _kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def descendants(pid: int) -> list[int]:
    """Return the processes below a process, by the table of parents that /proc gives."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    level = [pid]
    while level:
        level = [child for parent in level for child in children.get(parent, ())]
        found += level
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # the name in parentheses may hold anything, parentheses too; state and parent follow the last one
                yield int(name), int(file.read().rpartition(b")")[2].split()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
