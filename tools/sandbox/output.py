"""What a process wrote, made safe to show: bounded, decoded, without control codes."""

from __future__ import annotations

import re

# C0 without tab and newline, DEL, C1: what moves cursors and recolours terminals; U+2028/9 break lines of JSON readers
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class BoundedOutput:
    """Keeps the beginning and the end of a stream.

    Args:
        most_bytes: kept in all; half of it from the beginning.
    """

    __slots__ = ("_head", "_most_head", "_most_tail", "_num_bytes", "_tail")

    def __init__(self, most_bytes: int) -> None:
        self._most_head = most_bytes // 2
        self._most_tail = most_bytes - self._most_head
        self._head = bytearray()
        self._tail = bytearray()
        self._num_bytes = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self._num_bytes += len(data)
        room = self._most_head - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._most_tail:
            del self._tail[: len(self._tail) - self._most_tail]

    def text(self) -> str:
        """Return what was kept, readable, with a line for what was left out."""
        tail = bytes(self._tail[max(0, len(self._tail) - self._most_tail) :])
        omitted = self._num_bytes - len(self._head) - len(tail)
        if not omitted:
            return readable((bytes(self._head) + tail).decode("utf-8", "replace"))
        head = readable(self._head.decode("utf-8", "replace"))
        return f"{head}\n[... {omitted} bytes omitted]\n{readable(tail.decode('utf-8', 'replace'))}"


def readable(text: str) -> str:
    """Return text with control codes and lone surrogates written as escapes; a Windows line end becomes a plain one."""
    if text.isascii() and text.isprintable():
        return text
    return _CONTROL.sub(_escaped, text.replace("\r\n", "\n"))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
