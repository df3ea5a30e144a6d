"""The global random generators of a rank on disk: Python's, NumPy's, torch's and those of its GPUs.

Nothing here draws from them, since every draw has a seed of its own; a model or an environment of somebody else may.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from agentenv.errors import CheckpointError


def save_random_state(folder: Path) -> None:
    """Write the state of this rank's generators into an existing folder; every rank writes a file of its own.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }
    path = _path(folder)
    try:
        path.write_text(json.dumps(state))
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written ({error})") from error


def load_random_state(folder: Path) -> None:
    """Set this rank's generators as `save_random_state` found them; a rank that did not save keeps its own.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = _path(folder)
    if not path.is_file():
        return
    try:
        state = json.loads(path.read_text())
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state(tuple(state["numpy"]))
        torch.set_rng_state(_bytes(state["torch"]))
        if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([_bytes(text) for text in state["cuda"]])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error


def _path(folder: Path) -> Path:
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    return folder / f"random-{rank}.json"


def _text(state: torch.Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
