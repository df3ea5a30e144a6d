"""An engine that counts its weights from another number than the trainer does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentenv.engine.forwarding import ForwardingEngine
from agentenv.engine.protocol import Ack, Completion, Engine, EngineHealth, SamplingParams, WeightManifest
from agentenv.messages import Image


class Relabelled(ForwardingEngine):
    """Adds a number to every version that comes from an engine, and takes it off what goes there.

    A server calls what it was started with version 0; a trainer that resumed at step 40 calls the same weights 40.

    Args:
        engine: owned, and closed with this one.
        offset: our number of the engine's version 0.
    """

    def __init__(self, engine: Engine, *, offset: int) -> None:
        super().__init__(engine)
        self.offset = offset

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image] = (),
    ) -> Completion:
        """Sample a continuation; see `Engine.generate`."""
        completion = await super().generate(
            prompt_ids, sampling, session_id=session_id, deadline_s=deadline_s, images=images
        )
        spans = tuple(replace(span, version=span.version + self.offset) for span in completion.weight_versions)
        return replace(completion, weight_versions=spans)

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Take new weights."""
        ack = await self.engine.update_weights(replace(manifest, version=manifest.version - self.offset))
        return replace(ack, version=ack.version + self.offset)

    async def health(self) -> EngineHealth:
        """Say whether requests can be served."""
        health = await self.engine.health()
        return replace(health, version=health.version + self.offset)
