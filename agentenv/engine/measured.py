"""Counts what passes through an engine: requests, tokens, seconds, weight updates and errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from agentenv.engine.forwarding import ForwardingEngine
from agentenv.engine.protocol import Ack, Completion, Engine, EngineHealth, SamplingParams, WeightManifest
from agentenv.messages import Image
from agentenv.tally import Distribution

GENERATE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
UPDATE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class MeasuredEngine(ForwardingEngine):
    """An engine that counts; everything else is the engine's own.

    Args:
        engine: does the work; closing this closes it.

    Attributes:
        num_running: requests that the engine was given and has not answered, those that wait inside it included.
        num_prompt_tokens: of answered requests.
        num_cached_tokens: prompt tokens that came from a prefix cache.
        num_output_tokens: sampled tokens.
        num_errors: failed requests and updates, by the name of the exception.
        generate_s: seconds of answered requests.
        update_s: seconds of weight updates.
        last_health: what `health` said last; None before it was asked.
        version: of the weights, as far as answers, updates and health told; -1 before they did.
        loop: where the engine lives; None before its first request.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.num_running = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_output_tokens = 0
        self.num_errors: dict[str, int] = {}
        self.generate_s = Distribution(GENERATE_SECONDS)
        self.update_s = Distribution(UPDATE_SECONDS)
        self.last_health: EngineHealth | None = None
        self.version = -1
        self.loop: asyncio.AbstractEventLoop | None = None

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
        self.loop = asyncio.get_running_loop()
        num_prompt_tokens = len(prompt_ids)  # the caller may let its list grow meanwhile
        started = time.perf_counter()
        self.num_running += 1
        try:
            completion = await self.engine.generate(
                prompt_ids, sampling, session_id=session_id, deadline_s=deadline_s, images=images
            )
        except Exception as error:
            self._count_error(error)
            raise
        finally:
            self.num_running -= 1
        self.generate_s.add(time.perf_counter() - started)
        self.num_prompt_tokens += num_prompt_tokens
        self.num_cached_tokens += completion.num_cached_tokens
        self.num_output_tokens += len(completion.token_ids)
        for span in completion.weight_versions:
            self.version = max(self.version, span.version)
        return completion

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Take new weights."""
        started = time.perf_counter()
        try:
            ack = await self.engine.update_weights(manifest)
        except Exception as error:
            self._count_error(error)
            raise
        self.update_s.add(time.perf_counter() - started)
        self.version = ack.version
        return ack

    async def health(self) -> EngineHealth:
        """Say whether requests can be served, and remember what was said."""
        self.loop = asyncio.get_running_loop()
        self.last_health = await self.engine.health()
        self.version = max(self.version, self.last_health.version)
        return self.last_health

    def _count_error(self, error: Exception) -> None:
        name = type(error).__name__
        self.num_errors[name] = self.num_errors.get(name, 0) + 1
