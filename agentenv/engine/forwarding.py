"""An engine that hands every verb on to another one: the base of those that add one thing to it."""

from __future__ import annotations

from collections.abc import Sequence

from agentenv.engine.protocol import Ack, Completion, Engine, EngineHealth, PauseMode, SamplingParams, WeightManifest
from agentenv.messages import Image


class ForwardingEngine:
    """Implements `Engine` by the engine it holds; subclasses change the verbs that they are about.

    Args:
        engine: does the work; owned, and closed with this one.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

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
        return await self.engine.generate(
            prompt_ids, sampling, session_id=session_id, deadline_s=deadline_s, images=images
        )

    async def end_session(self, session_id: str) -> None:
        """Forget what is cached for an episode."""
        await self.engine.end_session(session_id)

    async def forget_prefixes(self) -> None:
        """Drop every cached prefix."""
        await self.engine.forget_prefixes()

    async def pause(self, mode: PauseMode = "abort") -> None:
        """Stop generating."""
        await self.engine.pause(mode)

    async def resume(self) -> None:
        """Go on after `pause`."""
        await self.engine.resume()

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Take new weights."""
        return await self.engine.update_weights(manifest)

    async def health(self) -> EngineHealth:
        """Say whether requests can be served."""
        return await self.engine.health()

    async def close(self) -> None:
        """Close the engine."""
        await self.engine.close()
