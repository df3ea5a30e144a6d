"""Publishes weights to an engine in another process: prepare, announce, send while it checks, and prove the arrival."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import torch
from torch import Tensor

from agentenv.engine.protocol import Ack, LoraAdapter
from agentenv.engine.transfer import BUCKET_BYTES, PreparedUpdate, TransferManifest, prepare
from agentenv.errors import EngineError
from agentenv.offload import within
from agentenv.trainers.sync.link import ReceiverLink
from agentenv.trainers.sync.publish import PHASE_TIMEOUT_S
from agentenv.trainers.sync.transports import Transport


class Publisher:
    """Sends versions, one after the other, to the receiver at the other end of a link.

    Args:
        link: to the receiver; owned.
        transport: how buckets travel; owned.
        sends_changes: True sends only tensors that differ from the version that the engine acknowledged, False all.
        bucket_bytes: upper bound on a bucket.
    """

    def __init__(
        self,
        link: ReceiverLink,
        transport: Transport,
        *,
        sends_changes: bool = False,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._link = link
        self._transport = transport
        self._sends_changes = sends_changes
        self._bucket_bytes = bucket_bytes
        self._acknowledged: TransferManifest | None = None

    async def publish(self, weights: Mapping[str, Tensor], *, version: int, adapter: LoraAdapter | None = None) -> Ack:
        """Send weights, which must not change meanwhile; the engine samples on until the moment of the swap.

        Args:
            weights: by name; the adapter's matrices where `adapter` is given.
            version: of these weights, larger than any before.
            adapter: None for a whole model.

        Raises:
            EngineError: a tensor cannot be sent, or the receiver refused: the old weights serve on, unless the error
                says that the engine stays paused.
            DeadlineExceeded: a phase took longer than `PHASE_TIMEOUT_S`.
        """
        dtype = getattr(torch, self._link.greeting.dtype) if self._link.greeting.dtype else None
        preparing = asyncio.to_thread(
            prepare,
            weights,
            version=version,
            sender=self._link.sender,
            dtype=dtype,
            base=self._acknowledged if self._sends_changes else None,
            adapter=adapter,
            bucket_bytes=self._bucket_bytes,
        )
        update = await within(preparing, timeout_s=PHASE_TIMEOUT_S, side="engine", where="weight update: prepare")
        self._acknowledged = None  # until this one is
        ack = await self._deliver(update)
        manifest = update.manifest
        if (ack.version, ack.checksum) != (version, manifest.checksum):
            raise EngineError(
                f"the engine acknowledged version {ack.version} with checksum {ack.checksum}; "
                f"version {version} with {manifest.checksum} was sent"
            )
        self._acknowledged = manifest
        return ack

    async def close(self) -> None:
        """Hang up and free the transport; idempotent."""
        await self._link.close()
        self._transport.close()

    async def _deliver(self, update: PreparedUpdate) -> Ack:
        is_good = False
        try:
            opening = asyncio.to_thread(self._transport.open, update)
            place = await within(opening, timeout_s=PHASE_TIMEOUT_S, side="engine", where="weight update: open")
            said = {"manifest": update.manifest.to_json(), "transport": dict(place)}
            sending = asyncio.create_task(asyncio.to_thread(self._transport.send))
            asking = asyncio.create_task(self._link.ask(said, timeout_s=PHASE_TIMEOUT_S))
            try:
                await asyncio.wait({sending, asking}, return_when=asyncio.FIRST_EXCEPTION)
                if sending.done() and sending.exception() is not None:
                    self._transport.end(is_good=False)  # so that the receiver gives up
                answer = await asking  # the receiver knows best what went wrong
                await sending
                is_good = True
            finally:
                self._transport.end(is_good=is_good)
                asking.cancel()
                sending.add_done_callback(_look_away)
        except BaseException:
            self._transport.end(is_good=False)
            raise
        return Ack(version=int(answer["version"]), checksum=str(answer["checksum"]), dtype=str(answer["dtype"]))


def _look_away(sending: asyncio.Task[None]) -> None:
    """A failure of sending is the receiver's failure too, and that one was raised."""
    if not sending.cancelled():
        sending.exception()
