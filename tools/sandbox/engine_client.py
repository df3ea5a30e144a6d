"""Speaks the API of Docker Engine, which Podman speaks as well, over its unix socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast

import httpcore
import httpx

from agentenv.errors import SandboxError, describe

_HEADER_BYTES = 8
_STDOUT = 1
_MOST_JSON_BYTES = 4 << 20
_MOST_STDERR_BYTES = 2000


class Stream(Protocol):
    """The two ways of an attached container, as httpcore gives them."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what came; empty at the end."""
        ...

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send everything."""
        ...


class EngineClient:
    """The few calls that one container for one program needs; every call has a deadline and raises SandboxError.

    Args:
        socket: path of the engine's socket.
        where: name for errors.
        call_s: deadline of one call.
    """

    def __init__(self, *, socket: str, where: str, call_s: float = 60.0) -> None:
        self._where = where
        self._socket = socket
        self._call_s = call_s
        transport = httpx.AsyncHTTPTransport(uds=socket, limits=httpx.Limits(max_connections=None))
        self._client = httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=None, trust_env=False)

    async def create(self, container: str, specification: Mapping[str, Any]) -> None:
        """Make a container of this name."""
        await self._call("POST", f"/containers/create?name={container}", body=specification, allowed=(201,))

    async def start(self, container: str) -> None:
        """Start a container."""
        await self._call("POST", f"/containers/{container}/start", allowed=(204, 304))

    async def is_out_of_memory(self, container: str) -> bool:
        """Return whether the kernel ended processes of a container for its memory."""
        answer = await self._call("GET", f"/containers/{container}/json", allowed=(200,))
        state = answer.get("State")
        return isinstance(state, dict) and state.get("OOMKilled") is True

    async def remove(self, container: str) -> None:
        """End a container and everything in it; one that is gone is fine."""
        await self._call("DELETE", f"/containers/{container}?force=1&v=1", allowed=(200, 204, 404))

    @asynccontextmanager
    async def attached(self, container: str) -> AsyncIterator[Stream]:
        """Hold the standard streams of a container that is not started yet."""
        path = f"/containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1"
        request = self._client.build_request("POST", path, headers={"Connection": "Upgrade", "Upgrade": "tcp"})
        try:
            async with asyncio.timeout(self._call_s):
                response = await self._client.send(request, stream=True)
        except (TimeoutError, httpx.HTTPError) as error:
            raise SandboxError(self._where, f"attach: {describe(error)}") from error
        try:
            if response.status_code != 101:
                raise SandboxError(self._where, f"attach: status {response.status_code}, and 101 is wanted")
            yield cast("Stream", response.extensions["network_stream"])
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _call(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, allowed: tuple[int, ...]
    ) -> dict[str, Any]:
        what = f"{method} {path.partition('?')[0]}"
        try:
            async with asyncio.timeout(self._call_s):
                response = await self._client.request(method, path, json=body)
        except TimeoutError:
            raise SandboxError(self._where, f"{what}: no answer within {self._call_s:g} s") from None
        except httpx.HTTPError as error:
            raise SandboxError(self._where, f"{what} at {self._socket}: {describe(error)}") from error
        if response.status_code not in allowed:
            raise SandboxError(self._where, f"{what}: status {response.status_code}: {response.text[:500]}")
        try:
            found = json.loads(response.content[:_MOST_JSON_BYTES] or b"{}")
        except (ValueError, RecursionError):
            raise SandboxError(self._where, f"{what}: no JSON: {response.text[:300]}") from None
        return found if isinstance(found, dict) else {}


class StdoutFrames:
    """Reads what a container without a terminal writes to standard output, apart from its standard error.

    A frame has a header of 8 bytes: the stream (1 is standard output), three zeros, and the length in big-endian.

    Args:
        stream: the attached container.
        where: name for errors.
    """

    def __init__(self, stream: Stream, *, where: str) -> None:
        self.stderr = b""
        self._stream = stream
        self._where = where
        self._waiting = bytearray()

    async def next(self) -> bytes:
        """Return what came next, empty at the end; raises SandboxError when the streams break."""
        found = self._take()
        while not found:
            try:
                data = await self._stream.read(65536)
            except (OSError, httpcore.NetworkError) as error:
                raise SandboxError(self._where, f"the attached streams broke: {describe(error)}") from error
            if not data:
                break
            self._waiting += data
            found = self._take()
        return found

    def _take(self) -> bytes:
        found = bytearray()
        while len(self._waiting) >= _HEADER_BYTES:
            end = _HEADER_BYTES + int.from_bytes(self._waiting[4:_HEADER_BYTES], "big")
            if len(self._waiting) < end:
                break
            frame = bytes(self._waiting[_HEADER_BYTES:end])
            if self._waiting[0] == _STDOUT:
                found += frame
            else:
                self.stderr = (self.stderr + frame)[-_MOST_STDERR_BYTES:]
            del self._waiting[:end]
        return bytes(found)
