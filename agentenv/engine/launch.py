"""Starts one engine server, waits until it serves, and ends it; it dies with this process however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from agentenv.engine import warden
from agentenv.engine.cache import cache_folder
from agentenv.engine.ports import answers, free_port, is_taken, listeners
from agentenv.engine.server_config import ServerCommand
from agentenv.engine.start_failure import explained, is_port_taken
from agentenv.errors import AgentEnvError, EngineError, UsageError, describe

_PORT_ATTEMPTS = 5
_POLL_S = 0.1
_ANSWER_S = 5.0
_TAIL_BYTES = 65_536
_EXPLAINED_LINES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """How far the start of a server has come.

    Attributes:
        name: which server.
        url: where it will serve.
        elapsed_s: seconds since it was started.
        timeout_s: seconds until it must serve.
        line: the newest line of its log; "" where there is none.
        is_ready: True once it serves.
    """

    name: str
    url: str
    elapsed_s: float
    timeout_s: float
    line: str = ""
    is_ready: bool = False


Told = Callable[[Startup], None]
"""Is called about once a second while servers start, and once for each that serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to start.

    Attributes:
        name: of the server, for people, e.g. `"vllm 0"`.
        command: makes the command for a port.
        log_path: standard output and standard error go there; it is removed when the server was stopped in good order.
        host: address that the server listens on.
        port: 0 takes a free one.
        timeout_s: seconds until the server must answer.
        grace_s: seconds that it has to end in its own way before it is killed.
        api_key: never shown in errors.
    """

    name: str
    command: Callable[[int], ServerCommand]
    log_path: Path
    host: str = "127.0.0.1"
    port: int = 0
    timeout_s: float = 300.0
    grace_s: float = 10.0
    api_key: str = ""


class ServerProcess:
    """A running server under a warden; make it with `start_server`. `stop` it exactly once, or let it die with us.

    Attributes:
        url: where it serves.
        log_path: its log.
    """

    def __init__(self, launch: Launch, *, port: int) -> None:
        self.launch = launch
        self.port = port
        self.url = f"http://{_reachable(launch.host)}:{port}"
        self.log_path = launch.log_path
        self._command = launch.command(port)
        self._stopping: asyncio.Task[None] | None = None
        self._has_served = False
        self._warden = _under_warden(self._command, launch=launch)
        self._ended: Future[int] = Future()
        # a thread, because a process has to be waited for also while no event loop runs
        threading.Thread(target=self._watch, name=f"watch {launch.name}", daemon=True).start()

    @property
    def is_running(self) -> bool:
        """True until the server has ended."""
        return not self._ended.done()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + n where signal n ended it."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Wait until the server has ended; returns its exit code."""
        return await asyncio.shield(asyncio.wrap_future(self._ended))

    async def stop(self) -> None:
        """End the server and everything that it started; returns when they are gone. Idempotent."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name=f"stop {self.launch.name}")
        await asyncio.shield(self._stopping)

    def log_tail(self, num_lines: int = 20) -> list[str]:
        """Return the last lines of the log, without the API key."""
        return [line for line in _tail(self.log_path, secret=self.launch.api_key) if line.strip()][-num_lines:]

    async def _stop(self) -> None:
        was_running = self.is_running
        self._ask()
        # the warden's two halves have their graces one after the other
        try:
            async with asyncio.timeout(self.launch.grace_s + 5.0):
                await self.wait()
        except TimeoutError:
            self._warden.kill()  # its other half ends what is left
            await self.wait()
        if was_running and self._has_served:
            self.log_path.unlink(missing_ok=True)

    def _ask(self) -> None:
        assert self._warden.stdin is not None
        # a byte, not only the end of the file: a forked child of ours may hold a copy of this pipe
        with contextlib.suppress(BrokenPipeError):
            self._warden.stdin.write(b".")
        self._warden.stdin.close()

    def _watch(self) -> None:
        self._ended.set_result(self._warden.wait())

    async def _wait_until_alive(self, told: Told | None) -> None:
        """Wait for the answer 200 from a process of ours.

        Raises:
            EngineError: the server ended, or did not serve in time.
        """
        launch, started, told_at = self.launch, time.monotonic(), 0.0
        headers = {"Authorization": f"Bearer {launch.api_key}"} if launch.api_key else {}
        url = self.url + self._command.alive_path
        while True:
            if not self.is_running:
                raise self._failure(f"{launch.name} ended with code {self.exit_code}")
            elapsed_s = time.monotonic() - started
            if elapsed_s >= launch.timeout_s:
                raise self._failure(f"{launch.name} did not serve within {launch.timeout_s:g} s")
            is_ready = await answers(url, deadline_s=_ANSWER_S, headers=headers) == 200 and self._is_ours()
            if told is not None and (is_ready or elapsed_s - told_at >= 1.0):
                told_at = elapsed_s
                told(self._startup(elapsed_s, is_ready=is_ready))
            if is_ready:
                self._has_served = True
                return
            await asyncio.sleep(_POLL_S)

    def _failure(self, what: str) -> AgentEnvError:
        return explained(what, log=self.log_tail(_EXPLAINED_LINES), path=self.log_path)

    def _is_ours(self) -> bool:
        """Somebody else may have taken the port; then it is not our server that answers."""
        return self.is_running and bool(listeners(self.port, among=warden.descendants(self._warden.pid)))

    def _startup(self, elapsed_s: float, *, is_ready: bool) -> Startup:
        line = next(iter(self.log_tail(1)), "")
        timeout_s = self.launch.timeout_s
        return Startup(
            name=self.launch.name, url=self.url, elapsed_s=elapsed_s, timeout_s=timeout_s, line=line, is_ready=is_ready
        )


async def start_server(launch: Launch, *, told: Told | None = None) -> ServerProcess:
    """Start a server and wait until it serves; whatever fails, nothing of it is left running.

    Args:
        launch: what to start.
        told: hears of the progress.

    Raises:
        UsageError: the port is taken, the address is not one of this machine, or the server says that a package or
            the model is missing.
        EngineError: it ended early or did not serve in time; with the last lines of its log and, where the cause is a
            known one, what to do.
    """
    if sys.platform != "linux":
        raise UsageError(f"our own servers need Linux, this is {sys.platform}; start one elsewhere and set engine.url")
    for attempt in itertools.count(1):
        process = ServerProcess(launch, port=_port(launch))
        try:
            await process._wait_until_alive(told)
        except BaseException as error:
            was_taken = is_port_taken(process.log_tail(_EXPLAINED_LINES))
            await process.stop()
            if isinstance(error, AgentEnvError) and was_taken and launch.port == 0 and attempt < _PORT_ATTEMPTS:
                continue  # somebody took the port between our look and the server's
            raise
        return process
    raise AssertionError("the loop above returns or raises")


def log_path(name: str) -> Path:
    """Return where the log of a server goes that nobody chose a place for."""
    return (
        cache_folder("logs")
        / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{next(_log_numbers)}-{name.replace(' ', '-')}.log"
    )


_log_numbers = itertools.count()


def _port(launch: Launch) -> int:
    try:
        if launch.port == 0:
            return free_port(launch.host)
        taken = is_taken(launch.host, launch.port)
    except OSError as error:
        raise UsageError(f"cannot listen on {launch.host}:{launch.port} ({describe(error)}); choose another") from error
    if taken:
        raise UsageError(f"port {launch.port} of {launch.host} is taken; choose another one, or 0 for a free one")
    return launch.port


def _reachable(host: str) -> str:
    """Return the address under which we reach a server that listens on `host`."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{name}]" if ":" in name else name


def _under_warden(command: ServerCommand, *, launch: Launch) -> subprocess.Popen[bytes]:
    log_path = launch.log_path
    try:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        # a log may show what was configured, so that only its owner reads it
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"the log {log_path} cannot be written ({describe(error)}); choose another place") from error
    try:
        return subprocess.Popen(
            warden.guarded(command.argv, grace_s=launch.grace_s),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, **command.env},
            start_new_session=True,  # an interrupt at the terminal is ours to handle, in our order
            bufsize=0,
        )
    except OSError as error:
        raise EngineError(f"no process could be started: {describe(error)}") from error
    finally:
        os.close(log)


def _tail(path: Path, *, secret: str) -> Sequence[str]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return (text.replace(secret, "[secret]") if secret else text).splitlines()
