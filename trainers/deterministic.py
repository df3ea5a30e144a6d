"""torch's own part in a deterministic run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic_torch(is_wanted: bool) -> Iterator[None]:
    """Let torch take deterministic kernels only, where wanted; an operation that has none raises and names itself."""
    if not is_wanted:
        yield
        return
    was_on = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on)
