"""A model's weights by name: which names cross to an engine, their checksum, and copying them in all or not at all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from agentenv.errors import EngineError, ModelError, describe

_HUB_FILES = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model")
_CHUNK = 1 << 22  # elements hashed at a time, which bounds the extra memory
_HOST_CHUNK = 1 << 16  # the same on the host: what fits its caches
_SHOWN = 5  # names listed in an error


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by their name in the state dict, by reference.

    A tensor that is tied under several names appears once, under the first of them.
    """
    names_seen: set[int] = set()
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in names_seen:
            names_seen.add(id(tensor))
            weights[name] = tensor.detach()
    return weights


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return the other names of tied tensors: name -> the name that `named_weights` uses."""
    first_name: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = first_name.setdefault(id(tensor), name)
        if first != name:
            aliases[name] = first
    return aliases


@torch.no_grad()
def weights_checksum(tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> str:
    """Return a checksum of names, shapes and exact bits; trainer and engine compute it each on their own side.

    Order of names does not matter.

    Args:
        tensors: as `named_weights` returns them.
        dtype: cast floating tensors to this first: the engine's dtype, where it differs from the trainer's.

    Returns:
        32 hexadecimal digits: `combined_checksum` of every tensor's own.
    """
    checksums: dict[str, str] = {}
    for name in tensors:
        tensor = tensors[name].detach()
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        checksums[name] = tensor_checksum(tensor)
    return combined_checksum(checksums)


@torch.no_grad()
def tensor_checksum(tensor: Tensor) -> str:
    """Return a checksum of shape, dtype and exact bits: 32 hexadecimal digits.

    The elements' bit patterns are summed plainly and weighted by position, in wrapping 64-bit integers on the tensor's
    own device; shape, dtype and sums are then hashed.
    """
    first, second = _bit_sums(tensor.detach())
    text = f"{tuple(tensor.shape)}|{tensor.dtype}|{first}|{second}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def combined_checksum(checksums: Mapping[str, str]) -> str:
    """Return the checksum of a whole model from those of its tensors: name -> `tensor_checksum`."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(checksums):
        digest.update(f"{name}|{checksums[name]}\n".encode())
    return digest.hexdigest()


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, object]) -> None:
    """Copy `tensors` into the model in place, after everything about them has been checked.

    Args:
        model: its parameters keep their storage.
        tensors: every name of `named_weights(model)`; tied names may come too, with equal values. Values are cast
            to the model's dtype.

    Raises:
        EngineError: names are missing or unknown, a shape differs, a value is no tensor, or a weight is not finite
            in the model's dtype. The model is unchanged.
    """
    own = named_weights(model)
    given = _without_aliases(tensors, tied_names(model))
    _refuse("engine has no weight named", sorted(set(given) - set(own)))
    _refuse("weights are missing:", sorted(set(own) - set(given)))
    _refuse("not a torch tensor:", sorted(name for name, value in given.items() if not isinstance(value, Tensor)))
    new = {name: value.detach() for name, value in given.items() if isinstance(value, Tensor)}
    _refuse(
        "shapes differ:",
        [
            f"{n} is {tuple(new[n].shape)}, engine has {tuple(own[n].shape)}"
            for n in own
            if new[n].shape != own[n].shape
        ],
    )
    # one transfer for all, not one per tensor
    is_finite = torch.stack([torch.isfinite(new[name].to(own[name].dtype)).all() for name in own]).tolist()
    _refuse("not finite in the engine's dtype:", [name for name, ok in zip(own, is_finite, strict=True) if not ok])
    for name, tensor in own.items():
        tensor.copy_(new[name])


def model_folder(path: str | Path) -> Path:
    """Return the local folder of a model, fetched from the Hub where `path` is an id such as `owner/name`.

    Raises:
        ModelError: there is no such folder, and the Hub gave nothing.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)):
        raise ModelError(
            f"model folder {folder} does not exist; give a Hugging Face model folder, or a Hub id owner/name"
        )
    try:
        return Path(snapshot_download(str(path), allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # every layer below the Hub's client raises errors of its own
        raise ModelError(f"{path}: no such folder, and not a model that the Hub gave ({describe(error)})") from error


def load_causal_lm(
    path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode.

    Args:
        path: a Hugging Face model folder or a Hub id.
        dtype: of the weights; None keeps what the folder says.
        device: where to put it.

    Raises:
        ModelError: the folder or its config is missing, or transformers cannot load it as a causal LM.
    """
    folder = model_folder(path)
    if not (folder / "config.json").is_file():
        raise ModelError(f"model folder {folder} has no config.json; it must hold a Hugging Face causal language model")
    try:
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype or "auto")
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model folder {folder} cannot be loaded as a causal language model: {describe(error)}"
        ) from error
    return cast(Any, model).to(device).eval()


def _bit_sums(tensor: Tensor) -> tuple[int, int]:
    """Plain and position-weighted sum of the elements' bits, modulo 2**64.

    Odd factors are invertible modulo 2**64, so a change of one element always changes the weighted sum.
    """
    words = tensor.contiguous().view(-1)
    if words.is_floating_point():
        words = words.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[words.element_size()])
    if words.device.type == "cpu":
        return _host_bit_sums(words.numpy())
    sums = torch.zeros(2, dtype=torch.int64, device=words.device)
    for start in range(0, words.numel(), _CHUNK):
        chunk = words[start : start + _CHUNK].long()
        factor = torch.arange(2 * start + 1, 2 * (start + chunk.numel()) + 1, 2, device=words.device)
        sums += torch.stack((chunk.sum(), (chunk * factor).sum()))
    plain, weighted = sums.tolist()
    return plain, weighted


def _host_bit_sums(words: npt.NDArray[Any]) -> tuple[int, int]:
    """The same in NumPy: many times as fast as torch, and no threads that contend with an engine on the same cores."""
    plain = weighted = 0
    odd = np.arange(1, 2 * min(_HOST_CHUNK, len(words)) + 1, 2, dtype=np.int64)
    for start in range(0, len(words), _HOST_CHUNK):
        chunk = words[start : start + _HOST_CHUNK].astype(np.int64)
        total = int(chunk.sum())
        plain += total
        weighted += int(chunk @ odd[: len(chunk)]) + 2 * start * total
    return _wrapped(plain), _wrapped(weighted)


def _wrapped(value: int) -> int:
    """Return the signed 64-bit integer that has the same remainder modulo 2**64."""
    return (value + 2**63) % 2**64 - 2**63


def _without_aliases(tensors: Mapping[str, object], aliases: Mapping[str, str]) -> dict[str, object]:
    """Drop tied names; an alias that carries other values than its tensor cannot be honoured."""
    given = {name: value for name, value in tensors.items() if name not in aliases}
    for alias, name in aliases.items():
        if alias not in tensors:
            continue
        value, original = tensors[alias], given.setdefault(name, tensors[alias])
        if isinstance(value, Tensor) and isinstance(original, Tensor) and not _is_same(value, original):
            raise EngineError(
                f"weight update refused, {alias} and {name} are one tensor in the engine but differ in the update; "
                "tie them in the trainer too, or untie them in the engine"
            )
    return given


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def _refuse(problem: str, items: list[str]) -> None:
    if items:
        more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
        raise EngineError(f"weight update refused, {problem} {', '.join(items[:_SHOWN])}{more}")
