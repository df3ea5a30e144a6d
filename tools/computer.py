"""`Computer`: Python, a shell and files in the sandbox of one episode, which is opened at the first call."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

from agentenv.errors import ToolError, UsageError
from agentenv.tool import Tool, tool
from agentenv.toolkit import Toolkit
from agentenv.tools import sandbox_files
from agentenv.tools.sandbox.sandbox import Cell, Completed, Limits, Sandbox

Part = Literal["python", "shell", "files"]

_MARGIN_S = 30.0
"""A call's own deadline lies this far behind the sandbox's, which is the one that should be met."""

MAX_SHELL_STATE_CHARS = 16_000

# $1 is the folder, $2 what `export -p` printed, $3 the command, $4 the mark before the state that is left behind
_SHELL = """
eval "$2" 2>/dev/null
cd -- "$1" 2>/dev/null || echo "(the folder $1 is gone)" >&2
__mark=$4
trap '__status=$?; printf "\\n%s\\n%s\\n" "$__mark" "$PWD"; export -p; exit $__status' EXIT
__command=$3
set --
eval "$__command"
"""


class Computer(Toolkit):
    """Tools over one sandbox, which they share.

    Args:
        parts: which tools there are.
        files: what stands in the working folder at the beginning, by path.
        limits: of the sandbox.
        open_with: opens the sandbox; None takes the back end that the run's settings choose.
    """

    def __init__(
        self,
        *,
        parts: Sequence[Part] = ("python", "shell", "files"),
        files: Mapping[str, str | bytes] | None = None,
        limits: Limits | None = None,
        open_with: Callable[[Limits], Awaitable[Sandbox]] | None = None,
    ) -> None:
        unknown = [part for part in parts if part not in get_args(Part)]
        if unknown or not parts:
            allowed = ", ".join(get_args(Part))
            raise UsageError(f"parts are {', '.join(unknown) or 'empty'}; allowed are {allowed}")
        self._parts = tuple(parts)
        self._files = dict(files or {})
        self._limits = limits or Limits()
        self._open_with = open_with or _open_chosen
        self._sandbox: Sandbox | None = None
        self._opening = asyncio.Lock()
        self._shell_state = ("/work", "")
        self._has_run_python = False

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools of the chosen parts; those that run code wait as long as the sandbox allows."""
        own = {item.name: item for item in super().tools}
        found = [own[name] for part, name in (("python", "run_python"), ("shell", "run_shell")) if part in self._parts]
        if "files" in self._parts:
            found += sandbox_files.tools_over(self.sandbox)
        timeout_s = self._limits.wall_s + _MARGIN_S
        return tuple(replace(item, options=replace(item.options, timeout_s=timeout_s)) for item in found)

    async def sandbox(self) -> Sandbox:
        """Return the sandbox, opened and filled if need be: for the environment's own use, too.

        Raises:
            SandboxUnavailable: nothing isolates well enough here.
            SandboxError: it could not be opened.
        """
        async with self._opening:
            if self._sandbox is None:
                self._sandbox = await self._filled(await self._open_with(self._limits))
        return self._sandbox

    @tool
    async def run_python(self, code: str) -> str:
        """Run Python code. Variables stay for the next call. The value of a last expression is shown.

        Args:
            code: the code.
        """
        cell = await (await self.sandbox()).python(code)
        is_lost = cell.is_fresh and self._has_run_python
        self._has_run_python = cell.ending == "exited"
        return _cell_text(cell, is_lost=is_lost)

    @tool
    async def run_shell(self, command: str) -> str:
        """Run a command in bash. The current folder and exported variables stay for the next call, processes do not.

        Args:
            command: one or more lines.
        """
        if "\0" in command:
            raise ToolError("a command cannot hold NUL")
        mark = secrets.token_hex(16)  # told to the sandbox only for this call, and never shown
        folder, exports = self._shell_state
        sandbox = await self.sandbox()
        done = await sandbox.run(["bash", "-c", _SHELL, "bash", folder, exports, command, mark])
        shown, found, state = done.stdout.rpartition(f"\n{mark}\n")
        is_kept = bool(found) and len(state) <= MAX_SHELL_STATE_CHARS
        if is_kept:
            folder, _, exports = state.partition("\n")
            self._shell_state = (folder, exports)
        return _shell_text(done, stdout=shown if found else done.stdout, is_kept=is_kept)

    async def close(self) -> None:
        """End every process of the sandbox."""
        async with self._opening:
            sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            await sandbox.close()

    async def _filled(self, sandbox: Sandbox) -> Sandbox:
        try:
            for path, content in self._files.items():
                await sandbox.write_file(path, content.encode() if isinstance(content, str) else content)
        except BaseException:
            await sandbox.close()
            raise
        return sandbox


async def _open_chosen(limits: Limits) -> Sandbox:
    from agentenv.tools.sandbox import open_sandbox

    return await open_sandbox(limits=limits)


_ENDINGS: Mapping[str, str] = {
    "timeout": "it ran past its time and was stopped",
    "memory": "it used too much memory and was stopped",
    "signal": "it was ended by a signal",
    "closed": "the machine was closed",
}


def _cell_text(cell: Cell, *, is_lost: bool) -> str:
    parts = ["(The variables of earlier calls are gone.)"] if is_lost else []
    parts += [part.rstrip("\n") for part in (cell.output, cell.value, cell.error) if part]
    if cell.ending != "exited":
        parts.append(f"({_ENDINGS[cell.ending]}; all variables are lost.)")
    return "\n".join(parts) or "(no output)"


def _shell_text(done: Completed, *, stdout: str, is_kept: bool) -> str:
    parts = [part.rstrip("\n") for part in (stdout, done.stderr) if part.strip("\n")]
    if done.ending != "exited":
        parts.append(f"({_ENDINGS[done.ending]}.)")
    elif done.exit_code:
        parts.append(f"(exit code {done.exit_code})")
    if not is_kept:
        parts.append("(The current folder and variables are those of before this command.)")
    return "\n".join(parts) or "(no output)"
