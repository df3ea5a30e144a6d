"""New weights on their way into SGLang: checked, cast, packed or laid on disk, and proven to be there."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from agentenv.engine.weights import weights_checksum
from agentenv.errors import EngineError

BUCKET_BYTES = 256 << 20
"""Bytes of weights per request: bounds the memory that one takes on both sides."""

_SHARED_MEMORY = Path("/dev/shm")
_FOLDER = "agentenv-sglang-"
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_PADDINGS = (1, 32, 64)  # SGLang pads vocabularies to 64 rows, and intermediate sizes to 32 on CPU
_FLOATS = ("F32", "F16", "BF16")
_LISTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedWeights:
    """Weights that may be sent.

    Attributes:
        tensors: by checkpoint name: detached, contiguous, owners of exactly their storage, in the engine's dtype.
        checksum: `weights_checksum` of what the trainer gave, in that dtype.
    """

    tensors: Mapping[str, Tensor]
    checksum: str

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def buckets(self, *, max_bytes: int = BUCKET_BYTES) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors in groups of at most so many bytes; a larger tensor is a group of its own."""
        bucket: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            if bucket and sum(t.nbytes for t in bucket.values()) + tensor.nbytes > max_bytes:
                yield bucket
                bucket = {}
            bucket[name] = tensor
        yield bucket


@torch.no_grad()
def prepare_weights(
    tensors: Mapping[str, object],
    *,
    dtype: str,
    shapes: Mapping[str, tuple[int, ...]],
    parameters: Collection[str] = (),
) -> PreparedWeights:
    """Check everything that SGLang does not: it ignores unknown names, and dies of a shape that does not fit.

    Args:
        tensors: the trainer's; values are torch tensors.
        dtype: in which SGLang holds them; empty sends them as they are.
        shapes: of every tensor of the checkpoint that SGLang was started from; empty where it is not known.
        parameters: SGLang's own names, looked at where no shapes are known; empty looks at nothing.

    Raises:
        EngineError: names, shapes or values are wrong. Nothing was sent.
    """
    target: torch.dtype | None = getattr(torch, dtype) if dtype else None
    given = {name: value.detach() for name, value in tensors.items() if isinstance(value, Tensor)}
    _refuse("not a torch tensor:", sorted(set(tensors) - set(given)))
    if not given:
        raise EngineError("weight update refused, it has no tensors")
    kept = _without_tied_head(given, shapes=shapes) if shapes else given
    unknown, missing = misfits(kept, parameters) if parameters else ([], [])
    if shapes:
        unknown, missing = sorted(set(kept) - set(shapes)), sorted(set(shapes) - set(kept))
    _refuse("SGLang has no weight named", unknown)
    _refuse("weights are missing:", missing)
    if shapes:
        _refuse(
            "shapes differ:",
            [
                f"{n} is {tuple(t.shape)}, SGLang has {shapes[n]}"
                for n, t in kept.items()
                if tuple(t.shape) != shapes[n]
            ],
        )
    cast = {name: _own_storage(tensor, dtype=target) for name, tensor in kept.items()}
    is_finite = torch.stack([torch.isfinite(tensor).all().cpu() for tensor in cast.values()]).tolist()
    _refuse("not finite in the engine's dtype:", [name for name, ok in zip(cast, is_finite, strict=True) if not ok])
    return PreparedWeights(tensors=cast, checksum=weights_checksum(given, dtype=target))


