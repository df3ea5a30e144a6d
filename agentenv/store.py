"""Append-only store of trajectories: one parquet file per append, whole or not there at all."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from agentenv.errors import StoreError, describe
from agentenv.trajectory import Trajectory
from agentenv.trajectory_table import SCHEMA, SCHEMA_VERSION, table_of, trajectories_of

_BATCH_BYTES = 64 * 2**20
"""About this much is held in memory as one row group, while writing and while reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTrajectory:
    """A trajectory with what the run knew about it.

    Attributes:
        trajectory: as it was appended.
        step: training step that it belongs to.
        phase: part of the run, e.g. `"sft"`, `"rl"` or `"eval"`.
    """

    trajectory: Trajectory
    step: int
    phase: str


class TrajectoryStore:
    """Trajectories below one folder, in the order in which they were appended.

    One process appends at a time (a run folder's lock sees to that); any number may scan meanwhile. Every page carries
    a checksum. The files are plain parquet, one row per trajectory, for any other tool.

    Args:
        folder: the first append creates it, but not its parents; a folder that vanishes later is an error.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._next_index: int | None = None

    def append(self, trajectories: Iterable[Trajectory], *, step: int, phase: str) -> Path | None:
        """Store trajectories durably, all of them or none; return the new file, or None if there were none.

        Raises:
            StoreError: the folder cannot be written; what was stored before is intact.
        """
        rows = tuple(trajectories)
        if not rows:
            return None
        try:
            index = self._prepare() if self._next_index is None else self._next_index
            final = self.folder / f"part-{index:08d}.parquet"
            _write_atomically(final, rows, step=step, phase=phase)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(
                f"cannot store {len(rows)} trajectories in {self.folder} ({describe(error)}). What was stored before "
                "is intact. Free disk space or restore the folder, then resume; or choose another run folder."
            ) from error
        self._next_index = index + 1
        return final

    def scan(
        self, *, phase: str | None = None, step: int | None = None, skip_damaged: bool = False
    ) -> Iterator[StoredTrajectory]:
        """Yield stored trajectories in the order of their appending; memory stays bounded.

        Args:
            phase: only this phase.
            step: only this step.
            skip_damaged: warn about a damaged file and go on with the next, instead of raising.

        Raises:
            StoreError: names the file that is damaged, or was written by a newer version.
        """
        for file in self.parts():
            try:
                yield from _read_part(file, phase=phase, step=step)
            except StoreError as error:
                if not skip_damaged:
                    raise
                warnings.warn(f"skipped: {error}", RuntimeWarning, stacklevel=2)

    def forget(self, *, phase: str, after_step: int) -> int:
        """Remove the files of a phase whose step is larger: a resumed run writes them again. Returns how many.

        Raises:
            StoreError: a file is damaged, so that its step cannot be told, or cannot be removed.
        """
        if not self.folder.is_dir():
            return 0
        removed = 0
        for file in self.parts():
            with _naming(file), pq.ParquetFile(file) as part:
                part_step, part_phase = _check_schema(part)
            if part_phase == phase and part_step > after_step:
                with _naming(file):
                    file.unlink()
                removed += 1
        return removed

    def parts(self) -> list[Path]:
        """Return the files in order.

        Raises:
            StoreError: the folder is missing.
        """
        if not self.folder.is_dir():
            raise StoreError(f"{self.folder}: no such folder; give the trajectories folder of a run")
        return sorted(self.folder.glob("part-*.parquet"))

    def _prepare(self) -> int:
        """Create the folder, remove what a killed writer left half-written, and return the next free index."""
        self.folder.mkdir(exist_ok=True)
        for leftover in self.folder.glob(".part-*.tmp"):
            leftover.unlink(missing_ok=True)
        parts = self.parts()
        return int(parts[-1].stem.removeprefix("part-")) + 1 if parts else 0


def _write_atomically(final: Path, rows: Sequence[Trajectory], *, step: int, phase: str) -> None:
    beside = final.with_name(f".{final.stem}.tmp")
    schema = SCHEMA.with_metadata({**(SCHEMA.metadata or {}), "agentenv.step": str(step), "agentenv.phase": phase})
    try:
        if final.exists():
            raise FileExistsError(f"{final.name} was written by another process; only one may append")
        with open(beside, "wb") as file:
            with pq.ParquetWriter(file, schema, **_WRITE_OPTIONS) as writer:
                for batch in _batches(rows):
                    writer.write_table(table_of(batch, step=step, phase=phase).replace_schema_metadata(schema.metadata))
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, final)
        _sync_folder(final.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


_WRITE_OPTIONS: dict[str, Any] = {
    "compression": "lz4",
    "use_dictionary": ["phase", "env_id", "stop_reason", "messages.list.element.role"],
    "use_byte_stream_split": ["logprobs.list.element.list.element"],
    "write_statistics": ["step", "reward"],
    "write_page_checksum": True,
}


def _batches(rows: Sequence[Trajectory]) -> Iterator[tuple[Trajectory, ...]]:
    batch: list[Trajectory] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += 16 * row.num_tokens + sum(len(message.content) for message in row.messages) + 1024
        size += sum(len(image.data) for message in row.messages for image in message.images)
        if size >= _BATCH_BYTES:
            yield tuple(batch)
            batch, size = [], 0
    if batch:
        yield tuple(batch)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_part(file: Path, *, phase: str | None, step: int | None) -> Iterator[StoredTrajectory]:
    with _naming(file), pq.ParquetFile(file, page_checksum_verification=True) as part:
        part_step, part_phase = _check_schema(part)
        if (phase is not None and phase != part_phase) or (step is not None and step != part_step):
            return
        for index in range(part.num_row_groups):
            table = part.read_row_group(index)
            if table.column("step").unique().to_pylist() != [part_step]:
                raise StoreError("its rows and its footer disagree about the step")
            if table.column("phase").unique().to_pylist() != [part_phase]:
                raise StoreError("its rows and its footer disagree about the phase")
            for trajectory in trajectories_of(table):
                yield StoredTrajectory(trajectory=trajectory, step=part_step, phase=part_phase)


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn whatever a damaged file leads to into a `StoreError` that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, StoreError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise StoreError(
            f"{file} is damaged or no trajectory file: {describe(error)}. Restore it, or move it away; "
            "`skip_damaged=True` reads the others."
        ) from error


def _check_schema(part: pq.ParquetFile) -> tuple[int, str]:
    metadata = {key.decode(): value.decode() for key, value in (part.schema_arrow.metadata or {}).items()}
    version = metadata.get("agentenv.schema_version", "")
    if version != str(SCHEMA_VERSION):
        raise StoreError(f"schema version {version!r}; this release reads version {SCHEMA_VERSION}")
    if not part.schema_arrow.equals(SCHEMA):
        raise StoreError("its columns are not those of the store")
    return int(metadata["agentenv.step"]), metadata["agentenv.phase"]
