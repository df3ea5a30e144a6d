"""Checkpoints that are whole or absent: written beside, synced, renamed, and checked before they are believed.

The state is copied inside the training step and written in a thread while training goes on; one write is in flight at
most. A write that fails costs a warning and a metric, never the run: the next checkpoint tries again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

from agentenv.errors import CheckpointError, StoreError, did_you_mean
from agentenv.store import TrajectoryStore
from agentenv.trainers.background import in_thread
from agentenv.trainers.learner import Learner
from agentenv.trajectory import Group

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WAITING = "waiting"
_NAME = re.compile(r"^(\d{8})-([a-z]+)-step_(\d+)$")
FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come; plain JSON values.

    Attributes:
        phase: `"sft"` or `"rl"`.
        step: optimizer steps (sft) or policy updates (rl) that are in the weights.
        version: weight version of the engine.
        scheduler: state of the scheduler; empty outside rl.
        optimizer_steps: steps the optimizer has taken in this phase; drives the learning-rate schedule.
        success: validation success of exactly these weights; None where they were not validated.
        curriculum: levels of difficulty; empty where nothing follows a target.
    """

    phase: str
    step: int
    version: int
    scheduler: Mapping[str, object]
    optimizer_steps: int
    success: float | None = None
    curriculum: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk that was found whole."""

    path: Path
    progress: Progress

    def waiting(self) -> list[Group]:
        """Return the finished groups that waited to be trained on, oldest first."""
        folder = self.path / WAITING
        rows = [row.trajectory for row in TrajectoryStore(folder).scan()] if folder.is_dir() else []
        return [
            Group(group_id=group_id, trajectories=tuple(members))
            for group_id, members in groupby(rows, key=lambda trajectory: trajectory.group_id)
        ]


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: where they live; made if missing.
        keep: newest ones that are kept; beside them, the one with the best validation success always is.
        config: of the run, as YAML; every checkpoint carries it.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, config: str = "") -> None:
        self.folder = Path(folder)
        self.keep = max(1, keep)
        self.config = config
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write: asyncio.Task[None] | None = None
        self._failure: CheckpointError | None = None
        self._num_failed = 0

    async def save(self, progress: Progress, *, learner: Learner, waiting: Sequence[Group] = ()) -> Path:
        """Write a checkpoint to its end; see `begin`.

        Raises:
            CheckpointError: the disk is full or read-only.
        """
        path = await self.begin(progress, learner=learner, waiting=waiting)
        await self.settle()
        if self._failure is not None:
            raise self._failure
        return path

    async def begin(self, progress: Progress, *, learner: Learner, waiting: Sequence[Group] = ()) -> Path:
        """Copy the state and begin to write it, after the write before has ended; training may go on meanwhile.

        A crash at any instant leaves the older checkpoints untouched and no half-written one. A failure is logged and
        counted in `num_failed`.

        Args:
            progress: of the weights that the learner holds now.
            learner: what to save.
            waiting: finished groups that no step has trained on yet, oldest first.

        Returns:
            Where the checkpoint will be.
        """
        await self.settle()
        self._failure = None
        final = self.folder / f"{self._next_number():08d}-{progress.phase}-step_{progress.step}"
        beside = self.folder / f".{final.name}.partial"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            rest = await learner.save(beside)
        except (OSError, CheckpointError) as error:
            self._note_failure(final, error)
            return final
        finish = partial(self._finish, beside, final=final, rest=rest, progress=progress, waiting=tuple(waiting))
        self._write = asyncio.create_task(in_thread(finish), name="checkpoint")
        return final

    async def settle(self) -> None:
        """Wait until nothing is being written."""
        if self._write is not None:
            await asyncio.shield(self._write)
            self._write = None

    def take_failures(self) -> int:
        """Return how many checkpoints could not be written since the last call."""
        failed, self._num_failed = self._num_failed, 0
        return failed

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; damaged ones are reported and passed over."""
        for path in sorted(self._all(), reverse=True):
            try:
                return Checkpoint(path=path, progress=_verified(path))
            except CheckpointError as error:
                logger.warning("%s; the one before it is used", error)
        return None

    def named(self, name: str) -> Checkpoint:
        """Return a checkpoint by the name of its folder.

        Raises:
            CheckpointError: there is none of this name, or it is damaged.
        """
        names = sorted(path.name for path in self._all())
        if name not in names:
            told = f"{self.folder} has no checkpoint {name!r}; there are {', '.join(names) or 'none'}"
            raise CheckpointError(told + "." + did_you_mean(name, names))
        return Checkpoint(path=self.folder / name, progress=_verified(self.folder / name))

    async def load(self, checkpoint: Checkpoint, *, learner: Learner) -> None:
        """Let the learner go on from a checkpoint.

        Raises:
            CheckpointError: it belongs to another model.
        """
        await learner.load(checkpoint.path, optimizer_steps=checkpoint.progress.optimizer_steps)

    def _finish(
        self,
        beside: Path,
        *,
        final: Path,
        rest: Callable[[], None] | None,
        progress: Progress,
        waiting: Sequence[Group],
    ) -> None:
        """Write what is left, seal the folder and give it its name; in a thread."""
        try:
            if rest is not None:
                rest()
            TrajectoryStore(beside / WAITING).append(
                [t for group in waiting for t in group.trajectories], step=progress.step, phase=WAITING
            )
            (beside / "config.yaml").write_text(self.config, encoding="utf-8")
            _seal(beside, progress=progress)
            os.rename(beside, final)
            _sync(self.folder)
        except (OSError, CheckpointError, StoreError) as error:
            self._note_failure(final, error)
        else:
            self._drop_old()

    def _note_failure(self, final: Path, error: Exception) -> None:
        shutil.rmtree(final.with_name(f".{final.name}.partial"), ignore_errors=True)
        told = f"{final}: could not be written ({error}); older checkpoints are untouched"
        logger.warning("%s, and the next checkpoint will try again", told)
        self._failure = CheckpointError(told)
        self._num_failed += 1

    def _all(self) -> Iterator[Path]:
        return (path for path in self.folder.iterdir() if _NAME.match(path.name))

    def _next_number(self) -> int:
        return max((int(path.name[:8]) for path in self._all()), default=-1) + 1

    def _drop_old(self) -> None:
        paths = sorted(self._all(), reverse=True)
        best = _best(paths)
        for path in paths[self.keep :]:
            if path != best:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".*.partial"):
            shutil.rmtree(path, ignore_errors=True)


def _best(paths: Sequence[Path]) -> Path | None:
    """Return the checkpoint with the best validation success, the newest of equals; None where none was validated."""
    best, best_success = None, -1.0
    for path in sorted(paths, reverse=True):
        try:
            success = json.loads((path / MANIFEST).read_text())["success"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged: `newest` says so
        if success is not None and success > best_success:
            best, best_success = path, success
    return best


def _seal(folder: Path, *, progress: Progress) -> None:
    """Sync what a learner wrote and add the manifest, without which a folder is no checkpoint."""
    files = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    for name in files:
        _sync(folder / name)
    manifest = {
        "format": FORMAT,
        "phase": progress.phase,
        "step": progress.step,
        "version": progress.version,
        "scheduler": progress.scheduler,
        "optimizer_steps": progress.optimizer_steps,
        "success": progress.success,
        "curriculum": progress.curriculum,
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
            success=manifest["success"],
            curriculum=manifest.get("curriculum", {}),  # not in checkpoints of runs that knew none
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
