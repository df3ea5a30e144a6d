"""Runs one program: Python code in this forked interpreter, or a command by `exec`."""

from __future__ import annotations

import atexit
import contextlib
import io
import linecache
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, TextIO

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


def run_python(code: str) -> NoReturn:
    """Run code as `__main__` and end this process as Python would have ended."""
    status = 1
    try:
        status = _run(code)
        status = max(status, _finish())
    finally:
        os._exit(status)


def run_command(argv: Sequence[str]) -> NoReturn:
    """Replace this process by a program."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    status = _NOT_EXECUTABLE
    try:
        os.execvp(argv[0], list(argv))
    except FileNotFoundError:
        status = _NOT_FOUND
        os.write(2, f"{argv[0]}: no such program\n".encode("utf-8", "backslashreplace"))
    except (OSError, ValueError) as error:
        os.write(2, f"{argv[0]}: cannot be started: {error}\n".encode("utf-8", "backslashreplace"))
    os._exit(status)


@dataclass(frozen=True)
class Streams:
    """Standard streams that every fork of the zygote finds ready: making them touches memory that forks share."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    merged: TextIO

    def use(self, *, is_merged: bool) -> None:
        """Make them this process's own; with `is_merged`, output and errors are one stream, in order."""
        sys.stdin = sys.__stdin__ = self.stdin
        sys.stdout = sys.__stdout__ = self.merged if is_merged else self.stdout
        sys.stderr = sys.__stderr__ = self.merged if is_merged else self.stderr


def make_streams() -> Streams:
    """Make streams over the descriptors 0 to 2, which must be pipes meanwhile: a stream remembers what cannot seek."""
    kept = [os.dup(fd) for fd in range(3)]
    reading, writing = os.pipe()
    try:
        for fd, source in enumerate((reading, writing, writing)):
            os.dup2(source, fd)
        stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8", errors="replace")
        return Streams(stdin, _writer(1, False), _writer(2, True), _writer(1, True))
    finally:
        for fd, source in enumerate(kept):
            os.dup2(source, fd)
        for fd in (*kept, reading, writing):
            os.close(fd)


def fresh_main(name: str, code: str) -> dict[str, object]:
    """Return the globals of a new `__main__`."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = [name]
    remember_source(name, code)
    return main.__dict__


def remember_source(name: str, code: str) -> None:
    """Let tracebacks show lines of code that is in no file."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)


def format_error(error: BaseException) -> str:
    """Return a traceback without frames of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__package__") == __package__:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def _run(code: str) -> int:
    names = fresh_main("main.py", code)
    try:
        exec(compile(code, "main.py", "exec"), names)
    except SystemExit as ending:
        return _exit_status(ending.code)
    except BaseException as error:
        _complain(error)
        return 1
    return 0


def _complain(error: BaseException) -> None:
    try:
        sys.stderr.write(format_error(error))
    except BaseException:  # an exception whose own text raises, or a stream that the code broke
        with contextlib.suppress(BaseException):
            os.write(2, f"{type(error).__name__}: <no traceback: it could not be written>\n".encode())


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    with contextlib.suppress(BaseException):
        sys.stderr.write(f"{code}\n")
    return 1


def _finish() -> int:
    """Do what Python does at its end: wait for threads, run what was registered, flush."""
    status = 0
    steps = (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush)  # type: ignore[attr-defined]
    for step in steps:
        try:
            step()
        except BaseException:
            status = 1
    return status


def _writer(fd: int, line_buffering: bool) -> io.TextIOWrapper:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=line_buffering
    )
