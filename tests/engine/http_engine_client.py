"""Drives `http_engine.py`; the fake counterpart of the adapters for vLLM and SGLang."""

import asyncio
from collections.abc import Sequence
from typing import Any

from agentenv.engine.http import JsonClient
from agentenv.engine.protocol import (
    Ack,
    Completion,
    EngineHealth,
    PauseMode,
    SamplingParams,
    WeightManifest,
)
from agentenv.engine.scripted import ScriptedEngine
from agentenv.engine.server_config import ServerConfig
from agentenv.errors import EngineError
from agentenv.messages import Image
from agentenv.trajectory import VersionSpan


class HttpEngine:
    """An engine over HTTP. Implements `Engine`."""

    def __init__(self, client: JsonClient, *, config: ServerConfig) -> None:
        self.client = client
        self.config = config

    @classmethod
    async def connect(cls, url: str, *, config: ServerConfig) -> "HttpEngine":
        engine = cls(JsonClient(url), config=config)
        try:
            if config.options.get("refuses"):
                raise EngineError("this server is no engine")
            await engine.status()
        except BaseException:
            await engine.close()
            raise
        return engine

    async def status(self) -> dict[str, Any]:
        return await self.client.post("/status", {}, deadline_s=5)

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image] = (),
    ) -> Completion:
        body: dict[str, object] = {"prompt": list(prompt_ids), "seed": sampling.seed}
        answer = await self.client.post("/generate", body, deadline_s=deadline_s)
        ids = answer["ids"]
        return Completion(
            token_ids=ids,
            logprobs=[-0.5] * len(ids),
            finish_reason="stop",
            weight_versions=(VersionSpan(version=answer["version"], start=0, end=len(ids)),),
        )

    async def end_session(self, session_id: str) -> None:
        pass

    async def forget_prefixes(self) -> None:
        await self.status()

    async def pause(self, mode: PauseMode = "abort") -> None:
        await self.client.post("/pause", {}, deadline_s=5)

    async def resume(self) -> None:
        await self.client.post("/resume", {}, deadline_s=5)

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        tensors = {name: value.tolist() for name, value in manifest.tensors.items()}  # type: ignore[attr-defined]
        answer = await self.client.post("/update", {"version": manifest.version, "tensors": tensors}, deadline_s=5)
        return Ack(version=answer["version"], checksum=answer["checksum"])

    async def health(self) -> EngineHealth:
        status = await self.status()
        return EngineHealth(is_ready=True, version=status["version"], num_running=status["running"], num_waiting=0)

    async def close(self) -> None:
        await self.client.close()


class InProcess(ScriptedEngine):
    """An engine inside this process, as `place: in_process` asks for."""

    @classmethod
    async def open(cls, model: str, *, config: ServerConfig, version: int = 0) -> "InProcess":
        await asyncio.sleep(0)
        engine = cls([[1, 2, 3]])
        engine.version = version
        return engine
