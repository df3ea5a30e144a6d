"""The folder of a run: its paths, its lock, and the refusal to overwrite what stands there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import weakref
from pathlib import Path
from types import TracebackType

from agentenv.errors import RunFolderError, StoreError, describe

_log = logging.getLogger(__name__)
_LOCK_NAME = ".lock"
_PROBE_BYTES = 256 * 1024


class RunFolder:
    """An open run folder. One process holds it; its lock is released when the process ends, however it ends.

    Use it as a context manager, or call `close`.

    Args:
        root: folder of all runs, usually `runs`; created where missing.
        name: folder name of this run.
        resume: go on in a folder that holds a run; without one there, a new run starts.

    Attributes:
        path: the folder.
        is_resumed: True where the folder held something.

    Raises:
        RunFolderError: the folder is not empty and `resume` is False, another process holds it, or it cannot be
            written; says what to do.
    """

    def __init__(self, root: str | Path, *, name: str, resume: bool = False) -> None:
        if not name or name in (".", "..") or Path(name).name != name:
            raise RunFolderError(f'run name "{name}" is no plain folder name; use letters, digits, "-", "_" and "."')
        self.path = Path(root).expanduser() / name
        self._descriptor = -1
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            had_lock = (self.path / _LOCK_NAME).exists()
            self.is_resumed = any(entry.name != _LOCK_NAME for entry in self.path.iterdir())
            self._descriptor = _lock(self.path)
            _held.add(self)
            if self.is_resumed and not resume:
                self.close()
                if not had_lock:
                    (self.path / _LOCK_NAME).unlink(missing_ok=True)
                raise RunFolderError(
                    f"{self.path} already holds a run or other files; choose another name with --name, or continue "
                    "the run with --resume"
                )
            self._prepare()
        except OSError as error:
            self.close()
            raise RunFolderError(
                f"{self.path} cannot be used as run folder ({describe(error)}); free disk space, make it writable, or "
                "choose another place"
            ) from error

    @property
    def config_path(self) -> Path:
        """The resolved configuration, as YAML."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """Metrics as JSON lines."""
        return self.path / "metrics.jsonl"

    @property
    def trajectories_path(self) -> Path:
        """Folder of the trajectory store."""
        return self.path / "trajectories"

    @property
    def checkpoints_path(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def report_path(self) -> Path:
        """The report, one HTML file."""
        return self.path / "report.html"

    @property
    def learning_curve_path(self) -> Path:
        """The chart of the report."""
        return self.path / "learning_curve.png"

    def write_config(self, text: str) -> None:
        """Store the resolved configuration, whole or not at all.

        Raises:
            StoreError: it could not be written.
        """
        beside = self.path / ".config.yaml.tmp"
        try:
            with open(beside, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.config_path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise StoreError(f"cannot write {self.config_path} ({describe(error)})") from error

    def close(self) -> None:
        """Release the lock; idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            _held.discard(self)
            with contextlib.suppress(OSError):
                # unlocking by name also frees the lock while a child that just forked still has its copy
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _forget(self) -> None:
        """Drop a forked child's copy of the lock without unlocking it for the parent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        """Create the folders and prove that the disk takes data, before anything expensive starts."""
        self.trajectories_path.mkdir(exist_ok=True)
        self.checkpoints_path.mkdir(exist_ok=True)
        probe = self.path / ".probe"
        try:
            with open(probe, "wb") as file:
                file.write(b"\0" * _PROBE_BYTES)
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)


_held: weakref.WeakSet[RunFolder] = weakref.WeakSet()


def _lock(folder: Path) -> int:
    """Take the lock and return its descriptor.

    Raises:
        RunFolderError: another process holds it; names that process.
    """
    descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise RunFolderError(
            f"{folder} is in use by process {holder or 'unknown'}; wait until it ends, stop it, or choose another name "
            "with --name"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            os.close(descriptor)
            raise
        _log.warning("%s: this file system has no locks, so a second run in the folder would not be noticed", folder)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _release_in_child() -> None:
    """Close a forked child's copies, which would otherwise hold the lock after the run's process was killed."""
    for folder in tuple(_held):
        folder._forget()
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
