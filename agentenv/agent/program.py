"""Programs that play an episode through an endpoint: a command in a process of its own, or a function in this one."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from agentenv.agent.endpoint import Endpoint
from agentenv.agent.model_response import dumps
from agentenv.engine import warden
from agentenv.errors import EpisodeError, UsageError, describe

PlayFunction = Callable[[str, str, Mapping[str, object]], Awaitable[object]]

_GRACE_S = 2.0
_TAIL_BYTES = 1024 * 1024
_SHOWN_LINES = 20
_SHOWN_CHARS = 3000
_MAX_VARIABLE_BYTES = 120_000  # Linux takes 128 KiB in one variable


class Program(Protocol):
    """Something that calls the model until it is done."""

    async def run(self, endpoint: Endpoint) -> str | None:
        """Run to the end; returns the answer that the program gave, None where it gave none.

        Raises:
            EpisodeError: it failed.
        """
        ...


class Command:
    """A command, run anew for every episode, under a warden: nothing that it starts outlives it, or us.

    It is the user's own code and is trusted like the rest of the run; it is not put into a sandbox.

    Args:
        command: program and arguments; no shell reads them.

    Raises:
        UsageError: it is no list of words, or there is no such program.
    """

    def __init__(self, command: Sequence[str]) -> None:
        if isinstance(command, str) or not command or not all(isinstance(word, str) and word for word in command):
            raise UsageError(f"command is {command!r}; pass a list of words, e.g. ['python', 'my_agent.py']")
        if sys.platform != "linux":
            raise UsageError("commands are run on Linux only; pass an async function instead")
        if shutil.which(command[0]) is None:
            raise UsageError(f"command: there is no program {command[0]!r}; check the path, or install it")
        self._command = tuple(command)
        self._endings: set[asyncio.Task[None]] = set()

    async def run(self, endpoint: Endpoint) -> str | None:
        """Run the command; when the waiting is cancelled it is ended with everything that it started."""
        words = ("--owner", str(os.getpid()), "--grace", f"{_GRACE_S:g}", "--", *self._command)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", warden.__file__, *words,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**_without_task(os.environ), **variables(endpoint)},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        readers = [asyncio.create_task(_tail(stream)) for stream in (process.stdout, process.stderr)]
        try:
            out, err = await asyncio.gather(*readers)
            code = await process.wait()
        finally:
            ending = asyncio.create_task(_end(process, readers))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
            await asyncio.shield(ending)
        if code != 0:
            said = _last_lines(err, secrets=(endpoint.api_key, endpoint.key)) or "nothing on its standard error"
            raise EpisodeError("env", f"program {self._command[0]}", f"it ended with exit code {code}: {said}")
        return _printed_answer(out)


class Function:
    """An async function of this process, called with base URL, API key and task.

    Args:
        function: the function, or its import string `module:name`.

    Raises:
        UsageError: it cannot be imported, or is not async.
    """

    def __init__(self, function: str | PlayFunction) -> None:
        found = _imported(function) if isinstance(function, str) else function
        call = found if inspect.isroutine(found) else getattr(found, "__call__", found)  # noqa: B004 - for its code
        if not inspect.iscoroutinefunction(call):
            raise UsageError(f"function {function!r} is not async; write `async def play(base_url, api_key, task)`")
        self._function = found
        self._name = getattr(found, "__qualname__", type(found).__name__)

    async def run(self, endpoint: Endpoint) -> str | None:
        """Call the function."""
        try:
            answer = await self._function(endpoint.openai_url, endpoint.api_key, endpoint.task())
        except Exception as error:
            raise EpisodeError("env", f"program {self._name}", describe(error)) from error
        return _as_text(answer["answer"] if isinstance(answer, Mapping) and "answer" in answer else answer)


def variables(endpoint: Endpoint) -> dict[str, str]:
    """Return the environment variables by which a program finds the model and its task."""
    local = ("127.0.0.1", "localhost", "::1")
    no_proxy = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), *local)))
    found = {
        "OPENAI_BASE_URL": endpoint.openai_url,
        "OPENAI_API_KEY": endpoint.api_key,
        "ANTHROPIC_BASE_URL": endpoint.anthropic_url,
        "ANTHROPIC_API_KEY": endpoint.api_key,
        "AGENTENV_TASK_URL": f"{endpoint.openai_url}/task",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }
    task = json.dumps(endpoint.task())
    # what is too long for a variable is fetched from the URL
    return {**found, "AGENTENV_TASK": task} if len(task) <= _MAX_VARIABLE_BYTES else found


def _without_task(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out the task of a program that this run may be a part of itself."""
    return {name: value for name, value in environment.items() if not name.startswith("AGENTENV_TASK")}


def _imported(path: str) -> PlayFunction:
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"function {path!r} cannot be imported ({error}); write module:name") from error


async def _tail(stream: asyncio.StreamReader) -> bytes:
    """Read to the end and return the last of it."""
    kept = b""
    while chunk := await stream.read(65_536):
        kept = (kept + chunk)[-_TAIL_BYTES:]
    return kept


async def _end(process: asyncio.subprocess.Process, readers: Sequence[asyncio.Task[bytes]]) -> None:
    """See to it that the command, its warden and our readers are gone."""
    if process.returncode is None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(b".")
            process.stdin.close()
        try:
            async with asyncio.timeout(2 * _GRACE_S + 5.0):  # the two halves of the warden take their graces in turn
                await process.wait()
        except TimeoutError:
            process.kill()  # the other half ends what is left
            await process.wait()
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


def _printed_answer(out: bytes) -> str | None:
    """Return the answer that the last line holds, None where it holds none."""
    lines = out.decode("utf-8", "replace").strip().splitlines()
    if not lines or not lines[-1].lstrip().startswith("{"):
        return None
    try:
        value = json.loads(lines[-1])
    except (ValueError, RecursionError):
        return None
    return _as_text(value["answer"]) if isinstance(value, dict) and "answer" in value else None


def _as_text(answer: object) -> str | None:
    return answer if answer is None or isinstance(answer, str) else dumps(answer)


def _last_lines(err: bytes, *, secrets: Sequence[str]) -> str:
    text = "\n".join(err.decode("utf-8", "replace").strip().splitlines()[-_SHOWN_LINES:])[-_SHOWN_CHARS:]
    for secret in secrets:
        text = text.replace(secret, "<hidden>")
    return text
