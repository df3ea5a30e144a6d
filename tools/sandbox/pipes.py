"""Carries bytes of any length through a pipe whose other end is handed to a sandbox."""

from __future__ import annotations

import asyncio
import os

_COPY_BYTES = 1 << 16
_END_S = 10.0


class PipeReader:
    """Collects what is written to `theirs`; a context manager that closes both ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)
        self._data = bytearray()
        self._ended: asyncio.Future[None] = loop.create_future()

    async def __aenter__(self) -> PipeReader:
        self._loop.add_reader(self._ours, self._on_readable)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop.remove_reader(self._ours)
        os.close(self._ours)
        self._close_theirs()

    async def all(self) -> bytes:
        """Return everything, once the other side has closed its copy."""
        self._close_theirs()
        await asyncio.wait_for(self._ended, _END_S)
        return bytes(self._data)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._ours, _COPY_BYTES)
        except BlockingIOError:
            return
        self._data += data
        if not data:
            self._loop.remove_reader(self._ours)
            if not self._ended.done():
                self._ended.set_result(None)

    def _close_theirs(self) -> None:
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1


class PipeWriter:
    """Feeds bytes to whoever reads `theirs`; a context manager that closes both ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, data: bytes) -> None:
        self._loop = loop
        self.theirs, self._ours = os.pipe()
        os.set_blocking(self._ours, False)
        self._unread = memoryview(data)

    async def __aenter__(self) -> PipeWriter:
        self._loop.add_writer(self._ours, self._on_room)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close_ours()
        os.close(self.theirs)

    def _on_room(self) -> None:
        try:
            self._unread = self._unread[os.write(self._ours, self._unread[:_COPY_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:  # the reader refused the rest
            self._unread = self._unread[:0]
        if not self._unread:
            self._close_ours()

    def _close_ours(self) -> None:
        if self._ours >= 0:
            self._loop.remove_writer(self._ours)
            os.close(self._ours)
            self._ours = -1
