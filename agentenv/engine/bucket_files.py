"""Buckets of a weight update as safetensors files of one folder: each is there whole, or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agentenv.engine.transfer import TransferManifest
from agentenv.errors import EngineError, describe

STALL_TIMEOUT_S = 3.0
"""Seconds without a new bucket after which an update is torn."""

_NONCE = "agentenv_nonce"
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.0005, 0.02


def bucket_path(folder: Path, index: int) -> Path:
    """Return where a bucket's file is."""
    return folder / f"bucket-{index:05d}.safetensors"


def write_bucket(folder: Path, index: int, tensors: Mapping[str, Tensor], *, nonce: str, is_durable: bool) -> None:
    """Write a bucket beside its place and then rename it.

    Args:
        folder: of the update.
        index: of the bucket.
        tensors: of the bucket.
        nonce: of the update.
        is_durable: True waits until the bytes are on the disk.

    Raises:
        EngineError: it could not be written.
    """
    path = bucket_path(folder, index)
    beside = path.with_suffix(".part")
    try:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, beside, {_NONCE: nonce})
        if is_durable:
            sync(beside)
        beside.rename(path)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"weights could not be written to {path}: {describe(error)}") from error


def read_buckets(
    folder: Path, manifest: TransferManifest, *, is_alive: Callable[[], bool], timeout_s: float = STALL_TIMEOUT_S
) -> Iterator[dict[str, Tensor]]:
    """Yield the buckets as they appear. The tensors are the files themselves, mapped; compare them with the manifest.

    Args:
        folder: of the update.
        manifest: of the update.
        is_alive: False once nobody will write any more.
        timeout_s: for every bucket.

    Raises:
        EngineError: the sender died or stalled, or a file is torn or of another update.
    """
    for index in range(len(manifest.buckets)):
        path = bucket_path(folder, index)
        _await_file(path, manifest, is_alive=is_alive, timeout_s=timeout_s)
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                if (file.metadata() or {}).get(_NONCE) != manifest.nonce:
                    raise EngineError(f"{path} belongs to another weight update than version {manifest.version}")
                yield {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise EngineError(f"{path} cannot be read as weights, it is torn: {describe(error)}") from error


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _await_file(path: Path, manifest: TransferManifest, *, is_alive: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    wait_s = _SHORTEST_WAIT_S
    what = f"{path.name} of version {manifest.version}"
    while not path.exists():
        was_alive = is_alive()
        if path.exists():  # written before its owner went
            return
        if not was_alive:
            place = "" if path.parent.exists() else f"; {path.parent} does not exist here, are both on one host?"
            raise EngineError(f"{what} never came, its sender is gone: the update is torn{place}")
        if time.monotonic() > deadline:
            raise EngineError(f"{what} did not come within {timeout_s:g} s: the update is torn")
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
