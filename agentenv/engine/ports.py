"""TCP ports of this machine: a free one, who listens on one, and whether a server there answers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

_LISTENING = "0A"  # state of a socket in /proc/net/tcp


def free_port(host: str) -> int:
    """Return a port that nobody listens on. Somebody may take it before it is used: look again when that happens.

    Raises:
        OSError: there is no such address on this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def is_taken(host: str, port: int) -> bool:
    """Say whether a server could not listen there now.

    Raises:
        OSError: there is no such address on this machine, or the port may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no obstacle
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise
    return False


def listeners(port: int, *, among: Iterable[int]) -> list[int]:
    """Return those of the given processes that listen on a port."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    return [pid for pid in among if inodes & _open_files(pid)]


async def answers(url: str, *, deadline_s: float, headers: Mapping[str, str] | None = None) -> int | None:
    """Return the status with which a server answers GET; None where there is no answer in time.

    A few lines over a socket: no client library has to be there, and no proxy setting comes in between.

    Args:
        url: with the path, `http` only.
        deadline_s: seconds for the whole exchange.
        headers: sent with the request.
    """
    parts = urlsplit(url)
    lines = [f"GET {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer = None
    try:
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
            writer.write("\r\n".join([*lines, "", ""]).encode())
            words = (await reader.readline()).split()
    except (OSError, ValueError):  # TimeoutError is an OSError; ValueError: a line without end
        return None
    finally:
        if writer is not None:
            writer.close()
    return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit() else None


def _listening_inodes(port: int) -> set[str]:
    found: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def _open_files(pid: int) -> set[str]:
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found
