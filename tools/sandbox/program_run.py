"""Runs one program through an init: feeds it, drains it, ends it at its deadline, tells how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agentenv.errors import SandboxError, ToolError
from agentenv.tools.sandbox.inside import frames
from agentenv.tools.sandbox.output import BoundedOutput
from agentenv.tools.sandbox.sandbox import Completed, Ending

STOP_S = 10.0
"""An init that was told to end everything has this long to say that it did."""

_READ_BYTES = 1 << 16
_CPU_SIGNALS = (signal.SIGXCPU,)


@dataclass(frozen=True, slots=True)
class How:
    """How a process ended, told by its wait status."""

    ending: Ending
    exit_code: int | None = None
    signal: int | None = None


def how_ended(status: int, *, is_over_memory: bool, is_timed_out: bool) -> How:
    """Read a wait status."""
    if is_over_memory:
        return How("memory")
    if is_timed_out:
        return How("timeout")
    if os.WIFEXITED(status):
        return How("exited", exit_code=os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    return How("timeout") if number in _CPU_SIGNALS else How("signal", signal=number)


async def run_program(
    request: frames.Frame,
    *,
    hand_over: Callable[[int], Awaitable[object]],
    stdin: str,
    timeout_s: float,
    output_bytes: int,
    where: str,
) -> Completed:
    """Let an init run a program and wait for the end of all its processes.

    Args:
        request: what the init is asked for; see `inside/init.py`.
        hand_over: gives the init's end of a socket to whoever forks it.
        stdin: what the program reads.
        timeout_s: seconds until it is ended.
        output_bytes: kept of each stream.
        where: name for errors.

    Raises:
        ToolError: the program is too long.
        SandboxError: the sandbox broke.
    """
    run = _Run(asyncio.get_running_loop(), output_bytes=output_bytes, where=where)
    started = time.monotonic()
    try:
        await run.start(request, hand_over, stdin.encode("utf-8", "surrogatepass"))
        ended = await run.wait(timeout_s)
    finally:
        run.close()
    if "failed" in ended:
        raise SandboxError(where, str(ended["failed"]))
    how = how_ended(int(ended["status"]), is_over_memory=bool(ended["memory"]), is_timed_out=bool(ended["stopped"]))
    return Completed(
        ending=how.ending,
        exit_code=how.exit_code,
        signal=how.signal,
        stdout=run.stdout.text(),
        stderr=run.stderr.text(),
        wall_s=time.monotonic() - started,
    )


class _Run:
    """The descriptors of one run; `close` ends the run wherever it stands."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, output_bytes: int, where: str) -> None:
        self._loop = loop
        self._where = where
        self.stdout, self.stderr = BoundedOutput(output_bytes), BoundedOutput(output_bytes)
        self._outputs: dict[int, BoundedOutput] = {}
        self._stdin = -1
        self._unread = memoryview(b"")
        self._ended: asyncio.Future[frames.Frame] = loop.create_future()
        self._buffer = frames.FrameBuffer()
        self._socket, self._theirs = socket.socketpair()
        self._socket.setblocking(False)

    async def start(self, request: frames.Frame, hand_over: Callable[[int], Awaitable[object]], stdin: bytes) -> None:
        try:
            data = frames.encode(request)
        except frames.FrameError:
            raise ToolError(f"the program is too long; at most {frames.MAX_FRAME_BYTES:,} bytes are allowed") from None
        with self._theirs:
            await hand_over(self._theirs.fileno())
        given = self._open_streams(stdin)
        try:
            sent = frames.send_with_fds(self._socket, data, given)
        except OSError as error:
            raise SandboxError(self._where, f"the sandbox is gone: {error}") from None
        finally:
            frames.close_fds(given)
        if sent < len(data):
            await asyncio.wait_for(self._loop.sock_sendall(self._socket, data[sent:]), STOP_S)
        self._loop.add_reader(self._socket.fileno(), self._on_frame)
        for fd in self._outputs:
            self._loop.add_reader(fd, self._on_output, fd)
        if self._stdin >= 0:
            self._loop.add_writer(self._stdin, self._on_room)

    async def wait(self, timeout_s: float) -> frames.Frame:
        deadline = self._loop.call_later(timeout_s, self._stop)
        try:
            # the init answers after it ended everything, so this second deadline passes only when it is gone itself
            async with asyncio.timeout(timeout_s + STOP_S):
                ended = await self._ended
        except TimeoutError:
            raise SandboxError(self._where, f"the sandbox did not end its program within {STOP_S} s") from None
        finally:
            deadline.cancel()
        # every process is dead, so what they wrote lies in the pipes and nothing more comes
        for fd in list(self._outputs):
            while self._on_output(fd):
                pass
        return ended

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        # its end of the socket closes: the init ends everything
        self._socket.close()
        self._close_stdin()
        for fd in list(self._outputs):
            self._close_output(fd)
        if not self._ended.done():
            self._ended.cancel()

    def _open_streams(self, stdin: bytes) -> list[int]:
        if stdin:
            given, self._stdin = os.pipe()
            os.set_blocking(self._stdin, False)
            self._unread = memoryview(stdin)
        else:
            given = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        all_given = [given]
        for output in (self.stdout, self.stderr):
            ours, theirs = os.pipe()
            os.set_blocking(ours, False)
            self._outputs[ours] = output
            all_given.append(theirs)
        return all_given

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _on_frame(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
            received = self._buffer.feed(data)
        except BlockingIOError:
            return
        except (OSError, frames.FrameError) as error:
            data, received = b"", [{"failed": f"the sandbox broke: {error}"}]
        if not received and not data:
            received = [{"failed": "the sandbox died"}]
        if received and not self._ended.done():
            self._ended.set_result(received[0])
        if not data:
            self._loop.remove_reader(self._socket.fileno())

    def _on_output(self, fd: int) -> bool:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close_output(fd)
            return False
        self._outputs[fd].add(data)
        return True

    def _on_room(self) -> None:
        try:
            self._unread = self._unread[os.write(self._stdin, self._unread) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more
            self._unread = memoryview(b"")
        if not self._unread:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    def _close_output(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        os.close(fd)
        del self._outputs[fd]
