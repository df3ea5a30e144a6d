"""The protocol of a sandbox: a private machine of one episode, in which model-written code runs under limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Isolation = Literal["strong", "reduced", "none"]
"""`strong`: namespaces, system-call filter, quotas; `reduced`: no private process table and no disk quota."""

Ending = Literal["exited", "signal", "timeout", "memory", "closed"]
"""How a process ended: by itself, by a signal, past its deadline, past its memory, or because the sandbox closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one sandbox may use.

    Attributes:
        wall_s: seconds of one call, on the clock of the caller.
        episode_s: seconds of all calls together.
        memory_bytes: resident memory of all processes together.
        processes: processes and threads at the same time.
        file_bytes: largest single file.
        descriptors: open descriptors of one process.
        work_bytes: size of the working folder.
        work_files: files and folders in it.
        output_bytes: kept of each output stream: its beginning and its end.
    """

    wall_s: float = 10.0
    episode_s: float = 300.0
    memory_bytes: int = 1 << 30
    processes: int = 64
    file_bytes: int = 64 << 20
    descriptors: int = 256
    work_bytes: int = 256 << 20
    work_files: int = 20_000
    output_bytes: int = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a command left behind.

    Attributes:
        ending: how it ended.
        exit_code: of a process that exited, else None.
        signal: number of the signal that ended it, else None.
        stdout: decoded with replacement, cut in the middle beyond `output_bytes`, control codes escaped.
        stderr: likewise.
        wall_s: seconds.
    """

    ending: Ending
    exit_code: int | None = None
    signal: int | None = None
    stdout: str = ""
    stderr: str = ""
    wall_s: float = 0.0

    @property
    def is_success(self) -> bool:
        """True when the process exited with 0."""
        return self.ending == "exited" and self.exit_code == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a piece of code did in the persistent interpreter.

    Attributes:
        ending: `exited` where the interpreter lives on; otherwise it was replaced and its variables are lost.
        output: what was written to stdout and stderr, in order, treated like `Completed.stdout`.
        value: `repr` of the last expression, bounded; empty when there is none or it is None.
        error: traceback of an exception, without frames of ours; empty when none was raised.
        is_fresh: the interpreter ran its first cell, or was replaced before this one: variables of earlier cells
            are gone.
        wall_s: seconds.
    """

    ending: Ending
    output: str = ""
    value: str = ""
    error: str = ""
    is_fresh: bool = False
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """A file, folder or link in the working folder; `path` is relative to it, `size` in bytes."""

    path: str
    kind: Literal["file", "folder", "link", "other"]
    size: int


class Sandbox(Protocol):
    """One episode's private machine; every method has a deadline and raises `SandboxError` when the machine is gone.

    Paths are relative to the working folder `/work`; a path that leads out of it, also through a link, is refused with
    `ToolError`.
    """

    @property
    def isolation(self) -> Isolation:
        """How strong the border is."""
        ...

    async def run(self, command: Sequence[str], *, stdin: str = "", timeout_s: float | None = None) -> Completed:
        """Run a program in fresh processes that all end with it; the working folder stays.

        Args:
            command: program and arguments; no shell is involved unless it is the program.
            stdin: what it reads.
            timeout_s: at most `Limits.wall_s`, which is the default.
        """
        ...

    async def python(self, code: str, *, timeout_s: float | None = None) -> Cell:
        """Run code in the episode's persistent interpreter; its variables stay for the next call."""
        ...

    async def read_file(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        """Return the first `max_bytes` of a regular file."""
        ...

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file; missing folders are made."""
        ...

    async def list_files(self, path: str = ".") -> tuple[FileInfo, ...]:
        """Return everything below a folder, sorted by path."""
        ...

    async def snapshot(self) -> bytes:
        """Return the working folder as an uncompressed tar; `ToolError` when it does not fit the limits."""
        ...

    async def restore(self, snapshot: bytes) -> None:
        """Replace the working folder by a snapshot's."""
        ...

    async def close(self) -> None:
        """End every process and free everything; idempotent."""
        ...


class SandboxBackend(Protocol):
    """Makes sandboxes of one kind."""

    @property
    def name(self) -> str:
        """As configured: `bwrap`, `landlock`, `docker`, `remote`, `none`."""
        ...

    @property
    def isolation(self) -> Isolation:
        """Of every sandbox it makes."""
        ...

    async def open(self, *, limits: Limits) -> Sandbox:
        """Return a sandbox for one episode, from the warm pool where there is one."""
        ...

    async def execute(self, code: str, *, stdin: str = "", limits: Limits) -> Completed:
        """Run one Python program in a fresh sandbox that is gone afterwards: the fastest way for single programs."""
        ...

    async def close(self) -> None:
        """Close every sandbox and the pool; idempotent."""
        ...
