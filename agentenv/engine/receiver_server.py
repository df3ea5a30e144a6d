"""A small server before a `WeightReceiver`: one JSON object per line, over TCP. The weights themselves go elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agentenv.engine.receiver import WeightReceiver
from agentenv.engine.transfer import TransferManifest
from agentenv.engine.weight_sources import WeightSources
from agentenv.errors import AgentEnvError, EngineError, describe

MANIFEST_BYTES = 64 << 20
"""Upper bound on one line; a manifest takes about 150 bytes per tensor."""


class ReceiverServer:
    """Lets trainers that know the token send weights; whoever hangs up in the middle of an update has torn it.

    Args:
        receiver: takes the weights.
        token: shared secret.
        sources: where buckets come from.
    """

    def __init__(self, receiver: WeightReceiver, *, token: str, sources: WeightSources | None = None) -> None:
        self._receiver = receiver
        self._token = token
        self._sources = WeightSources() if sources is None else sources
        self._server: asyncio.Server | None = None

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; returns the port, a free one for 0."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=MANIFEST_BYTES)
        return self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Hang up; idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._sources.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sender = ""
        try:
            sender, greeting = await self._greet(await reader.readline())
            await _answer(writer, greeting)
            while line := await self._next_line(reader):
                await _answer(writer, await self._update(line, reader=reader))
        except AgentEnvError as error:
            with contextlib.suppress(OSError):
                await _answer(writer, {"error": describe(error)})
        except (OSError, ValueError):
            pass  # it is gone, or speaks something else
        finally:
            if sender:
                self._receiver.release(sender)
            writer.close()

    async def _greet(self, line: bytes) -> tuple[str, Mapping[str, Any]]:
        said = _object(line)
        if not hmac.compare_digest(str(said.get("token")).encode(), self._token.encode()):
            raise EngineError("the token is wrong")
        sender = str(said.get("sender"))
        greeting = await self._receiver.claim(sender)
        return sender, asdict(greeting)

    async def _next_line(self, reader: asyncio.StreamReader) -> bytes:
        return await reader.readline()

    async def _update(self, line: bytes, *, reader: asyncio.StreamReader) -> Mapping[str, Any]:
        """Take one update; the trainer's hanging up ends it."""
        try:
            said = _object(line)
            manifest = TransferManifest.from_json(said.get("manifest") or {})
            buckets = self._sources.buckets(manifest, said.get("transport") or {})
        except EngineError as error:
            return {"error": describe(error)}
        updating = asyncio.create_task(self._receiver.update(manifest, buckets))
        hanging_up = asyncio.create_task(reader.read(1))  # nothing is said before the answer
        try:
            await asyncio.wait({updating, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
            if not updating.done():
                raise ConnectionResetError
            return asdict(updating.result())
        except AgentEnvError as error:
            return {"error": describe(error)}
        finally:
            for task in (updating, hanging_up):
                task.cancel()
            await asyncio.wait({updating, hanging_up})


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise EngineError(f"not a line of JSON: {describe(error)}") from error
    if not isinstance(value, dict):
        raise EngineError("a line must hold a JSON object")
    return value


async def _answer(writer: asyncio.StreamWriter, value: Mapping[str, Any]) -> None:
    writer.write(json.dumps(value).encode() + b"\n")
    await writer.drain()
