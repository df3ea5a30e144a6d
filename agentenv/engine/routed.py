"""Servers behind a router of their own: it chooses who samples, while every verb still goes to each server."""

from __future__ import annotations

import time
from collections.abc import Sequence

from agentenv.engine.forwarding import ForwardingEngine
from agentenv.engine.protocol import Ack, Completion, Engine, PauseMode, SamplingParams, WeightManifest
from agentenv.errors import EngineError
from agentenv.messages import Image


class Routed(ForwardingEngine):
    """Samples through one engine and controls others.

    Args:
        front: the way through the router; only `generate` asks anything of it, `pause` and `resume` close and open its
            gate.
        workers: all servers behind the router, usually a `Pool`; both are owned.
    """

    def __init__(self, front: Engine, *, workers: Engine, version: int) -> None:
        super().__init__(workers)
        self.front = front
        self.workers = workers
        self._version = version

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image] = (),
    ) -> Completion:
        """Sample a continuation; see `Engine.generate`. What older weights than were served answered is asked again.

        Raises:
            EngineError: the router or a server failed, or older weights answered twice.
        """
        ends_at, version = time.monotonic() + deadline_s, self._version
        former = version
        for _ in range(2):
            completion = await self.front.generate(
                prompt_ids,
                sampling,
                session_id=session_id,
                deadline_s=ends_at - time.monotonic(),
                images=images,
            )
            spans = completion.weight_versions
            if not spans or spans[-1].version >= version:
                return completion
            former = spans[-1].version
        raise EngineError(
            f"the router twice chose a server with weights of version {former}, but {version} is served; "
            "take servers that began anew out of the router"
        )

    async def pause(self, mode: PauseMode = "abort") -> None:
        """Let nothing through, then pause every server."""
        await self.front.pause(mode)
        await self.workers.pause(mode)

    async def resume(self) -> None:
        """Let every server go on, then let requests through."""
        await self.workers.resume()
        await self.front.resume()

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Give new weights to every server."""
        ack = await self.workers.update_weights(manifest)
        self._version = ack.version
        return ack

    async def close(self) -> None:
        """Let go of the router and of the servers."""
        try:
            await self.front.close()
        finally:
            await self.workers.close()
