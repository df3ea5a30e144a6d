"""Runs a short command that may crash, hang or leave children behind, and always comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentenv.errors import describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command said.

    Attributes:
        output: its standard output, stripped, also of a command that failed.
        failure: what went wrong; "" for a command that ended with code 0.
    """

    output: str
    failure: str = ""


def ask(command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Answer:
    """Run a command; at the deadline it is killed with all its children.

    Args:
        command: program and arguments.
        timeout_s: seconds that it may take.
        env: environment; None hands on our own.
    """
    # files instead of pipes: a grandchild that keeps a pipe open would make us wait for its end
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=None if env is None else dict(env),
                start_new_session=True,
            )
        except OSError as error:
            return Answer(output="", failure=describe(error))
        try:
            code = process.wait(timeout_s)
            failure = "" if code == 0 else f"ended with {_ending(code)}"
        except subprocess.TimeoutExpired:
            failure = f"no answer within {timeout_s:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if failure:
            errors.seek(0)
            lines = errors.read().decode("utf-8", "replace").strip().splitlines()
            failure += f": {lines[-1][:300]}" if lines else ""
        output.seek(0)
        return Answer(output=output.read().decode("utf-8", "replace").strip(), failure=failure)


def _ending(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
