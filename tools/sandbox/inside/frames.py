"""Messages between the two sides of a sandbox: four bytes of length, then a JSON object. Never pickle."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

MAX_FRAME_BYTES = 1 << 20
"""A longer frame is a broken or hostile peer."""

_MAX_FDS = 8
_LENGTH = struct.Struct("!I")

Frame = dict[str, Any]


class FrameError(Exception):
    """The peer sent what is no frame: too long, no JSON, or no object."""


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame.

    Raises:
        FrameError: it is longer than `MAX_FRAME_BYTES`.
    """
    body = json.dumps(frame, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body):,} bytes; at most {MAX_FRAME_BYTES:,} are allowed")
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """Collects received bytes and gives back whole frames."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Add bytes; return the frames that they complete.

        Raises:
            FrameError: the peer broke the rules; nothing that it sends can be trusted any more.
        """
        self._data += data
        frames = []
        while len(self._data) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._data)
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"the peer announced a frame of {size:,} bytes")
            end = _LENGTH.size + size
            if len(self._data) < end:
                break
            frames.append(_parsed(bytes(self._data[_LENGTH.size : end])))
            del self._data[:end]
        return frames


class Channel:
    """A blocking socket that carries frames and descriptors; used inside the sandbox only."""

    __slots__ = ("_buffer", "_fds", "_ready", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = FrameBuffer()
        self._ready: list[Frame] = []
        self._fds: list[int] = []

    def receive(self) -> Frame | None:
        """Return the next frame, None when the peer has shut its side."""
        while not self._ready:
            data, fds = receive_with_fds(self.sock)
            self._fds += fds
            if not data:
                return None
            self._ready += self._buffer.feed(data)
        return self._ready.pop(0)

    def receive_plain(self) -> Frame | None:
        """As `receive`, for a socket over which no descriptors come; half the cost."""
        while not self._ready:
            data = self.sock.recv(1 << 16)
            if not data:
                return None
            self._ready += self._buffer.feed(data)
        return self._ready.pop(0)

    def take_fds(self, count: int) -> list[int]:
        """Return descriptors that came with the last frame.

        Raises:
            FrameError: fewer came.
        """
        if len(self._fds) < count:
            raise FrameError(f"{count} descriptors were promised, {len(self._fds)} came")
        taken, self._fds = self._fds[:count], self._fds[count:]
        return taken

    def has_waiting(self) -> bool:
        """True when a frame was received that nobody has taken yet."""
        return bool(self._ready)

    def send(self, frame: Frame) -> None:
        """Send a frame."""
        self.sock.sendall(encode(frame))


def send_with_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> int:
    """Send bytes with descriptors attached to the first of them; returns how many bytes were taken."""
    return sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def receive_with_fds(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive bytes and whatever descriptors came with them, close-on-exec."""
    room = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
    data, ancillary, _, _ = sock.recvmsg(1 << 16, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)


def close_fds(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def _parsed(body: bytes) -> Frame:
    try:
        frame = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"the peer sent no JSON: {error}") from None
    if not isinstance(frame, dict):
        raise FrameError(f"the peer sent {type(frame).__name__} instead of an object")
    return frame
