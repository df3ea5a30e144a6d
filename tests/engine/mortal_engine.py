"""A scripted engine that can die, hang, lie and hold weights, for tests of what is built on engines."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from agentenv.engine.protocol import (
    Ack,
    Completion,
    EngineHealth,
    PauseMode,
    SamplingParams,
    WeightManifest,
)
from agentenv.engine.scripted import ScriptedEngine, ScriptedRequest
from agentenv.errors import EngineClosed, EngineError
from agentenv.messages import Image
from agentenv.trajectory import VersionSpan


def drawn(request: ScriptedRequest) -> list[int]:
    """Ids that are a function of prompt and seed, as those of a real engine are."""
    return [(sum(request.prompt_ids) + (request.sampling.seed or 0) + i) % 97 for i in range(5)]


class MortalEngine(ScriptedEngine):
    """Serves until something is done to it.

    Attributes:
        is_dead: every verb fails, as if the server were gone.
        is_hung: no verb ever answers.
        refusal: text with which `update_weights` fails; "" for none.
        damage: added to the checksum that it acknowledges, as if other bytes had arrived.
        cache_use: what `health` says.
        weights: name -> bytes, what it was given.
        calls: the verbs in order.
    """

    def __init__(self, script: Any = drawn, *, version: int = 0, latency_s: float = 0.0) -> None:
        super().__init__(script, latency_s=latency_s, keep_exchanges=True)
        self.version = version
        self.is_dead = False
        self.is_hung = False
        self.refusal = ""
        self.damage = ""
        self.cache_use = 0.0
        self.num_waiting = 0
        self.says_version: int | None = None
        self.weights: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.num_closed = 0
        self._death = asyncio.Event()

    def die(self) -> None:
        """Be gone, like a killed process: what is in it fails at once."""
        self.is_dead = True
        self._death.set()

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image] = (),
    ) -> Completion:
        self.calls.append("generate")
        await self._alive()
        answer = asyncio.ensure_future(
            super().generate(prompt_ids, sampling, session_id=session_id, deadline_s=deadline_s)
        )
        death = asyncio.ensure_future(self._death.wait())
        try:
            await asyncio.wait({answer, death}, return_when=asyncio.FIRST_COMPLETED)
            await self._alive()
            completion = await answer
        finally:
            answer.cancel()
            death.cancel()
        if self.says_version is None:
            return completion
        span = VersionSpan(version=self.says_version, start=0, end=len(completion.token_ids))
        return Completion(
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            finish_reason=completion.finish_reason,
            weight_versions=(span,),
        )

    async def end_session(self, session_id: str) -> None:
        self.calls.append(f"end {session_id}")
        await self._alive()

    async def forget_prefixes(self) -> None:
        self.calls.append("forget")
        await self._alive()

    async def pause(self, mode: PauseMode = "abort") -> None:
        self.calls.append(f"pause {mode}")
        await self._alive()
        await super().pause(mode)

    async def resume(self) -> None:
        self.calls.append("resume")
        await self._alive()
        await super().resume()

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        self.calls.append(f"update {manifest.version}")
        await self._alive()
        if self.refusal:
            raise EngineError(self.refusal)
        await super().update_weights(manifest)
        if manifest.adapter is None:
            self.weights = {}
        self.weights |= {name: _bytes(value) for name, value in manifest.tensors.items()}
        return Ack(version=self.version, checksum=self.checksum() + self.damage, dtype="float32")

    async def health(self) -> EngineHealth:
        await self._alive()
        health = await super().health()
        return EngineHealth(
            is_ready=health.is_ready,
            version=self.version,
            num_running=health.num_running,
            num_waiting=self.num_waiting,
            cache_use=self.cache_use,
        )

    async def close(self) -> None:
        self.num_closed += 1
        await super().close()

    def checksum(self) -> str:
        """Of what it was given."""
        return hashlib.sha256(repr(sorted(self.weights.items())).encode()).hexdigest()[:8]

    async def _alive(self) -> None:
        if self.is_hung:
            await asyncio.sleep(3600)
        if self.is_dead:
            raise EngineError("connection refused; is the server running?")
        if self._is_closed:
            raise EngineClosed("this engine was closed")


def _bytes(value: Any) -> bytes:
    return value.detach().cpu().numpy().tobytes() if hasattr(value, "detach") else repr(value).encode()
