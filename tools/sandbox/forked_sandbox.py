"""A sandbox whose process 1 was forked from a zygote: the `Sandbox` of the bwrap back end, and of those like it."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from agentenv.errors import SandboxError, ToolError
from agentenv.tools.sandbox.inside import frames
from agentenv.tools.sandbox.interpreter_link import InterpreterLink, Outcome
from agentenv.tools.sandbox.output import readable
from agentenv.tools.sandbox.pipes import PipeReader, PipeWriter
from agentenv.tools.sandbox.program_run import STOP_S, how_ended, run_program
from agentenv.tools.sandbox.sandbox import Cell, Completed, FileInfo, Isolation, Limits
from agentenv.tools.sandbox.session_link import SessionLink

_BEGIN_S = 20.0
_CHUNK_BYTES = 1 << 18
_TAR_BLOCK = 512
_GRACE_S = 0.1
_LOST = "The interpreter was replaced: its variables are lost."


class ForkedSandbox:
    """See `Sandbox`. It belongs to the event loop that it was opened on; calls wait for each other.

    Args:
        isolation: how strong the border is.
        limits: of this episode.
        where: name for errors.
        on_closed: called once when everything has ended.
        on_stuck: called when the session did not end: somebody stronger must end it.
    """

    def __init__(
        self,
        *,
        isolation: Isolation,
        limits: Limits,
        where: str,
        on_closed: Callable[[], None],
        on_stuck: Callable[[], None],
    ) -> None:
        self.isolation: Isolation = isolation
        self._limits = limits
        self._where = where
        self._on_closed, self._on_stuck = on_closed, on_stuck
        self._left_s = limits.episode_s
        self._calls = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._link = SessionLink(where=where, on_event=self._on_event)
        self._interpreter: InterpreterLink | None = None
        self._ended: frames.Frame = {}
        self._is_closed = False

    async def begin(self, hand_over: Callable[[int], Awaitable[object]], *, work: str = "") -> None:
        """Start its process 1; raises SandboxError. On any failure it must be closed."""
        request = {"op": "session", "limits": limits_inside(self._limits, self._limits.episode_s), "work": work}
        await self._link.begin(request, hand_over, timeout_s=_BEGIN_S)

    async def run(self, command: Sequence[str], *, stdin: str = "", timeout_s: float | None = None) -> Completed:
        """See `Sandbox.run`."""
        if not command or not all(isinstance(word, str) and "\0" not in word for word in command):
            raise ToolError("a command is a list of one or more texts without NUL")
        async with self._calls:
            seconds = self._seconds(timeout_s)
            if seconds <= 0:
                return Completed(ending="timeout", stderr=self._used_up())
            return await self._timed_run(list(command), stdin, seconds)

    async def python(self, code: str, *, timeout_s: float | None = None) -> Cell:
        """See `Sandbox.python`."""
        async with self._calls:
            seconds = self._seconds(timeout_s)
            if seconds <= 0:
                return Cell(ending="timeout", error=self._used_up())
            started = time.monotonic()
            is_fresh = self._interpreter is None or self._interpreter.is_broken
            try:
                interpreter = await self._started_interpreter() if is_fresh else self._interpreter
                assert interpreter is not None
                cell = await self._run_cell(interpreter, code, seconds)
            finally:
                wall_s = time.monotonic() - started
                self._left_s -= wall_s
            return replace(cell, is_fresh=is_fresh, wall_s=wall_s)

    async def read_file(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        """See `Sandbox.read_file`."""
        data = bytearray()
        async with self._calls:
            while len(data) < max_bytes:
                size = min(_CHUNK_BYTES, max_bytes - len(data))
                answer = await self._ask("read", path=_relative(path), offset=len(data), size=size)
                data += base64.b64decode(answer["data"])
                if answer["is_end"]:
                    break
        return bytes(data)

    async def write_file(self, path: str, data: bytes) -> None:
        """See `Sandbox.write_file`."""
        if len(data) > self._limits.file_bytes:
            raise ToolError(f"{len(data):,} bytes; a file may have at most {self._limits.file_bytes:,}")
        async with self._calls:
            for start in range(0, max(1, len(data)), _CHUNK_BYTES):
                chunk = base64.b64encode(data[start : start + _CHUNK_BYTES]).decode("ascii")
                await self._ask("write", path=_relative(path), data=chunk, is_first=start == 0)

    async def list_files(self, path: str = ".") -> tuple[FileInfo, ...]:
        """See `Sandbox.list_files`."""
        entries: list[Sequence[object]] = []
        async with self._calls:
            await self._ask("list", on_part=lambda part: entries.extend(part["entries"]), path=_relative(path))
        found = (FileInfo(path=readable(str(name)), kind=kind, size=size) for name, kind, size in entries)  # type: ignore[arg-type]
        return tuple(sorted(found, key=lambda info: info.path))

    async def snapshot(self) -> bytes:
        """See `Sandbox.snapshot`."""
        async with self._calls, PipeReader(self._loop) as reader:
            await self._ask("snapshot", fds=(reader.theirs,))
            return await reader.all()

    async def restore(self, snapshot: bytes) -> None:
        """See `Sandbox.restore`."""
        most = self._limits.work_bytes + 4 * _TAR_BLOCK * (self._limits.work_files + 32)
        if len(snapshot) > most:
            raise ToolError(f"a snapshot of {len(snapshot):,} bytes does not fit; at most {most:,} are allowed")
        async with self._calls, PipeWriter(self._loop, snapshot) as writer:
            await self._ask("restore", fds=(writer.theirs,))

    async def close(self) -> None:
        """See `Sandbox.close`."""
        if self._is_closed:
            return
        self._is_closed = True
        # said before the first wait, so that a cancelled close still ends everything
        self._link.hang_up()
        self._drop_interpreter()
        try:
            if not await self._link.close(timeout_s=STOP_S):
                self._on_stuck()
        finally:
            self._on_closed()

    async def _timed_run(self, command: list[str], stdin: str, seconds: float) -> Completed:
        started = time.monotonic()
        try:
            return await run_program(
                {"op": "program", "argv": command, "limits": limits_inside(self._limits, seconds)},
                hand_over=lambda peer: self._ask("program", fds=(peer,)),
                stdin=stdin,
                timeout_s=seconds,
                output_bytes=self._limits.output_bytes,
                where=self._where,
            )
        finally:
            self._left_s -= time.monotonic() - started

    async def _started_interpreter(self) -> InterpreterLink:
        self._drop_interpreter()
        await self._ask("stop_python", grace_s=0.0)
        link = InterpreterLink(output_bytes=self._limits.output_bytes, on_busy=self._tell_busy)
        self._interpreter = link
        self._ended = {}
        try:
            await self._ask("start_python", fds=link.theirs)
        except BaseException:
            self._drop_interpreter()
            raise
        frames.close_fds(link.theirs)
        link.theirs = ()
        return link

    async def _run_cell(self, interpreter: InterpreterLink, code: str, seconds: float) -> Cell:
        try:
            outcome = await interpreter.run(code, timeout_s=seconds)
        except asyncio.CancelledError:
            # a cell that nobody waits for must not run on
            self._link.tell("stop_python", grace_s=0.0)
            self._drop_interpreter()
            raise
        if isinstance(outcome, dict):
            value, error = str(outcome.get("value", "")), str(outcome.get("error", ""))
            return Cell(
                ending="exited", output=interpreter.take_output(), value=self._shown(value), error=self._shown(error)
            )
        return await self._replaced(interpreter, outcome, seconds)

    async def _replaced(self, interpreter: InterpreterLink, outcome: Outcome, seconds: float) -> Cell:
        # the socket of a process that ends closes a moment before the process has ended
        answer = await self._ask("stop_python", grace_s=_GRACE_S if outcome == "ended" else 0.0)
        output = interpreter.take_output()
        # without a status of its own it did not end: it spoke out of turn, or closed its side
        ended = self._ended or {"status": answer.get("status", 0), "memory": False}
        self._drop_interpreter()
        how = how_ended(ended["status"], is_over_memory=ended["memory"], is_timed_out=outcome == "timeout")
        why = {
            "timeout": f"The code was stopped after {seconds:g} s.",
            "memory": f"The code used more than {self._limits.memory_bytes:,} bytes of memory.",
            "signal": f"The interpreter was ended by signal {how.signal}.",
        }.get(how.ending, "The interpreter ended itself.")
        ending = "closed" if how.ending == "exited" else how.ending
        return Cell(ending=ending, output=output, error=f"{why} {_LOST}")

    async def _ask(self, operation: str, **values: object) -> frames.Frame:
        if self._is_closed:
            raise SandboxError(self._where, "the sandbox was closed")
        if asyncio.get_running_loop() is not self._loop:
            raise SandboxError(
                self._where, "a sandbox is used on the event loop that it was opened on, and on no other"
            )
        return await self._link.ask(operation, **values)  # type: ignore[arg-type]

    def _on_event(self, event: frames.Frame) -> None:
        if event["event"] == "python_ended":
            self._ended = event
        if self._interpreter is not None:
            self._interpreter.end()

    def _tell_busy(self, is_busy: bool) -> None:
        self._link.tell("busy", is_busy=is_busy)

    def _drop_interpreter(self) -> None:
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            interpreter.close()

    def _seconds(self, timeout_s: float | None) -> float:
        wall_s = self._limits.wall_s if timeout_s is None else min(timeout_s, self._limits.wall_s)
        return min(wall_s, self._left_s)

    def _used_up(self) -> str:
        return f"The {self._limits.episode_s:g} s that all calls of this episode may take together are used up."

    def _shown(self, text: str) -> str:
        # cut inside already, unless the code forged it
        return readable(text[: 2 * self._limits.output_bytes])


def limits_inside(limits: Limits, seconds: float) -> dict[str, int]:
    """Return the limits that an init keeps, for code that may run so long."""
    return {
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "file_bytes": limits.file_bytes,
        "descriptors": limits.descriptors,
        "cpu_s": int(seconds) + 1,
        "work_bytes": limits.work_bytes,
        "work_files": limits.work_files,
        "output_bytes": limits.output_bytes,
    }


def _relative(path: str) -> str:
    """Return a path below the working folder, which models like to write in full."""
    if path in ("/work", "/work/"):
        return "."
    return path.removeprefix("/work/") or "."
