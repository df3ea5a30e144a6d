"""Checkpoints that are whole or absent: written beside, synced, renamed, and checked before they are believed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from agentenv.errors import CheckpointError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"^(\d{8})-([a-z]+)-step_(\d+)$")
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come; plain JSON values.

    Attributes:
        phase: `"sft"` or `"rl"`.
        step: optimizer steps (sft) or policy updates (rl) that are in the weights.
        version: weight version of the engine.
        scheduler: state of the scheduler; empty outside rl.
        optimizer_steps: steps the optimizer has taken in this phase; drives the learning-rate schedule.
    """

    phase: str
    step: int
    version: int
    scheduler: Mapping[str, object]
    optimizer_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk that was found whole."""

    path: Path
    progress: Progress


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: where they live; made if missing.
        keep: newest ones that are kept.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = max(1, keep)
        self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, progress: Progress, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
        """Write a checkpoint; a crash at any instant leaves the older ones untouched and no half-written one.

        Raises:
            CheckpointError: the disk is full or read-only.
        """
        final = self.folder / f"{self._next_number():08d}-{progress.phase}-step_{progress.step}"
        beside = self.folder / f".{final.name}.partial"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            _write(beside, progress=progress, model=model, optimizer=optimizer)
            os.rename(beside, final)
            _sync(self.folder)
        except (OSError, CheckpointException) as error:
            shutil.rmtree(beside, ignore_errors=True)
            told = f"{final}: could not be written ({_reason(error)}); older checkpoints are untouched"
            raise CheckpointError(told) from error
        self._drop_old()
        return final

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; damaged ones are reported and passed over."""
        for path in sorted(self._all(), reverse=True):
            try:
                return Checkpoint(path=path, progress=_verified(path))
            except CheckpointError as error:
                logger.warning("%s; the one before it is used", error)
        return None

    def load(self, checkpoint: Checkpoint, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put a checkpoint's state into model and optimizer.

        Raises:
            CheckpointError: it belongs to another model.
        """
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state}
        try:
            with _quiet():
                state_dict_loader.load(cast("dict[str, Any]", state), checkpoint_id=str(checkpoint.path), no_dist=True)
                set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        except (RuntimeError, ValueError, KeyError, CheckpointException) as error:
            raise CheckpointError(f"{checkpoint.path}: does not fit this model ({error})") from error

    def _all(self) -> Iterator[Path]:
        return (path for path in self.folder.iterdir() if _NAME.match(path.name))

    def _next_number(self) -> int:
        return max((int(path.name[:8]) for path in self._all()), default=-1) + 1

    def _drop_old(self) -> None:
        for path in sorted(self._all(), reverse=True)[self.keep :]:
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".*.partial"):
            shutil.rmtree(path, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """Return the failure itself, without the stack traces that a checkpoint exception carries along."""
    if isinstance(error, CheckpointException):
        return "; ".join(str(failure[0]) for failure in error.failures.values())
    return str(error)


def _write(folder: Path, *, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    folder.mkdir()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    with _quiet():
        state_dict_saver.save(
            {"model": model_state, "optimizer": optimizer_state}, checkpoint_id=str(folder), no_dist=True
        )
    files = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    for name in files:
        _sync(folder / name)
    manifest = {
        "format": FORMAT,
        "phase": progress.phase,
        "step": progress.step,
        "version": progress.version,
        "scheduler": progress.scheduler,
        "optimizer_steps": progress.optimizer_steps,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(folder / MANIFEST)
    _sync(folder)


def _verified(path: Path) -> Progress:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {manifest['format']}; expected {FORMAT}")
        for name, digest in manifest["files"].items():
            if _digest(path / name) != digest:
                raise CheckpointError(f"{path / name}: damaged, its checksum differs from the manifest's")
        return Progress(
            phase=manifest["phase"],
            step=manifest["step"],
            version=manifest["version"],
            scheduler=manifest["scheduler"],
            optimizer_steps=manifest["optimizer_steps"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the notes on saving without a process group, which is what an inline worker does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
