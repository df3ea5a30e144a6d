"""Runs test code that cannot be taken apart: tests in one sandbox, the candidate in another, values in between."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

from agentenv.errors import SandboxError, UsageError
from agentenv.tools import code_inside
from agentenv.tools.sandbox.sandbox import Limits, Sandbox, SandboxBackend

MAX_CALLS = 10_000

_INSIDE = Path(code_inside.__file__).read_text(encoding="utf-8")
_SETUP_S = 10.0


async def converse(
    source: str, *, test: str, support: str, entry_point: str, limits: Limits, backend: SandboxBackend
) -> str:
    """Run test code against a candidate that lives elsewhere; return why it failed, or an empty string.

    The test asks for one call after the other; each is made in the candidate's interpreter and its value, plain data,
    goes back. So nothing that the candidate does reaches the code that judges it.

    Args:
        source: the candidate.
        test: as for `code_tests.run_tests`.
        support: definitions that the test uses, which must not come from the candidate.
        entry_point: the function under test.
        limits: of each of the two sandboxes; `wall_s` is the time of all calls together.
        backend: makes both sandboxes.

    Raises:
        UsageError: the test calls the candidate with something that is not plain data.
        SandboxError: a sandbox broke, or the test could not even be started.
    """
    judge = await backend.open(limits=limits)
    try:
        stage = await backend.open(limits=limits)
        try:
            return await _converse(
                _Interpreter(judge), _Interpreter(stage), source, (test, support, entry_point), limits.wall_s
            )
        finally:
            await stage.close()
    finally:
        await judge.close()


async def _converse(
    judge: _Interpreter, stage: _Interpreter, source: str, tested: tuple[str, str, str], wall_s: float
) -> str:
    test, support, entry_point = tested
    for interpreter in (judge, stage):
        if await interpreter.ask("reply({})", timeout_s=_SETUP_S) is None:
            raise SandboxError("code_dialogue", f"an interpreter could not be prepared: {interpreter.ending}")
    deadline = time.monotonic() + wall_s
    loaded = await stage.ask(
        f"try:\n    function = load({source!r}, {entry_point!r})\n"
        "except BaseException as error:\n    reply(raised(error))\nelse:\n    reply({})",
        timeout_s=wall_s,
    )
    if loaded is None or "raised" in loaded:
        return f"loading the program: {stage.ending if loaded is None else loaded.get('message')}"
    turn = await judge.ask(
        f"dialogue = Dialogue(test={test!r}, support={support!r}, entry_point={entry_point!r})\n"
        "reply(dialogue.start())",
        timeout_s=wall_s,
    )
    for _ in range(MAX_CALLS):
        if turn is None:
            return f"the test ended early: {judge.ending}"
        if "done" in turn:
            return _verdict(turn)
        args, kwargs = turn["ask"]
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return f"no time left after {wall_s:g} s"
        answer = await stage.ask(
            f"reply(outcome(function, *from_json({json.dumps([args, kwargs])!r})))", timeout_s=left_s
        )
        if answer is None:
            return f"the call {turn['ask']} gave no value: {stage.ending}"[:400]
        if not _is_outcome(answer):
            return "the call gave an outcome that is none"
        left_s = max(deadline - time.monotonic(), 0.1)
        turn = await judge.ask(f"reply(dialogue.answer(from_json({json.dumps(answer)!r})))", timeout_s=left_s)
    return f"the test makes more than {MAX_CALLS:,} calls"


def _verdict(turn: dict[str, Any]) -> str:
    if turn.get("is_test_broken"):
        raise UsageError(f"{turn['done']}; the function under test can only be called with plain data")
    return str(turn["done"])


def _is_outcome(answer: dict[str, Any]) -> bool:
    """Check an outcome before it enters the sandbox of the tests, where it would look like the test's fault."""
    try:
        if "value" in answer:
            code_inside.decode(answer["value"])
        return "value" in answer or "unfit" in answer or isinstance(answer.get("raised"), list)
    except (ValueError, RecursionError):
        return False


class _Interpreter:
    """A sandbox's persistent interpreter that answers with one line of JSON, marked so that prints do not hide it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._has_reply = False
        self._mark = f"@{secrets.token_hex(8)}:"
        self.ending = ""

    async def ask(self, code: str, *, timeout_s: float) -> dict[str, Any] | None:
        """Run code that calls `reply`; return what it replied, or None where it did not, with why in `ending`."""
        if not self._has_reply:
            code = (
                f"{_INSIDE}\nfrom json import dumps as _dumps, loads as from_json\n"
                f"def reply(data):\n    print('\\n{self._mark}' + _dumps(data), flush=True)\n{code}"
            )
            self._has_reply = True
        cell = await self._sandbox.python(code, timeout_s=timeout_s)
        lines = [line for line in cell.output.splitlines() if line.startswith(self._mark)]
        self.ending = cell.error.strip().rpartition("\n")[2] or cell.ending
        if cell.ending != "exited" or cell.error or not lines:
            return None
        try:
            found = json.loads(lines[-1].removeprefix(self._mark))
        except (ValueError, RecursionError):
            self.ending = "an unreadable reply"
            return None
        return found if isinstance(found, dict) else None
