"""The host's side of a session's control socket: requests with answers, and events."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agentenv.errors import SandboxError, ToolError
from agentenv.tools.sandbox.inside import frames

OPERATION_S = 60.0
"""Deadline of one operation on files."""

_READ_BYTES = 1 << 16


class SessionLink:
    """Talks to process 1 of a session, on one event loop.

    Args:
        where: name for errors.
        on_event: called with frames that answer nothing.
    """

    def __init__(self, *, where: str, on_event: Callable[[frames.Frame], None]) -> None:
        self._where = where
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._buffer = frames.FrameBuffer()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[frames.Frame]] = {}
        self._parts: dict[int, Callable[[frames.Frame], None]] = {}
        self._ended = self._loop.create_future()
        self._sending = asyncio.Lock()
        self._socket, self.theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    @property
    def is_open(self) -> bool:
        """False once the session is gone."""
        return not self._ended.done()

    async def begin(
        self, request: frames.Frame, hand_over: Callable[[int], Awaitable[object]], *, timeout_s: float
    ) -> None:
        """Start the session; raises SandboxError."""
        with self.theirs:
            await hand_over(self.theirs.fileno())
        ready = self._expect(0)
        await self._send(frames.encode(request), ())
        answer = await self._answer(0, ready, timeout_s)
        if "ready" not in answer:
            raise SandboxError(self._where, str(answer.get("failed", "the session sent no answer")))

    async def ask(
        self,
        operation: str,
        *,
        fds: Sequence[int] = (),
        on_part: Callable[[frames.Frame], None] | None = None,
        timeout_s: float = OPERATION_S,
        **values: Any,
    ) -> frames.Frame:
        """Ask for an operation and return its answer.

        Args:
            operation: see `inside/session.py`.
            fds: descriptors that go with it.
            on_part: takes the parts of an answer that is too long for one frame.
            timeout_s: deadline.
            values: arguments of the operation.

        Raises:
            ToolError: it was refused for what was asked.
            SandboxError: the session is gone, or did not answer in time.
        """
        number = next(self._ids)
        try:
            data = frames.encode({"op": operation, "id": number, **values})
        except frames.FrameError as error:
            raise ToolError(str(error)) from None
        future = self._expect(number)
        if on_part is not None:
            self._parts[number] = on_part
        try:
            await self._send(data, fds)
            answer = await self._answer(number, future, timeout_s)
        finally:
            self._waiting.pop(number, None)
            self._parts.pop(number, None)
        if "refused" in answer:
            raise ToolError(str(answer["refused"]))
        if "failed" in answer:
            raise SandboxError(self._where, str(answer["failed"]))
        return answer

    def tell(self, operation: str, **values: Any) -> None:
        """Ask for an operation whose answer nobody waits for; silent where the session is gone or the socket full."""
        data = frames.encode({"op": operation, "id": next(self._ids), **values})
        # a part of a frame would break all that follow: such a session is ended instead
        with contextlib.suppress(OSError):
            if self._socket.send(data) < len(data):
                self.hang_up()

    def hang_up(self) -> None:
        """Let the session end everything; returns at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    async def close(self, *, timeout_s: float) -> bool:
        """Hang up, and wait until everything has ended; returns False when it did not in time."""
        self.hang_up()
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), timeout_s)
        except TimeoutError:
            return False
        finally:
            self.drop()
        return True

    def drop(self) -> None:
        """Close the socket at once: the session ends when it notices."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        self.theirs.close()
        self._end("the sandbox was closed")

    def _expect(self, number: int) -> asyncio.Future[frames.Frame]:
        if self._ended.done():
            raise SandboxError(self._where, "the sandbox is gone")
        future: asyncio.Future[frames.Frame] = self._loop.create_future()
        self._waiting[number] = future
        return future

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        try:
            async with self._sending, asyncio.timeout(OPERATION_S):
                sent = frames.send_with_fds(self._socket, data, fds)
                if sent < len(data):
                    await self._loop.sock_sendall(self._socket, data[sent:])
        except OSError as error:  # also the deadline
            self.hang_up()
            raise SandboxError(self._where, f"the sandbox is gone: {error}") from None
        except asyncio.CancelledError:
            # half a frame may be on its way
            self.hang_up()
            raise

    async def _answer(self, number: int, future: asyncio.Future[frames.Frame], timeout_s: float) -> frames.Frame:
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            self.hang_up()
            raise SandboxError(self._where, f"no answer within {timeout_s:g} s; the sandbox is ended") from None
        finally:
            self._waiting.pop(number, None)

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
            received = self._buffer.feed(data)
        except BlockingIOError:
            return
        except (OSError, frames.FrameError) as error:
            self._end(f"the sandbox broke: {error}")
            return
        for frame in received:
            self._take(frame)
        if not data:
            self._end("the sandbox died")

    def _take(self, frame: frames.Frame) -> None:
        if "event" in frame:
            self._on_event(frame)
            return
        number = frame.get("id", 0)
        if frame.get("is_part"):
            if number in self._parts:
                self._parts[number](frame)
            return
        future = self._waiting.pop(number, None)
        if future is not None and not future.done():
            future.set_result(frame)

    def _end(self, why: str) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
        if self._ended.done():
            return
        self._ended.set_result(None)
        for future in self._waiting.values():
            if not future.done():
                future.set_result({"failed": why})
        self._waiting.clear()
        self._on_event({"event": "gone"})
