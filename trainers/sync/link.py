"""The trainer's line to a `ReceiverServer`: asks, and waits for the answer with a deadline."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from agentenv.engine.receiver import Greeting
from agentenv.engine.receiver_server import MANIFEST_BYTES
from agentenv.errors import EngineError, describe
from agentenv.offload import within

CONNECT_TIMEOUT_S = 10.0


class ReceiverLink:
    """An open line, which owns the engine's weights as long as it is open; see `connect`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, sender: str, greeting: Greeting
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.sender = sender
        self.greeting = greeting

    @classmethod
    async def connect(cls, host: str, port: int, *, token: str, sender: str) -> ReceiverLink:
        """Open a line and become the owner of the engine's weights.

        Args:
            host: of the receiver.
            port: of the receiver.
            token: its shared secret.
            sender: names this trainer, in errors too; no other trainer may have the same name.

        Raises:
            EngineError: nobody listens there, the token is wrong, or another trainer owns the engine.
            DeadlineExceeded: no answer.
        """
        where = f"weight receiver at {host}:{port}"
        opening = asyncio.open_connection(host, port, limit=MANIFEST_BYTES)
        try:
            reader, writer = await within(opening, timeout_s=CONNECT_TIMEOUT_S, side="engine", where=where)
        except OSError as error:
            raise EngineError(f"no {where}: {describe(error)}") from error
        link = cls(reader, writer, sender=sender, greeting=Greeting(version=0, dtype=""))
        try:
            answer = await link.ask({"token": token, "sender": sender}, timeout_s=CONNECT_TIMEOUT_S)
        except BaseException:
            await link.close()
            raise
        link.greeting = Greeting(version=int(answer["version"]), dtype=str(answer["dtype"]))
        return link

    async def ask(self, body: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Send an object and return the answer.

        Raises:
            EngineError: the receiver refused, or hung up.
            DeadlineExceeded: no answer.
        """
        try:
            self._writer.write(json.dumps(body).encode() + b"\n")
            await self._writer.drain()
            reading = self._reader.readline()
            line = await within(reading, timeout_s=timeout_s, side="engine", where="weight receiver")
        except OSError as error:
            raise EngineError(f"the weight receiver hung up: {describe(error)}") from error
        if not line:
            raise EngineError("the weight receiver hung up")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(str(answer["error"]))
        return answer

    async def close(self) -> None:
        """Hang up, which gives the engine's weights back; idempotent."""
        self._writer.close()
