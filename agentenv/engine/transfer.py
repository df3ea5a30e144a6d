"""One weight update on its way to another process: the manifest that is agreed on first, then the buckets."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from agentenv.engine.protocol import LoraAdapter
from agentenv.engine.weights import combined_checksum, tensor_checksum
from agentenv.errors import EngineError, describe

BUCKET_BYTES = 64 << 20
"""Bytes of tensors that travel together: while one bucket is checked, the next is on its way."""

_CHUNK = 1 << 16  # elements looked at together: what fits the caches
# an element is infinite or NaN when these bits of it are all set
_EXPONENTS = {
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}
_NUM_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Name, dtype (as `"bfloat16"`), shape and `tensor_checksum` of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    checksum: str


@dataclass(frozen=True, kw_only=True)
class TransferManifest:
    """What the receiver will hold after the update, and in which pieces it comes. Crosses processes as JSON.

    Attributes:
        version: of the weights.
        nonce: names this update; a piece of another one is never taken for a piece of it.
        sender: who sends; an engine takes weights from one owner.
        tensors: everything that the receiver holds afterwards, in the order in which it is to be loaded.
        buckets: names of the tensors that are sent, piece by piece.
        base_version: of the weights that tensors which are not sent belong to; None where all are sent.
        adapter: None where `tensors` are a model; else they are this adapter's matrices.
    """

    version: int
    nonce: str
    sender: str = ""
    tensors: tuple[TensorInfo, ...]
    buckets: tuple[tuple[str, ...], ...]
    base_version: int | None = None
    adapter: LoraAdapter | None = None

    @cached_property
    def by_name(self) -> dict[str, TensorInfo]:
        """The tensors by their name."""
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def checksum(self) -> str:
        """`weights_checksum` of all tensors."""
        return combined_checksum({tensor.name: tensor.checksum for tensor in self.tensors})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TransferManifest:
        """Read what `to_json` returned.

        Raises:
            EngineError: a field is missing or has another type, or a bucket names a tensor that is not listed.
        """
        try:
            manifest = cls(
                version=int(value["version"]),
                nonce=str(value["nonce"]),
                sender=str(value["sender"]),
                tensors=tuple(_tensor_info(entry) for entry in value["tensors"]),
                buckets=tuple(tuple(map(str, names)) for names in value["buckets"]),
                base_version=None if value["base_version"] is None else int(value["base_version"]),
                adapter=None if value["adapter"] is None else _adapter(value["adapter"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(f"not a manifest of weights: {describe(error)}") from error
        sent = [name for bucket in manifest.buckets for name in bucket]
        odd = set(sent) ^ set(manifest.by_name) if manifest.base_version is None else set(sent) - set(manifest.by_name)
        if odd or len(sent) != len(set(sent)) or len(manifest.by_name) != len(manifest.tensors):
            raise EngineError(f"not a manifest of weights: buckets and tensors disagree about {shown(odd or sent)}")
        return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedUpdate:
    """A manifest and the tensors that belong to it.

    Attributes:
        manifest: what is announced.
        tensors: every tensor by name, detached, contiguous, in the dtype in which it is sent.
    """

    manifest: TransferManifest
    tensors: Mapping[str, Tensor]

    def bucket(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of one bucket."""
        return {name: self.tensors[name] for name in self.manifest.buckets[index]}

    @property
    def num_bytes(self) -> int:
        """Of the tensors that are sent."""
        return sum(self.tensors[name].nbytes for bucket in self.manifest.buckets for name in bucket)


@torch.no_grad()
def prepare(
    tensors: Mapping[str, object],
    *,
    version: int,
    sender: str = "",
    dtype: torch.dtype | None = None,
    base: TransferManifest | None = None,
    adapter: LoraAdapter | None = None,
    bucket_bytes: int = BUCKET_BYTES,
) -> PreparedUpdate:
    """Check, cast and describe the weights of an update; nothing is copied where no cast is needed.

    Args:
        tensors: name -> tensor, on any device.
        version: of these weights.
        sender: who sends.
        dtype: floating tensors are cast to it; None leaves them as they are.
        base: what the receiver holds: only tensors that differ from it are sent, provided that names, dtypes and shapes
            are the same. None sends all.
        adapter: whose matrices `tensors` are.
        bucket_bytes: upper bound on a bucket; a larger tensor is a bucket of its own.

    Raises:
        EngineError: there are none, a value is no tensor, or one is not finite in `dtype`.
    """
    cast = checked_tensors(tensors, dtype=dtype)
    infos = tuple(
        TensorInfo(name=n, dtype=_dtype_name(t), shape=tuple(t.shape), checksum=tensor_checksum(t))
        for n, t in cast.items()
    )
    if base is not None and (base.adapter != adapter or [_form(t) for t in base.tensors] != [_form(t) for t in infos]):
        base = None
    sent = [info.name for info in infos if base is None or base.by_name[info.name].checksum != info.checksum]
    manifest = TransferManifest(
        version=version,
        nonce=secrets.token_hex(16),
        sender=sender,
        tensors=infos,
        buckets=_buckets({name: cast[name].nbytes for name in sent}, bucket_bytes=bucket_bytes),
        base_version=None if base is None else base.version,
        adapter=adapter,
    )
    return PreparedUpdate(manifest=manifest, tensors=cast)


