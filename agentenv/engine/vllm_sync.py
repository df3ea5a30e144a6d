"""Sends whole models to a vLLM engine through its native weight transfer: shared memory, NCCL or CUDA IPC."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from agentenv.engine.protocol import WeightManifest
from agentenv.engine.shared_weights import SharedWeights
from agentenv.engine.transfer import checked_tensors, prepare
from agentenv.engine.vllm_settings import SHM_BACKEND
from agentenv.engine.weights import weights_checksum
from agentenv.errors import UsageError

_UNSAFE = "VLLM_ALLOW_INSECURE_SERIALIZATION"


class WeightControl(Protocol):
    """The verbs of vLLM's weight transfer, in process or over HTTP."""

    async def init_transfer(self, init_info: dict[str, Any]) -> None:
        """Connect the workers; once."""
        ...

    async def start_update(self) -> None:
        """Begin an update."""
        ...

    async def update(self, update_info: dict[str, Any]) -> None:
        """Make every worker take weights."""
        ...

    async def finish_update(self, version: str) -> None:
        """End an update and name what is served from now on."""
        ...

    async def num_workers(self) -> int:
        """Number of workers that take weights."""
        ...


class WeightSender:
    """Sends weights to one engine.

    Args:
        control: the engine.
        backend: name in vLLM's registry.
        dtype: the engine's, e.g. `"bfloat16"`; weights are cast to it on this side. Empty sends them as they are.
    """

    def __init__(self, control: WeightControl, *, backend: str, dtype: str) -> None:
        self._control = control
        self._backend = backend
        self._dtype: torch.dtype | None = getattr(torch, dtype) if dtype else None
        self._is_connected = False
        self._trainer: Any = None
        self.has_begun = False
        """True once the update under way, or the last one, may have changed weights."""

    async def send(self, manifest: WeightManifest) -> str:
        """Send all tensors; returns their checksum in the engine's dtype.

        Raises:
            EngineError: a tensor cannot be sent, or the engine refused. See `OLD_WEIGHTS_SERVE`.
            UsageError: the back end needs a GPU that is not there.
        """
        self.has_begun = False
        if self._backend == SHM_BACKEND:
            return await self._send_shared(manifest)
        return await self._send_gpu(manifest)

    async def _send_shared(self, manifest: WeightManifest) -> str:
        prepared = await asyncio.to_thread(prepare, manifest.tensors, version=manifest.version, dtype=self._dtype)
        with SharedWeights(prepared) as weights:
            if not self._is_connected:
                await self._control.init_transfer({})
                self._is_connected = True
            await self._control.start_update()
            self.has_begun = True
            writing = asyncio.create_task(asyncio.to_thread(weights.write))
            # where writing fails, the workers see at once that nothing more will come
            writing.add_done_callback(
                lambda done: None if done.cancelled() or not done.exception() else weights.remove()
            )
            try:
                # the workers check a bucket while the next is written, and load once all have come
                await self._control.update({"weights": weights.info.to_json()})
                await writing
            finally:
                weights.remove()  # ends a writer that nobody waits for any more
                await asyncio.wait({writing})
            await self._control.finish_update(str(manifest.version))
            return weights.info.manifest.checksum

    async def _send_gpu(self, manifest: WeightManifest) -> str:
        """Let vLLM's own trainer-side engine drive the update; it calls `_Client` from its thread."""
        tensors = await asyncio.to_thread(checked_tensors, manifest.tensors, dtype=self._dtype)
        client = _Client(self._control, loop=asyncio.get_running_loop(), version=str(manifest.version))
        if self._trainer is None:
            _check_gpu(self._backend)
            num_workers = await self._control.num_workers()
            self._trainer = await asyncio.to_thread(
                _connected, self._backend, client=client, tensors=tensors, num_workers=num_workers
            )
        self._trainer.client = client
        self._trainer.source = _source(tensors)
        self.has_begun = True
        try:
            await asyncio.to_thread(self._trainer.send_weights)
        finally:
            self._trainer.source = None  # the trainer's tensors must not live on in here
        return weights_checksum(tensors)


class _Client:
    """The four calls that vLLM's trainer-side engines make, from a thread of theirs, answered by our event loop."""

    def __init__(self, control: WeightControl, *, loop: asyncio.AbstractEventLoop, version: str) -> None:
        self._control = control
        self._loop = loop
        self._version = version

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._wait(self._control.init_transfer(init_info))

    def start_weight_update(self) -> None:
        self._wait(self._control.start_update())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._wait(self._control.update(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._wait(self._control.finish_update(self._version))

    def _wait(self, call: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(call, self._loop).result()


def _check_gpu(backend: str) -> None:
    if not torch.cuda.is_available():
        raise UsageError(f"weight_sync {backend} moves weights between GPUs, and torch sees none here; take shm")
    if backend == "ipc" and os.environ.get(_UNSAFE) != "1":
        raise UsageError(
            f"weight_sync ipc hands pickled CUDA handles to vLLM's workers, which read them only under {_UNSAFE}=1; "
            "set it for engines of your own on this host, or take shm or nccl"
        )


def _connected(backend: str, *, client: _Client, tensors: Mapping[str, Tensor], num_workers: int) -> Any:
    """Return vLLM's trainer-side engine, connected to the workers; blocks until they have met."""
    try:
        from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports]
            WeightTransferTrainerFactory,
        )
        from vllm.distributed.weight_transfer.ipc_engine import (  # pyright: ignore[reportMissingImports]
            IPCTrainerInitInfo,
        )
        from vllm.distributed.weight_transfer.nccl_engine import (  # pyright: ignore[reportMissingImports]
            NCCLTrainerInitInfo,
        )
    except ImportError as error:
        raise UsageError(
            f"weight_sync {backend} uses vLLM's own sender, so the trainer's environment needs vllm too; take shm"
        ) from error
    if backend == "ipc":
        init: Any = IPCTrainerInitInfo(rank=0)
    else:
        init = NCCLTrainerInitInfo(
            master_address=socket.gethostbyname(socket.gethostname()),
            master_port=_free_port(),
            world_size=1 + num_workers,
            rank=0,
        )
    return WeightTransferTrainerFactory.trainer_init(init, client=client, source=_source(tensors))


def _source(tensors: Mapping[str, Tensor]) -> Any:
    from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
        ParamMeta,
        WeightSource,
    )

    class TensorSource(WeightSource):
        """The tensors of one update."""

        def metadata(self) -> list[Any]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return iter(tensors.items())

    return TensorSource()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]
