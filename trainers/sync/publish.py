"""Hands the trainer's weights to an engine: one owner, a deadline on every phase, and proof of arrival."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from agentenv.engine.protocol import Ack, Engine, LoraAdapter, WeightManifest
from agentenv.engine.weights import weights_checksum
from agentenv.errors import EngineError
from agentenv.offload import within
from agentenv.trainers.timeline import WEIGHTS, span

T = TypeVar("T")

PHASE_TIMEOUT_S = 120.0


async def publish(
    engine: Engine, weights: Mapping[str, Tensor], *, version: int, adapter: LoraAdapter | None = None
) -> Ack:
    """Pause the engine, give it new weights, prove that they arrived, and let it go on.

    The engine resumes whatever happens in between, with the weights it then holds; the failure is raised.

    Args:
        engine: takes the weights.
        weights: by name.
        version: larger than any before.
        adapter: None for a whole model; else the shape of the adapter whose matrices `weights` are.

    Raises:
        DeadlineExceeded: a phase took too long.
        EngineError: the engine acknowledged another version or other bytes.
    """
    await _phase(engine.pause("keep"), "pause")
    manifest = WeightManifest(version=version, tensors=weights, adapter=adapter)
    try:
        ack = await _phase(engine.update_weights(manifest), "update")
    finally:
        await _phase(engine.resume(), "resume")
    expected = weights_checksum(weights, dtype=getattr(torch, ack.dtype) if ack.dtype else None)
    if (ack.version, ack.checksum) != (version, expected):
        raise EngineError(
            f"the engine acknowledged version {ack.version} with checksum {ack.checksum}; "
            f"version {version} with {expected} was sent"
        )
    return ack


async def _phase(awaitable: Awaitable[T], name: str) -> T:
    with span(name, track=WEIGHTS):
        return await within(awaitable, timeout_s=PHASE_TIMEOUT_S, side="engine", where=f"weight update: {name}")
