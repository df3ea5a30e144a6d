"""A copy of the weights that engines serve, for an engine that has to begin anew."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from typing import Any

from agentenv.engine.protocol import WeightManifest


class KeptWeights:
    """Holds what was last sent, in memory of its own: the trainer changes its tensors in place.

    The cost is one copy of the model in host memory, whatever the number of replicas (0.85M parameters in float32: 3.4
    MB; 7B in bfloat16: 14 GB), written into the same memory with every update. An adapter is kept beside the model that
    it belongs to. Where the model itself was never sent, engines have it from their folder, and the adapter alone is
    kept.
    """

    def __init__(self) -> None:
        self._model: WeightManifest | None = None
        self._adapter: WeightManifest | None = None

    @property
    def manifests(self) -> tuple[WeightManifest, ...]:
        """What an engine that holds the weights of its folder must be given, in this order."""
        return tuple(manifest for manifest in (self._model, self._adapter) if manifest is not None)

    async def keep(self, manifest: WeightManifest) -> None:
        """Copy a manifest; the former one of its kind is overwritten."""
        old = self._model if manifest.adapter is None else self._adapter
        former = {} if old is None else old.tensors
        # a thread, because memory is copied at some gigabytes a second
        tensors = await asyncio.to_thread(_copied, manifest.tensors, former=former)
        kept = WeightManifest(version=manifest.version, tensors=tensors, adapter=manifest.adapter)
        if manifest.adapter is None:
            self._model, self._adapter = kept, None
        else:
            self._adapter = kept

    def drop(self) -> None:
        """Forget everything: what is held may be half of one version and half of another."""
        self._model = self._adapter = None


def _copied(tensors: Mapping[str, object], *, former: Mapping[str, object]) -> dict[str, object]:
    return {name: _copy(tensor, into=former.get(name)) for name, tensor in tensors.items()}


def _copy(tensor: Any, *, into: Any) -> object:
    """Copy a torch tensor to host memory, into a former copy where that fits; anything else in its own way."""
    if not hasattr(tensor, "detach"):
        return copy.deepcopy(tensor)
    if into is not None and (into.shape, into.dtype) == (tensor.shape, tensor.dtype):
        return into.copy_(tensor.detach())
    return tensor.detach().to("cpu", copy=True)
