"""Takes weight updates for an engine from a trainer in another process: all of an update is served, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from agentenv.engine.protocol import Ack, Engine, WeightManifest
from agentenv.engine.transfer import TransferManifest, check_bucket
from agentenv.errors import EngineError
from agentenv.offload import within

T = TypeVar("T")

SWAP_TIMEOUT_S = 60.0
"""For each of pausing, swapping and resuming the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a trainer is told when it begins to send.

    Attributes:
        version: of the weights that the engine holds.
        dtype: in which it holds them; empty where it does not say.
    """

    version: int
    dtype: str


class WeightReceiver:
    """Collects and checks an update while the engine goes on with the old weights, then swaps between two tokens.

    One trainer owns the engine's weights at a time. The cost is one copy of what is sent, beside the engine, for as
    long as the update lasts.

    Args:
        engine: takes the weights.
        dtype: in which it holds them, e.g. `"bfloat16"`; empty where the trainer's is right.
        held: returns the weights that the engine holds, by reference, to which an update of some tensors is added. None
            refuses such updates.
    """

    def __init__(
        self, engine: Engine, *, dtype: str = "", held: Callable[[], Mapping[str, Tensor]] | None = None
    ) -> None:
        self._engine = engine
        self._dtype = dtype
        self._held = held
        self._owner = ""
        self._is_busy = False

    async def claim(self, sender: str) -> Greeting:
        """Make `sender` the owner of the engine's weights.

        Raises:
            EngineError: somebody else owns them.
        """
        if self._owner not in ("", sender):
            raise EngineError(
                f"{sender} wants to send weights, but {self._owner} owns this engine; two trainers would overwrite "
                "each other. Stop one of them, or give each its own engine"
            )
        self._owner = sender
        return Greeting(version=(await self._engine.health()).version, dtype=self._dtype)

    def release(self, sender: str) -> None:
        """End an ownership; that of somebody else stays."""
        if self._owner == sender:
            self._owner = ""

    async def update(self, manifest: TransferManifest, buckets: Iterator[dict[str, Tensor]]) -> Ack:
        """Take one update.

        Cancelling before the swap leaves the old weights.

        Args:
            manifest: what comes.
            buckets: the pieces in order; it may block, and runs in a thread.

        Returns:
            The engine's acknowledgement, whose checksum is the manifest's.

        Raises:
            EngineError: the update is stale, torn, damaged, of another sender, or came during another one, or the
                engine refused it: the old weights serve on. Or the engine holds other bits than were sent: it then
                stays paused until an update succeeds.
            DeadlineExceeded: the engine took too long; it may still be paused.
        """
        if self._is_busy:
            raise EngineError(f"an update is under way; version {manifest.version} of {manifest.sender} is refused")
        self._is_busy = True
        try:
            base = await self._check(manifest)
            staged = await asyncio.to_thread(_staged, manifest, buckets)
            return await self._swap(manifest, {**base, **staged})
        finally:
            self._is_busy = False

    async def _check(self, manifest: TransferManifest) -> Mapping[str, Tensor]:
        """Refuse what need not even be read; returns the weights to which the update is added."""
        if manifest.sender != self._owner:
            raise EngineError(f"{manifest.sender} sends weights, but {self._owner or 'nobody'} owns this engine")
        version = (await self._engine.health()).version
        if manifest.version <= version:
            raise EngineError(
                f"weights of version {manifest.version} came, but the engine has version {version}; versions must grow"
            )
        if manifest.base_version is None:
            return {}
        if manifest.base_version != version or self._held is None:
            raise EngineError(
                f"version {manifest.version} changes version {manifest.base_version}, but the engine has version "
                f"{version}{'' if self._held else ' and takes whole models only'}; send everything"
            )
        return self._held()

    async def _swap(self, manifest: TransferManifest, tensors: Mapping[str, Tensor]) -> Ack:
        await _phase(self._engine.pause("keep"), "pause")
        given = WeightManifest(version=manifest.version, tensors=tensors, adapter=manifest.adapter)
        try:
            ack = await _phase(self._engine.update_weights(given), "swap")
        except EngineError:
            await _phase(self._engine.resume(), "resume")  # it refused; what it had serves on
            raise
        if (ack.version, ack.checksum) != (manifest.version, manifest.checksum):
            raise EngineError(
                f"the engine holds version {ack.version} with checksum {ack.checksum}; version {manifest.version} with "
                f"{manifest.checksum} was sent. It stays paused until an update succeeds"
            )
        await _phase(self._engine.resume(), "resume")
        return ack


def _staged(manifest: TransferManifest, buckets: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collect the buckets: while one is checked, the next one comes."""
    staged: dict[str, Tensor] = {}
    ahead = ThreadPoolExecutor(1, thread_name_prefix="agentenv-weights")
    try:
        coming = ahead.submit(next, buckets, None)
        for index in range(len(manifest.buckets)):
            bucket = coming.result()
            if bucket is None:
                raise EngineError(f"{index} of {len(manifest.buckets)} buckets came: the update is torn")
            coming = ahead.submit(next, buckets, None)
            check_bucket(manifest, index, bucket)
            staged |= bucket
        coming.result()  # lets the source end in its own way
        return staged
    finally:
        ahead.shutdown(wait=False)  # a failure must not wait for a bucket that will not come


async def _phase(awaitable: Awaitable[T], name: str) -> T:
    return await within(awaitable, timeout_s=SWAP_TIMEOUT_S, side="engine", where=f"weight update: {name}")
