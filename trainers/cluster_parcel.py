"""Weights as plain arrays, which an object store keeps once per node and gives to readers without a copy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """Named tensors on their way; make it with `packed`."""

    items: Mapping[str, _Item]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, on the memory of the parcel: for reading only."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch has no read-only tensors and says so
            return {
                name: torch.from_numpy(item.data).view(getattr(torch, item.dtype)).reshape(item.shape)
                for name, item in self.items.items()
            }


class Shipped(dict[str, Tensor]):
    """Weights that already lie in the object store.

    Args:
        tensors: to read.
        ref: where the parcel lies; whoever sends the weights on sends this instead of the bytes.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, ref: object) -> None:
        super().__init__(tensors)
        self.ref = ref


def packed(tensors: Mapping[str, object]) -> Parcel:
    """Return a parcel; tensors of CPU memory are not copied before it is sent."""
    return Parcel(items={name: _item(tensor) for name, tensor in tensors.items()})


def _item(tensor: object) -> _Item:
    assert isinstance(tensor, Tensor)
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy()
    return _Item(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape), data=data)
