"""Model and optimizer on disk, in shards that any number of ranks can read again (torch's distributed checkpoint)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.utils import _pytree as pytree

from agentenv.errors import CheckpointError, describe

# what is frozen (the model under an adapter) never changes, and is found where the run took it from
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def save_state(
    folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, group: ProcessGroup | None = None
) -> None:
    """Write what is trained into an existing folder; with a process group every rank calls this and writes its shards.

    Frozen parameters are left out: of a model with an adapter, the adapter alone is written.

    Args:
        folder: that every rank sees.
        model: plain or sharded.
        optimizer: of the model.
        group: over which ranks plan the writing; None is the default group, if there is one.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    write_state(folder, _trained_state(model, optimizer), group=group)


def copy_state(*, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a copy of the state in host memory, for `write_state` to write while training goes on."""
    state = _trained_state(model, optimizer)
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)


def write_state(folder: Path, state: dict[str, Any], *, group: ProcessGroup | None = None) -> None:
    """Write what `copy_state` returned; the folder is then what `save_state` leaves.

    Raises:
        CheckpointError: the disk is full or read-only.
    """
    try:
        with _quiet():
            state_dict_saver.save(
                state, checkpoint_id=str(folder), process_group=group, no_dist=not distributed.is_initialized()
            )
    except (OSError, CheckpointException) as error:
        raise CheckpointError(f"{folder}: could not be written ({_reason(error)})") from error


def load_state(
    folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, group: ProcessGroup | None = None
) -> None:
    """Put the state of a folder into model and optimizer, whatever number of ranks wrote it.

    Args:
        folder: that every rank sees.
        model: plain or sharded.
        optimizer: of the model.
        group: over which ranks plan the reading; None is the default group, if there is one.

    Raises:
        CheckpointError: it belongs to another model.
    """
    state = _trained_state(model, optimizer)
    try:
        with _quiet():
            state_dict_loader.load(
                state,
                checkpoint_id=str(folder),
                process_group=group,
                no_dist=not distributed.is_initialized(),
            )
            set_state_dict(
                model,
                optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
                options=_TRAINED,
            )
    except (RuntimeError, ValueError, KeyError, CheckpointException) as error:
        raise CheckpointError(f"{folder}: does not fit this model ({error})") from error


def _trained_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer, options=_TRAINED)
    # torch overlooks the second name of a frozen tensor that is tied, such as the output layer's
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    kept = {name: value for name, value in model_state.items() if name not in frozen}
    return {"model": kept, "optimizer": optimizer_state}


def _reason(error: BaseException) -> str:
    """Return the failure itself, without the stack traces that a checkpoint exception carries along."""
    if isinstance(error, CheckpointException):
        return "; ".join(describe(failure[0]) for failure in error.failures.values())
    return str(error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the notes on saving without a process group, which is what an inline worker does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