@torch.no_grad()
def check_bucket(manifest: TransferManifest, index: int, tensors: Mapping[str, Tensor]) -> None:
    """Compare a bucket that arrived with what was announced, down to the last bit.

    Raises:
        EngineError: names, dtypes, shapes or bits differ.
    """
    if set(tensors) != set(manifest.buckets[index]):
        odd = set(tensors) ^ set(manifest.buckets[index])
        raise EngineError(
            f"bucket {index} of version {manifest.version} holds other names than announced: {shown(odd)}"
        )
    other = [
        f"{name} is {_dtype_name(tensor)} {tuple(tensor.shape)}, {said.dtype} {said.shape} was announced"
        for name, tensor in tensors.items()
        if (_dtype_name(tensor), tuple(tensor.shape)) != ((said := manifest.by_name[name]).dtype, said.shape)
    ]
    if other:
        raise EngineError(f"bucket {index} holds other tensors than announced: {shown(other)}")
    damaged = [name for name, tensor in tensors.items() if tensor_checksum(tensor) != manifest.by_name[name].checksum]
    if damaged:
        raise EngineError(
            f"bucket {index} of version {manifest.version} is damaged, checksums differ: {shown(damaged)}"
        )


def checked_tensors(tensors: Mapping[str, object], *, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return contiguous tensors by name, none of which shares storage with another.

    Args:
        tensors: name -> tensor.
        dtype: floating tensors are cast to it; None leaves them as they are.

    Raises:
        EngineError: there are none, a value is no tensor, or one is not finite in `dtype`.
    """
    wrong = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if wrong or not tensors:
        raise EngineError(f"weight update refused, not a torch tensor: {shown(wrong)}" if wrong else "no weights came")
    cast: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            tensor = value.detach()
            tensor = (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).contiguous()
            place = tensor.untyped_storage().data_ptr()
            cast[name] = tensor.clone() if tensor.numel() and place in seen else tensor
            seen.add(place)
    infinite = [name for name, tensor in cast.items() if not _is_finite(tensor)]
    if infinite:
        raise EngineError(f"weight update refused, not finite in the engine's dtype: {shown(infinite)}")
    return cast


def shown(items: Iterable[str]) -> str:
    """Return the first few names for an error, and how many more there are."""
    listed = sorted(items)
    more = f" and {len(listed) - _NUM_SHOWN} more" if len(listed) > _NUM_SHOWN else ""
    return ", ".join(listed[:_NUM_SHOWN]) + more


def _buckets(num_bytes: Mapping[str, int], *, bucket_bytes: int) -> tuple[tuple[str, ...], ...]:
    buckets: list[list[str]] = []
    room = 0
    for name, size in num_bytes.items():
        if not buckets or size > room:
            buckets.append([])
            room = bucket_bytes
        buckets[-1].append(name)
        room -= size
    return tuple(map(tuple, buckets))


def _is_finite(tensor: Tensor) -> bool:
    """True when no element is infinite or NaN.

    On the host it is read from the exponents in NumPy: torch's threads contend with an engine on the same cores.
    """
    if tensor.device.type != "cpu" or tensor.dtype not in _EXPONENTS:
        return bool(torch.isfinite(tensor).all())
    kind, exponent = _EXPONENTS[tensor.dtype]
    words = tensor.view(-1).view(kind).numpy()
    return all(
        bool(((words[start : start + _CHUNK] & exponent) != exponent).all()) for start in range(0, len(words), _CHUNK)
    )


def _form(info: TensorInfo) -> tuple[str, str, tuple[int, ...]]:
    return info.name, info.dtype, info.shape


def _tensor_info(value: Mapping[str, Any]) -> TensorInfo:
    shape = tuple(int(size) for size in value["shape"])
    return TensorInfo(name=str(value["name"]), dtype=str(value["dtype"]), shape=shape, checksum=str(value["checksum"]))


def _adapter(value: Mapping[str, Any]) -> LoraAdapter:
    modules = tuple(str(name) for name in value["target_modules"])
    return LoraAdapter(rank=int(value["rank"]), alpha=float(value["alpha"]), target_modules=modules)


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
