"""The ways on which buckets of weights leave the trainer. Each announces where they will be, then sends them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from agentenv.engine.bucket_files import sync, write_bucket
from agentenv.engine.cuda_ipc import cuda_handle, require_cuda
from agentenv.engine.shared_weights import SharedWeights
from agentenv.engine.transfer import PreparedUpdate
from agentenv.engine.weight_group import WeightGroup
from agentenv.errors import EngineError, UsageError, describe

GROUP_TIMEOUT_S = 60.0
"""For every step of a process group; a receiver gives up earlier."""


class Transport(Protocol):
    """One way. The verbs block and are called from threads, one update at a time: `open`, `send`, `end`."""

    def open(self, update: PreparedUpdate) -> Mapping[str, Any]:
        """Make ready and return, as JSON, where the receiver finds the buckets.

        Raises:
            EngineError: there is no room, or no way.
        """
        ...

    def send(self) -> None:
        """Send bucket after bucket, while the receiver already checks them.

        Raises:
            EngineError: a bucket could not be sent.
        """
        ...

    def end(self, *, is_good: bool) -> None:
        """Free what the update took. Where it failed, the receiver sees that no more will come; idempotent."""
        ...

    def close(self) -> None:
        """Free everything; idempotent."""
        ...


class SharedMemory:
    """Files in the host's shared memory, removed after every update; the receiver maps them and copies nothing."""

    def __init__(self) -> None:
        self._weights: SharedWeights | None = None

    def open(self, update: PreparedUpdate) -> Mapping[str, Any]:
        """See `Transport.open`."""
        self._weights = SharedWeights(update)
        return {"kind": "shm", "folder": self._weights.info.folder}

    def send(self) -> None:
        """See `Transport.send`."""
        assert self._weights is not None
        self._weights.write()

    def end(self, *, is_good: bool) -> None:
        """See `Transport.end`."""
        weights, self._weights = self._weights, None
        if weights is not None:
            weights.remove()

    def close(self) -> None:
        """See `Transport.close`."""
        self.end(is_good=False)


class Broadcast:
    """A process group with the engine's ranks: gloo between hosts or on a CPU, NCCL between GPUs.

    Args:
        backend: of the group.
        host: of the engine; decides on which of our addresses it is awaited.
        num_ranks: of the engine that receive.

    Raises:
        UsageError: NCCL without a GPU.
    """

    def __init__(self, *, backend: Literal["gloo", "nccl"], host: str = "127.0.0.1", num_ranks: int = 1) -> None:
        if backend == "nccl":
            require_cuda()
        self._backend = backend
        self._host = host
        self._num_ranks = num_ranks
        self._group: WeightGroup | None = None
        self._is_joined = False
        self._update: PreparedUpdate | None = None

    def open(self, update: PreparedUpdate) -> Mapping[str, Any]:
        """See `Transport.open`; the group of the first update serves the later ones too."""
        if self._group is None:
            self._group = WeightGroup(
                backend=self._backend,
                num_ranks=self._num_ranks,
                server_host=self._host,
                timeout_s=GROUP_TIMEOUT_S,
            )
            self._is_joined = False
        self._update = update
        group = self._group
        place = {
            "backend": group.backend,
            "name": group.name,
            "address": group.address,
            "port": group.port,
            "world_size": group.world_size,
        }
        return {"kind": "group", "group": place}

    def send(self) -> None:
        """See `Transport.send`."""
        assert self._update is not None
        for index in range(len(self._update.manifest.buckets)):
            self.send_bucket(index)

    def send_bucket(self, index: int) -> None:
        """Send one bucket; the first one waits until all ranks are here.

        Raises:
            EngineError: a rank did not come, or went away.
        """
        assert self._group is not None
        assert self._update is not None
        if not self._is_joined:
            self._group.join()
            self._is_joined = True
        self._group.broadcast(self._update.bucket(index).values())

    def end(self, *, is_good: bool) -> None:
        """See `Transport.end`; a group in which a step failed has lost step."""
        self._update = None
        if not is_good:
            group, self._group = self._group, None
            if group is not None:
                group.leave()

    def close(self) -> None:
        """See `Transport.close`."""
        self.end(is_good=False)


class CudaIpc:
    """Handles of GPU memory, for an engine on the same GPU: it reads the trainer's own tensors.

    Raises:
        UsageError: there is no GPU.
    """

    def __init__(self) -> None:
        require_cuda()
        self._update: PreparedUpdate | None = None

    def open(self, update: PreparedUpdate) -> Mapping[str, Any]:
        """See `Transport.open`."""
        self._update = update  # keeps the tensors until the receiver is done
        sent = [name for bucket in update.manifest.buckets for name in bucket]
        return {"kind": "ipc", "handles": {name: cuda_handle(update.tensors[name]) for name in sent}}

    def send(self) -> None:
        """There is nothing to send."""

    def end(self, *, is_good: bool) -> None:
        """See `Transport.end`."""
        self._update = None

    def close(self) -> None:
        """See `Transport.close`."""
        self.end(is_good=False)


class Disk:
    """A folder per version on a file system that both sides see. It is on the disk before it has its name.

    Args:
        folder: where the folders of versions go; made if it is missing.

    Raises:
        UsageError: it cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._written: Path | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"weights cannot go to {folder}: {describe(error)}") from error

    def open(self, update: PreparedUpdate) -> Mapping[str, Any]:
        """Write everything; see `Transport.open`."""
        manifest = update.manifest
        place = self._folder / f"version-{manifest.version}-{manifest.nonce[:8]}"
        beside = place.with_suffix(".part")
        try:
            beside.mkdir()
            for index in range(len(manifest.buckets)):
                write_bucket(beside, index, update.bucket(index), nonce=manifest.nonce, is_durable=True)
            listed = beside / "manifest.json"
            listed.write_text(json.dumps(manifest.to_json()))
            sync(listed)
            sync(beside)
            beside.rename(place)
            sync(self._folder)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise EngineError(f"weights could not be written to {place}: {describe(error)}") from error
        except EngineError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        self._written = place
        return {"kind": "disk", "folder": str(place.resolve())}

    def send(self) -> None:
        """Everything is on the disk already."""

    def end(self, *, is_good: bool) -> None:
        """Remove the folder: the engine has its content, or refused it."""
        written, self._written = self._written, None
        if written is not None:
            shutil.rmtree(written, ignore_errors=True)

    def close(self) -> None:
        """See `Transport.close`."""
        self.end(is_good=False)
