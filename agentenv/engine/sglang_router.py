"""The way through `sglang-router`, which passes `/generate` on, but neither aborts, pauses nor weight updates."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from agentenv.engine.http import JsonClient
from agentenv.engine.protocol import Engine
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.sglang_protocol import SGLangLoad
from agentenv.errors import AgentEnvError, EngineError


def sglang_front(url: str, *, workers: Sequence[Any], config: ServerConfig) -> Engine:
    """Return an engine that samples through a router; its other verbs reach nobody.

    Args:
        url: of the router.
        workers: `SGLangServer`s behind it, all with the same model; they stay the caller's.
        config: limits and API key.

    Raises:
        EngineError: there is no worker.
    """
    if not workers:
        raise EngineError("a router without servers cannot serve; name them in engine.url")
    server = importlib.import_module("agentenv.engine.sglang_http").SGLangServer
    key = config.api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    transport = RouterTransport(JsonClient(url, headers=headers), workers=[worker.transport for worker in workers])
    return server(transport, facts=workers[0].facts, config=config, host="", is_own=False)


class RouterTransport:
    """Implements `SGLangTransport`: requests go to the router, aborts to every server, and control to nobody.

    Args:
        router: client of the router; owned.
        workers: transports of the servers behind it.
    """

    def __init__(self, router: JsonClient, *, workers: Sequence[Any]) -> None:
        self._router = router
        self._workers = workers

    async def generate(self, body: Mapping[str, object], *, deadline_s: float) -> Mapping[str, Any]:
        """Run one request on the server that the router chooses."""
        return await self._router.post("/generate", body, deadline_s=deadline_s)

    async def abort(self, request_id: str) -> None:
        """Tell every server: the router answers 404 to this, and does not say whom it chose."""
        answers = await asyncio.gather(*(worker.abort(request_id) for worker in self._workers), return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, AgentEnvError)]
        if len(failures) == len(answers):
            raise failures[0]

    async def control(self, verb: str, body: Mapping[str, object], *, deadline_s: float) -> Mapping[str, Any]:
        """Do nothing: the servers are told directly."""
        return {}

    async def flush_cache(self) -> bool:
        """Do nothing: the servers are told directly."""
        return True

    async def weight_version(self) -> str:
        """Return the version that the first server serves."""
        return await self._workers[0].weight_version()

    async def load(self) -> SGLangLoad | None:
        """Return nothing: the servers are asked directly."""
        return None

    async def close(self) -> None:
        """Close the connections to the router."""
        await self._router.close()
