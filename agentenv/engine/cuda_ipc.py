"""Tensors of one GPU handed to another process of the same host by handle: nothing is copied."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from agentenv.engine.transfer import TensorInfo
from agentenv.errors import EngineError, UsageError, describe


def require_cuda() -> None:
    """Refuse a machine without a GPU.

    Raises:
        UsageError: says what to take instead.
    """
    if not torch.cuda.is_available():
        raise UsageError("CUDA IPC hands over memory of a GPU, and torch sees none here; take shared memory")


def cuda_handle(tensor: Tensor) -> dict[str, Any]:
    """Return what another process needs to open a contiguous CUDA tensor: plain JSON values, no pickle.

    The tensor must live until the other process is done with it.
    """
    shared: Any = tensor.untyped_storage()
    # what torch.multiprocessing sends too: device, handle, bytes, offset, reference counter and event
    return {
        "storage": [_to_json(part) for part in shared._share_cuda_()],
        "offset": tensor.storage_offset(),
    }


def open_cuda_handle(handle: Mapping[str, Any], info: TensorInfo) -> Tensor:
    """Return the tensor of another process, by reference.

    Raises:
        EngineError: the handle is broken, or its owner is gone.
    """
    try:
        make: Any = torch.UntypedStorage._new_shared_cuda
        storage = make(*(_from_json(part) for part in handle["storage"]))
        empty = torch.empty(0, dtype=getattr(torch, info.dtype), device=storage.device)
        strides = torch.empty(info.shape, device="meta").stride()
        return empty.set_(storage, int(handle["offset"]), info.shape, strides)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(f"the GPU memory of {info.name} cannot be opened: {describe(error)}") from error


def _to_json(part: object) -> object:
    return {"bytes": base64.b64encode(part).decode("ascii")} if isinstance(part, bytes) else part


def _from_json(part: Any) -> object:
    return base64.b64decode(part["bytes"]) if isinstance(part, dict) else part
