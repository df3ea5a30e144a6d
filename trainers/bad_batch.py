"""Keeps the batches whose update was not finite, and stops a run that has nothing else any more."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentenv.errors import DataError, TrainingDiverged
from agentenv.trainers.sample import Sample

logger = logging.getLogger(__name__)

MAX_BAD_UPDATES = 3

_COLUMNS = tuple(field.name for field in dataclasses.fields(Sample) if field.name != "sample_id")


class BadBatches:
    """Watches the updates of one phase. A step that is not finite was not taken; its batch is written down.

    Args:
        folder: where batches go; made with the first one.
        limit: updates in a row with a step that was not finite, after which the run stops.
    """

    def __init__(self, folder: Path, *, limit: int = MAX_BAD_UPDATES) -> None:
        self.folder = folder
        self.limit = limit
        self._in_a_row = 0

    def check(self, samples: Sequence[Sample], metrics: Mapping[str, float], *, step: int) -> None:
        """Take note of an update.

        Args:
            samples: what it trained on.
            metrics: of the update; `non_finite_steps` counts the optimizer steps that were not taken.
            step: number of the update, which names the file.

        Raises:
            TrainingDiverged: it was one too many.
        """
        skipped = int(metrics.get("non_finite_steps", 0.0))
        if not skipped:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        told = f"update {step}: {skipped} optimizer steps had a gradient that is not finite and were not taken; "
        try:
            told += f"their batch is in {save_batch(self.folder / f'step_{step}.npz', samples)}"
        except OSError as error:
            told += f"their batch could not be written ({error})"
        if self._in_a_row >= self.limit:
            raise TrainingDiverged(
                f"{told}. These are {self._in_a_row} such updates in a row, so the run stops. Look for a "
                "reward or log-prob in it that is not finite, or lower the learning rate; then go on with --resume"
            )
        logger.warning("%s", told)


def save_batch(path: Path, samples: Sequence[Sample]) -> Path:
    """Write samples as one npz file without pickled objects: every column laid end to end, and where samples begin."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.concatenate([getattr(sample, name) for sample in samples]) for name in _COLUMNS}
    lengths = {f"{name}_lengths": np.array([len(getattr(sample, name)) for sample in samples]) for name in _COLUMNS}
    columns: dict[str, Any] = {"sample_ids": np.array([s.sample_id for s in samples]), **arrays, **lengths}
    with open(path, "wb") as file:
        np.savez_compressed(file, **columns)
    return path


def load_batch(path: str | Path) -> list[Sample]:
    """Read what `save_batch` wrote.

    Raises:
        DataError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {name: np.split(file[name], np.cumsum(file[f"{name}_lengths"])[:-1]) for name in _COLUMNS}
            names = [str(name) for name in file["sample_ids"]]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a batch that training wrote ({error})") from error
    return [
        Sample(sample_id=name, **{column: parts[column][index] for column in _COLUMNS})
        for index, name in enumerate(names)
    ]
