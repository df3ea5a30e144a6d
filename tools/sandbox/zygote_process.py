"""The host's side of one zygote: starts it, hands it sockets, ends it."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentenv.errors import SandboxError
from agentenv.tools.sandbox.inside import frames

_MODULES = (
    "argparse", "array", "base64", "bisect", "collections", "contextlib", "copy", "csv", "dataclasses", "datetime",
    "decimal", "enum", "fractions", "functools", "glob", "hashlib", "heapq", "io", "itertools", "json", "math",
    "operator", "pathlib", "pickle", "random", "re", "shutil", "statistics", "string", "struct", "subprocess",
    "tempfile", "textwrap", "threading", "time", "traceback", "typing", "unittest", "uuid",
)  # fmt: skip
"""Imported before the first code runs, so that no program pays for them."""

_BOOT = "import sys; sys.path.insert(0, {folder!r}); from {package}.zygote import start; start()"
_TERMINATE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteSettings:
    """How a zygote confines the code that it forks; see `inside/confine.py`.

    Attributes:
        has_namespaces: it runs in namespaces of its own, as process 1.
        filter: seccomp program.
        readable: folders for Landlock; empty without it.
        path: searched for modules, before the standard library.
        env: environment of all code.
        modules: imported after it is ready, when nobody waits.
    """

    has_namespaces: bool
    filter: bytes
    readable: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ()

    def as_frame(self) -> frames.Frame:
        """Return what the zygote reads first."""
        return {
            "has_namespaces": self.has_namespaces,
            "filter": base64.b64encode(self.filter).decode("ascii"),
            "readable": self.readable,
            "path": self.path,
            "env": dict(self.env),
            "modules": (*_MODULES, *self.modules),
        }


def boot_program(*, folder: str, package: str) -> str:
    """Return the Python program of a zygote whose code lies in `folder`/`package`."""
    return _BOOT.format(folder=folder, package=package)


class ZygoteProcess:
    """A running zygote. All methods may be called from any thread.

    Args:
        settings: how it confines code.
        start: starts the process, given the descriptor of its end of the control socket, which stays open in it.
        where: name for errors.
    """

    def __init__(
        self, settings: ZygoteSettings, start: Callable[[int], subprocess.Popen[bytes]], *, where: str
    ) -> None:
        self._where = where
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                self.process = start(theirs.fileno())
            ours.sendall(frames.encode(settings.as_frame()))
        except BaseException:
            ours.close()
            raise
        self._control = ours
        self._buffer = frames.FrameBuffer()
        self._frames: list[frames.Frame] = []
        self.missing: tuple[str, ...] = ()

    def wait_ready(self, *, timeout_s: float) -> None:
        """Wait until code can be forked; raises SandboxError with what the process said when it cannot."""
        self._next_frame(time.monotonic() + timeout_s)

    def wait_loaded(self, *, timeout_s: float) -> None:
        """Wait until every module is imported; fills `missing`."""
        self.missing = tuple(self._next_frame(time.monotonic() + timeout_s)["missing"])

    async def hand_over(self, peer: int) -> None:
        """Let a new init serve this socket; the caller closes its copy.

        Raises:
            SandboxError: the zygote is gone.
        """
        with self._lock:
            try:
                frames.send_with_fds(self._control, frames.encode({"op": "fork"}), (peer,))
            except OSError as error:
                raise SandboxError(self._where, f"the zygote is gone: {error}") from None

    @property
    def is_alive(self) -> bool:
        """False once its process has ended."""
        return self.process.poll() is None

    def close(self) -> None:
        """End it, and with it every process that it forked; idempotent."""
        with self._lock:
            self._control.close()
        stderr = self.process.stderr
        try:
            self.process.wait(timeout=_TERMINATE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        if stderr is not None:
            stderr.close()

    def _next_frame(self, deadline: float) -> frames.Frame:
        while not self._frames:
            # never 0, which would mean not to wait at all
            self._control.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._control.recv(1 << 16)
                self._frames += self._buffer.feed(data)
            except TimeoutError:
                raise SandboxError(self._where, "the zygote did not start in time") from None
            except (OSError, frames.FrameError) as error:
                raise SandboxError(self._where, f"the zygote failed: {error}: {self._last_words()}") from None
            if not data:
                raise SandboxError(self._where, f"the zygote did not start: {self._last_words()}")
        return self._frames.pop(0)

    def _last_words(self) -> str:
        stderr = self.process.stderr
        if stderr is None:
            return "it said nothing"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1.0)
        os.set_blocking(stderr.fileno(), False)
        words = (stderr.read() or b"").decode("utf-8", "replace").strip()
        return words[-2000:] or f"it said nothing; exit code {self.process.poll()}"


def start_process(argv: Sequence[str], fd: int) -> subprocess.Popen[bytes]:
    """Start a program with an empty environment that keeps one descriptor open."""
    return subprocess.Popen(
        list(argv),
        env={},
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
    )
