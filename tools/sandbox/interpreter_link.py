"""The host's side of an episode's interpreter: a socket for cells, a pipe for what they print."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Callable
from typing import Literal

from agentenv.errors import ToolError
from agentenv.tools.sandbox.inside import frames
from agentenv.tools.sandbox.output import BoundedOutput

Outcome = frames.Frame | Literal["timeout", "ended"]
"""The reply to a cell; or it ran out of time; or the interpreter ended, or said what it must not say."""

_READ_BYTES = 1 << 16
_BUSY_S = 0.05


class InterpreterLink:
    """Runs cells in an interpreter. What comes from it was written by a model: nothing here trusts it.

    Args:
        output_bytes: kept of what a cell prints.
        on_busy: told True when a cell runs long, False when that cell is over.
    """

    def __init__(self, *, output_bytes: int, on_busy: Callable[[bool], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._output_bytes = output_bytes
        self._on_busy = on_busy
        self._output = BoundedOutput(output_bytes)
        self._buffer = frames.FrameBuffer()
        self._nonce = ""
        self._reply: asyncio.Future[Outcome] | None = None
        self._is_paused = False
        self.is_broken = False
        self._socket, theirs = socket.socketpair()
        self._pipe, their_pipe = os.pipe()
        self.theirs = (theirs.detach(), their_pipe)
        self._socket.setblocking(False)
        os.set_blocking(self._pipe, False)
        self._loop.add_reader(self._socket.fileno(), self._on_reply)
        self._loop.add_reader(self._pipe, self._on_output)

    async def run(self, code: str, *, timeout_s: float) -> Outcome:
        """Run a cell.

        Raises:
            ToolError: the code is too long.
        """
        self._nonce = secrets.token_hex(8)
        try:
            data = frames.encode({"nonce": self._nonce, "code": code})
        except frames.FrameError:
            raise ToolError(f"the code is too long; at most {frames.MAX_FRAME_BYTES:,} bytes are allowed") from None
        if self._is_paused:
            self._loop.add_reader(self._pipe, self._on_output)
            self._is_paused = False
        reply: asyncio.Future[Outcome] = self._loop.create_future()
        self._reply = reply
        # one timer for the usual, short cell: it is seldom reached, and sets the next one
        timer = _Timer(self._loop, timeout_s, on_busy=self._on_busy, on_timeout=self._on_timeout)
        try:
            await self._send(data, reply)
            return await reply
        finally:
            timer.cancel()
            self._reply = None

    def take_output(self) -> str:
        """Return what was printed since the last call."""
        while self._on_output():
            pass
        output, self._output = self._output, BoundedOutput(self._output_bytes)
        return output.text()

    def end(self) -> None:
        """Tell whoever waits that the interpreter ended."""
        self.is_broken = True
        if self._reply is not None and not self._reply.done():
            self._reply.set_result("ended")

    def close(self) -> None:
        """Close both ends; idempotent."""
        self.is_broken = True
        for fd in self.theirs:
            os.close(fd)
        self.theirs = ()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        self._close_pipe()

    async def _send(self, data: bytes, reply: asyncio.Future[Outcome]) -> None:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.end()
            return
        if sent == len(data):
            return
        # the interpreter may never read on, so the reply, the end or the deadline stop this too
        sending = asyncio.ensure_future(self._loop.sock_sendall(self._socket, data[sent:]))
        try:
            await asyncio.wait([sending, reply], return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await sending

    def _on_timeout(self) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_result("timeout")

    def _on_reply(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
            received = self._buffer.feed(data)
        except BlockingIOError:
            return
        except (OSError, frames.FrameError):
            data, received = b"", []
        reply = self._reply
        if data and not received:
            return
        if len(received) == 1 and reply is not None and not reply.done() and received[0].get("nonce") == self._nonce:
            reply.set_result(received[0])
            return
        # it closed its side, or spoke out of turn: code has taken hold of the socket
        self._loop.remove_reader(self._socket.fileno())
        self.end()

    def _on_output(self) -> bool:
        if self._pipe < 0:
            return False
        try:
            data = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close_pipe()
            return False
        self._output.add(data)
        if self._reply is None:
            # printed between two calls, by a thread: left in the pipe until the next call, so that it costs us nothing
            self._loop.remove_reader(self._pipe)
            self._is_paused = True
        return True

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            self._loop.remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1
            self._is_paused = False


class _Timer:
    """Calls `on_busy(True)` when a cell turns out to be long, then `on_timeout` at its deadline."""

    __slots__ = ("_deadline", "_handle", "_is_busy", "_loop", "_on_busy", "_on_timeout")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        *,
        on_busy: Callable[[bool], None],
        on_timeout: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._deadline = loop.time() + timeout_s
        self._on_busy, self._on_timeout = on_busy, on_timeout
        self._is_busy = False
        self._handle = loop.call_later(min(_BUSY_S, timeout_s), self._first)

    def cancel(self) -> None:
        self._handle.cancel()
        if self._is_busy:
            self._on_busy(False)

    def _first(self) -> None:
        self._is_busy = True
        self._on_busy(True)
        self._handle = self._loop.call_at(self._deadline, self._on_timeout)
