"""A sandbox for places that keep nothing between calls: the folder of an episode lives here and travels with commands.

It is the current folder of every command, whatever its path there. A persistent interpreter cannot exist in such a
place, and asking for one is a `UsageError`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from agentenv.errors import SandboxError, ToolError, UsageError
from agentenv.tools.sandbox import carried_inside
from agentenv.tools.sandbox.carried_folder import CarriedFolder
from agentenv.tools.sandbox.output import BoundedOutput
from agentenv.tools.sandbox.sandbox import Cell, Completed, FileInfo, Isolation, Limits

# a folder travels as base64 in a body, of which servers take tens of megabytes
_MOST_WORK_BYTES = 32 << 20
_MOST_WORK_FILES = 4000
_BLOCKS_BYTES = 4 * 512  # of a tar, for one member at most
_FOLDER_S = 2.0
_AS_IT_WAS = "The folder is as it was before this command."
_INSIDE = Path(carried_inside.__file__).read_text(encoding="utf-8") + "\nrun_command()\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a program left in a place that keeps nothing.

    Attributes:
        completed: how it ended.
        files: those of the fetched ones that exist; none where the program made them too large to come back.
    """

    completed: Completed
    files: Mapping[str, bytes] = field(default_factory=dict)


class RunsCode(Protocol):
    """A back end that runs one program with files, and keeps nothing."""

    @property
    def name(self) -> str:
        """As configured."""
        ...

    @property
    def isolation(self) -> Isolation:
        """Of the places where programs run."""
        ...

    async def run_code(
        self,
        code: str,
        *,
        stdin: str = "",
        timeout_s: float,
        limits: Limits,
        files: Mapping[str, bytes] | None = None,
        fetched: Sequence[str] = (),
    ) -> Ran:
        """Run a Python program in a folder with files, and bring some files back; raises SandboxError."""
        ...


class CarriedSandbox:
    """See `Sandbox`. Each command is a call that carries the folder there and back.

    Args:
        backend: runs the calls.
        limits: of the episode; the folder holds at most 32 MiB in 4,000 files.
    """

    def __init__(self, backend: RunsCode, *, limits: Limits) -> None:
        self.isolation: Isolation = backend.isolation
        self._backend = backend
        self._limits = replace(
            limits,
            work_bytes=min(limits.work_bytes, _MOST_WORK_BYTES),
            work_files=min(limits.work_files, _MOST_WORK_FILES),
        )
        self._folder = CarriedFolder(self._limits)
        self._left_s = limits.episode_s
        self._calls = asyncio.Lock()
        self._is_closed = False

    async def run(self, command: Sequence[str], *, stdin: str = "", timeout_s: float | None = None) -> Completed:
        """See `Sandbox.run`; the place has longer than the program, so that the folder comes back in any case."""
        if not command or not all(isinstance(word, str) and "\0" not in word for word in command):
            raise ToolError("a command is a list of one or more texts without NUL")
        async with self._calls:
            self._require_open()
            seconds = min(self._limits.wall_s if timeout_s is None else timeout_s, self._limits.wall_s, self._left_s)
            if seconds <= 0:
                return Completed(ending="timeout", stderr="The time of this episode is used up.")
            begun = time.monotonic()
            try:
                return await self._run(list(command), stdin, seconds)
            finally:
                self._left_s -= time.monotonic() - begun

    async def _run(self, command: list[str], stdin: str, seconds: float) -> Completed:
        encoded = base64.b64encode(stdin.encode("utf-8", "replace")).decode()
        call = json.dumps({"command": command, "stdin": encoded, "timeout_s": seconds})
        ran = await self._backend.run_code(
            _INSIDE,
            timeout_s=seconds + _FOLDER_S,
            limits=self._limits,
            files={carried_inside.FOLDER: self._folder.pack(), carried_inside.CALL: call.encode()},
            fetched=(carried_inside.FOLDER, carried_inside.ENDED),
        )
        completed = ran.completed
        try:
            ended = json.loads(ran.files[carried_inside.ENDED])
            packed = ran.files[carried_inside.FOLDER]
            code, ending = int(ended["code"]), str(ended["ending"])
        except (KeyError, ValueError, TypeError, RecursionError):
            # the command was ended before its keeper could pack, or ended its keeper
            return replace(completed, stderr=f"{completed.stderr}\n{_AS_IT_WAS}".lstrip())
        try:
            self._folder.unpack(packed)
        except ToolError as error:
            told = replace(completed, stderr=f"{completed.stderr}\n{_AS_IT_WAS} {error}")
            return ended_by(told, code=1)
        if ending == "timeout":
            return replace(completed, ending="timeout", exit_code=None, signal=None)
        return ended_by(completed, code=code)

    async def python(self, code: str, *, timeout_s: float | None = None) -> Cell:
        """Raise UsageError: a place that keeps nothing has no interpreter that lives on."""
        raise UsageError(
            f"the back end {self._backend.name} has no persistent interpreter, because it keeps nothing between calls; "
            "run whole programs, or use the back end bwrap"
        )

    async def read_file(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        """See `Sandbox.read_file`."""
        self._require_open()
        return self._folder.read(path, max_bytes=max_bytes)

    async def write_file(self, path: str, data: bytes) -> None:
        """See `Sandbox.write_file`."""
        self._require_open()
        self._folder.write(path, data)

    async def list_files(self, path: str = ".") -> tuple[FileInfo, ...]:
        """See `Sandbox.list_files`."""
        self._require_open()
        return self._folder.list(path)

    async def snapshot(self) -> bytes:
        """See `Sandbox.snapshot`."""
        self._require_open()
        return self._folder.pack()

    async def restore(self, snapshot: bytes) -> None:
        """See `Sandbox.restore`."""
        self._require_open()
        self._folder.unpack(snapshot)

    async def close(self) -> None:
        """See `Sandbox.close`."""
        self._is_closed = True

    def _require_open(self) -> None:
        if self._is_closed:
            raise SandboxError(self._backend.name, "the sandbox was closed")


def most_answer_bytes(limits: Limits, *, has_files: bool) -> int:
    """Return the size of the largest JSON answer that a program within its limits leads to."""
    # two streams, escaped at worst as six characters a byte, and the folder
    folder_bytes = 2 * (limits.work_bytes + _BLOCKS_BYTES * limits.work_files) if has_files else 0
    return 12 * limits.output_bytes + folder_bytes + (4 << 20)


def flooded(most_bytes: int) -> Ran:
    """Return how a program is told whose answer is larger: it is the program's doing, and no failure of the place."""
    return Ran(completed=Completed(ending="memory", stderr=f"It wrote more than {most_bytes:,} bytes."))


def ended_by(told: Completed, *, code: int) -> Completed:
    """Return how a process ended by its exit code as Python tells it, where a signal is a negative number."""
    if code < 0:
        return replace(told, ending="signal", exit_code=None, signal=-code)
    return replace(told, ending="exited", exit_code=code, signal=None)


def shown(text: object, limits: Limits) -> str:
    """Return a stream as `Completed` shows it; empty for what is no text."""
    kept = BoundedOutput(limits.output_bytes)
    kept.add(text.encode("utf-8", "replace") if isinstance(text, str) else b"")
    return kept.text()
