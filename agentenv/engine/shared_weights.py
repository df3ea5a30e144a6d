"""Tensors handed to another process of this host through files in shared memory, bucket by bucket."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agentenv.engine.bucket_files import read_buckets, write_bucket
from agentenv.engine.protocol import LoraAdapter
from agentenv.engine.transfer import PreparedUpdate, TransferManifest, check_bucket, checked_tensors
from agentenv.engine.weights import weights_checksum
from agentenv.errors import EngineError, describe

_PREFIX = "agentenv-weights-"
_SHARED_MEMORY = Path("/dev/shm")
_LOCK = ".lock"
_REMOVALS = 10  # a thread that still writes may put one file more into a folder that is being emptied
_MARGIN_BYTES = 1 << 20  # header and rounding of the file system


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWeightsInfo:
    """What the receiver must find; anything else is refused. Crosses processes as JSON.

    Attributes:
        folder: where the buckets appear.
        manifest: what they hold.
    """

    folder: str
    manifest: TransferManifest

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them."""
        return {"folder": self.folder, "manifest": self.manifest.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SharedWeightsInfo:
        """Read what `to_json` returned.

        Raises:
            EngineError: a field is missing or has another type.
        """
        try:
            return cls(folder=str(value["folder"]), manifest=TransferManifest.from_json(value["manifest"]))
        except (KeyError, TypeError) as error:
            raise EngineError(f"not a description of shared weights: {describe(error)}") from error


class SharedWeights:
    """Owner of a folder of buckets: it is there from construction until `remove`, and is removed exactly once.

    A receiver may begin before the first bucket is written: it checks one while the next is copied. The owner holds a
    lock; what nobody locks belonged to a process that died, and the next owner removes it.

    Args:
        update: what is sent.

    Raises:
        EngineError: there is no room. Nothing is left.
    """

    def __init__(self, update: PreparedUpdate) -> None:
        self._update = update
        self._folder = _OwnedFolder(update.num_bytes + _MARGIN_BYTES)
        self.info = SharedWeightsInfo(folder=str(self._folder.path), manifest=update.manifest)

    def write(self) -> None:
        """Copy bucket after bucket; blocks.

        Raises:
            EngineError: a bucket could not be written, or the folder was removed meanwhile.
        """
        for index in range(len(self._update.manifest.buckets)):
            self.write_bucket(index)

    def write_bucket(self, index: int) -> None:
        """Copy one bucket.

        Raises:
            EngineError: it could not be written.
        """
        nonce = self._update.manifest.nonce
        write_bucket(self._folder.path, index, self._update.bucket(index), nonce=nonce, is_durable=False)

    def remove(self) -> None:
        """Unlink the files; idempotent. A receiver that has them open can read on; one that waits gives up."""
        self._folder.remove()

    def __enter__(self) -> SharedWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def shared_buckets(info: SharedWeightsInfo) -> Iterator[dict[str, Tensor]]:
    """Yield the buckets of a `SharedWeights` in another process as they come, unchecked.

    Raises:
        EngineError: the owner is gone or stalls, or a file is torn or of another update.
    """
    folder = Path(info.folder)
    lock = folder.with_suffix(_LOCK)
    return read_buckets(folder, info.manifest, is_alive=lambda: _is_owned(lock))


def received_weights(info: SharedWeightsInfo, *, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read everything that a `SharedWeights` writes in another process, checked bucket by bucket as it comes.

    Args:
        info: what the owner said.
        device: where checksums are computed, one tensor at a time.

    Returns:
        Name -> CPU tensor in the order of the manifest. The tensors are the files themselves, mapped; do not keep them.

    Raises:
        EngineError: a file is missing, torn, of another update, or holds other tensors or bytes than announced.
    """
    manifest = info.manifest
    tensors: dict[str, Tensor] = {}
    for index, bucket in enumerate(shared_buckets(info)):
        check_bucket(manifest, index, OnDevice(bucket, torch.device(device)))
        tensors |= bucket
    return {tensor.name: tensors[tensor.name] for tensor in manifest.tensors if tensor.name in tensors}


class AdapterFolder:
    """Owner of a peft adapter folder in shared memory; engines load it by its path.

    Args:
        tensors: the adapter's matrices under the names of a peft checkpoint.
        adapter: its shape.

    Raises:
        EngineError: a value is no tensor or not finite, or the folder cannot be written. Nothing is left.
    """

    def __init__(self, tensors: Mapping[str, object], adapter: LoraAdapter) -> None:
        checked = checked_tensors(tensors, dtype=None)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in checked.values())
        self._folder = _OwnedFolder(num_bytes + _MARGIN_BYTES)
        self.path = self._folder.path
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "target_modules": list(adapter.target_modules),
            "bias": "none",
            "inference_mode": True,
        }
        try:
            (self.path / "adapter_config.json").write_text(json.dumps(settings))
            weights = self.path / "adapter_model.safetensors"
            save_file({name: tensor.cpu() for name, tensor in checked.items()}, weights, {"format": "pt"})
            with safe_open(weights, framework="pt", device="cpu") as file:
                self.checksum = weights_checksum({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise EngineError(f"an adapter could not be written to {self.path}: {describe(error)}") from error
        finally:
            if not hasattr(self, "checksum"):
                self.remove()

    def remove(self) -> None:
        """Delete the folder; idempotent."""
        self._folder.remove()


class _OwnedFolder:
    """A new private folder with room for `num_bytes`, and a locked file beside it; both are removed exactly once.

    The lock is on a file of its own, because writers of weights replace the file that they are given.
    """

    def __init__(self, num_bytes: int) -> None:
        place = _folder_with_room(num_bytes)
        _remove_abandoned(place)
        self._lock, self._descriptor = _locked_file(place)
        self.path = self._lock.with_suffix("")
        self._is_removed = False
        self.path.mkdir(mode=0o700)

    def remove(self) -> None:
        if not self._is_removed:
            self._is_removed = True
            _remove_with_lock(self._lock)
            os.close(self._descriptor)


def _locked_file(place: Path) -> tuple[Path, int]:
    """Make a file that this process holds locked; returns its path and descriptor."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_LOCK, dir=place)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return Path(name), descriptor
        os.close(descriptor)  # between the two calls somebody took it for abandoned


def _remove_with_lock(lock: Path) -> None:
    """Remove a folder, and its lock once the folder is gone: a folder that has a lock is found again."""
    folder = lock.with_suffix("")
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            lock.unlink(missing_ok=True)
            return


def _folder_with_room(num_bytes: int) -> Path:
    """Return shared memory where it is large enough (containers often have 64 MB), else a temporary folder."""
    temporary = Path(tempfile.gettempdir())
    for folder in (_SHARED_MEMORY, temporary):
        if folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= num_bytes:
            return folder
    raise EngineError(
        f"neither {_SHARED_MEMORY} nor {temporary} has {num_bytes} bytes free for a weight update; "
        "make room, or give the container a larger shared memory"
    )


def _is_owned(lock: Path) -> bool:
    """True while the process that made a folder lives and has not removed it."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)  # gives the lock back, where we got it
    return False


def _remove_abandoned(place: Path) -> None:
    """Remove what belonged to a process that died before it could: nobody holds the lock."""
    for lock in place.glob(f"{_PREFIX}*{_LOCK}"):
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # its owner removed it meanwhile, or is another user
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_with_lock(lock)
        except OSError:
            pass  # its owner lives
        finally:
            os.close(descriptor)


class OnDevice(Mapping[str, Tensor]):
    """Tensors moved to a device one at a time, when they are read."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._tensors = tensors
        self._device = device

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