def checkpoint_shapes(model_path: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint from the headers of its safetensors files.

    Empty where the folder is not on this machine, holds other files, or quantised weights, which go by other names.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(model_path).glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        except (OSError, ValueError):
            return {}
        header.pop("__metadata__", None)
        if any(entry["dtype"] not in _FLOATS for entry in header.values()):
            return {}
        shapes.update({name: tuple(entry["shape"]) for name, entry in header.items()})
    return {name: shape for name, shape in shapes.items() if not name.endswith("rotary_emb.inv_freq")}


def tensor_payload(named: Mapping[str, Tensor]) -> str:
    """Return a bucket as SGLang takes it: base64 of a pickle of `[(name, tensor), ...]`, values included.

    Pickles are only ever written here, for our own engine, never read.
    """
    buffer = io.BytesIO()
    pickle.dump([(name, tensor.cpu()) for name, tensor in named.items()], buffer, protocol=4)
    return base64.b64encode(buffer.getbuffer()).decode("ascii")


@contextlib.contextmanager
def weights_folder(tensors: Mapping[str, Tensor]) -> Iterator[Path]:
    """Lay weights out as a safetensors folder, in shared memory where there is room, and remove it afterwards.

    Folders of processes that died before they could are removed too.
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    fits = _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free > 2 * size
    parent = _SHARED_MEMORY if fits and os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    _remove_orphans(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=parent))
    try:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, folder / "model.safetensors")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def misfits(sent: Mapping[str, Tensor], parameters: Collection[str]) -> tuple[list[str], list[str]]:
    """Compare names with SGLang's own parameters, where its checkpoint is not at hand.

    Returns:
        Names that SGLang would ignore, and parameters of SGLang that nothing was sent for; both empty for a model that
        it puts together in ways unknown here.
    """
    built_from = {name: _piece_names(name, sent) for name in parameters}
    unbuilt = sorted(name for name, pieces in built_from.items() if not pieces)
    unused = sorted(set(sent) - {piece for pieces in built_from.values() for piece in pieces})
    return ([], []) if unbuilt and unused else (unused, unbuilt)


def unproven_names(sent: Mapping[str, Tensor], reported: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Compare the sums that a CPU SGLang of one rank computes of its parameters with those of what was sent.

    A sum is the first 64 bits of a parameter's SHA-256, so a match proves every bit of it, and that SGLang computes
    with it: a parameter that it fuses from several, pads, or ties to another is rebuilt here and compared as such.

    Args:
        sent: by checkpoint name.
        reported: SGLang's own parameter names and their sums.

    Returns:
        Names whose sum differs though it can be rebuilt, and names that are built in ways unknown here.
    """
    differing: list[str] = []
    unknown: list[str] = []
    for name, reported_sum in reported.items():
        pieces = [sent[piece] for piece in _piece_names(name, sent)]
        if not pieces:
            unknown.append(name)
        elif reported_sum not in (_sum(candidate) for candidate in _candidates(pieces)):
            differing.append(name)
    return differing, unknown


def _without_tied_head(given: Mapping[str, Tensor], *, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Drop a head that the checkpoint ties to its embedding; one with other values cannot be honoured."""
    kept = dict(given)
    head, embedding = given.get("lm_head.weight"), given.get("model.embed_tokens.weight")
    if head is None or embedding is None or "lm_head.weight" in shapes:
        return kept
    if head is not embedding and not torch.equal(head, embedding):
        raise EngineError(
            "weight update refused, lm_head.weight and model.embed_tokens.weight are one tensor in SGLang but differ "
            "in the update; tie them in the trainer too, or start SGLang from an untied checkpoint"
        )
    del kept["lm_head.weight"]
    return kept


def _own_storage(tensor: Tensor, *, dtype: torch.dtype | None) -> Tensor:
    """A view would drag the whole tensor that it is cut from along."""
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _piece_names(name: str, sent: Collection[str]) -> list[str]:
    """The tensors that one of SGLang's parameters is put together from; none where that is not known."""
    if name in sent:
        return [name]
    for fused, parts in _FUSED.items():
        names = [re.sub(rf"\b{fused}\b", part, name) for part in parts]
        if fused in name and all(part in sent for part in names):
            return names
    if name == "lm_head.weight" and "model.embed_tokens.weight" in sent:
        return ["model.embed_tokens.weight"]
    return []


def _candidates(pieces: Sequence[Tensor]) -> Iterator[Tensor]:
    """The ways in which SGLang may lay out a parameter: padded with zeros or not, in its own dtype or in float32."""
    for dtype in dict.fromkeys((pieces[0].dtype, torch.float32)):
        for multiple in _PADDINGS:
            for dimension in range(min(pieces[0].ndim, 2)):
                if multiple > 1 and all(piece.shape[dimension] % multiple == 0 for piece in pieces):
                    continue
                yield torch.cat([_padded(piece.to(dtype), dimension=dimension, multiple=multiple) for piece in pieces])


def _padded(tensor: Tensor, *, dimension: int, multiple: int) -> Tensor:
    missing = -tensor.shape[dimension] % multiple
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dimension] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dimension)


def _sum(tensor: Tensor) -> str:
    data: Any = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data).hexdigest()[:16]


def _remove_orphans(parent: Path) -> None:
    for folder in parent.glob(f"{_FOLDER}*"):
        pid = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _refuse(problem: str, items: list[str]) -> None:
    if items:
        more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
        raise EngineError(f"weight update refused, {problem} {', '.join(items[:_LISTED])}{more}")
