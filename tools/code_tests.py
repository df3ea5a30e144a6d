"""Grades code that a model wrote: it runs alone in a sandbox and returns values, which are compared outside.

Where solution and tests share a process, a solution can end it with the right exit code, forge the report, answer with
objects that equal everything, or patch the test library, and be paid. Here no expected value ever enters the process of
the candidate, what leaves it is data and no verdict, and the comparison happens where the candidate cannot reach.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from agentenv.errors import SandboxError, UsageError
from agentenv.tools import code_inside
from agentenv.tools.code_checks import Question, questions_of
from agentenv.tools.code_dialogue import converse
from agentenv.tools.code_values import same, shown
from agentenv.tools.sandbox.choice import chosen
from agentenv.tools.sandbox.sandbox import Completed, Limits, SandboxBackend

_REPORT_BYTES = 1 << 20
_MORE_BYTES = 4096  # printed beyond what is expected, so that a failure shows it
_PARALLEL_PROGRAMS = 4
_INSIDE = Path(code_inside.__file__).read_text(encoding="utf-8") + "\nrun_calls()\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTest:
    """One call of the function under test.

    Attributes:
        args: positional arguments, plain data: None, bool, numbers, str, bytes, list, tuple, dict, set, frozenset.
        kwargs: keyword arguments.
        expected: the value that must come back, of exactly this type all the way down.
        tolerance: numbers may differ by this much, absolutely or relatively; None asks for exact values.
        raises: name of the built-in exception that must be raised instead, e.g. `"ValueError"`; subclasses count.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    expected: Any = None
    tolerance: float | None = None
    raises: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramTest:
    """One run of the whole program.

    Attributes:
        stdin: what it reads.
        stdout: what it must print; white space at the ends of lines and of the text does not count.
        exit_code: how it must exit.
    """

    stdin: str = ""
    stdout: str
    exit_code: int = 0


Tests = str | Sequence[CallTest] | Sequence[ProgramTest]
"""Test code of the `check(candidate)` kind, calls of a function, or runs of a program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A test that did not hold. It tells expected values: for logs and people, not for the agent that is graded.

    Attributes:
        index: of the test, from 0.
        expected: what should have happened.
        got: what did.
    """

    index: int
    expected: str
    got: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TestReport:
    """What tests said of a program.

    Attributes:
        passed: how many held.
        total: how many there are, at least 1.
        failures: one for each that did not hold.
    """

    __test__: ClassVar[bool] = False  # pytest takes it for tests by its name

    passed: int
    total: int
    failures: tuple[Failure, ...]

    @property
    def is_success(self) -> bool:
        """True when every test held."""
        return self.passed == self.total

    @property
    def fraction(self) -> float:
        """Share of the tests that held, 0 to 1."""
        return self.passed / self.total


async def run_tests(
    source: str,
    tests: Tests,
    *,
    entry_point: str,
    support: str = "",
    limits: Limits | None = None,
    backend: SandboxBackend | None = None,
) -> TestReport:
    """Grade a program.

    Args:
        source: the program, as the model wrote it.
        tests: calls, runs, or test code. Test code whose assertions are about one call and a constant is taken apart;
            other test code runs in a sandbox of its own that asks the candidate's for values, and counts as one test.
        entry_point: the function under test; the name of nothing for `ProgramTest`s.
        support: for test code: definitions that it uses and that must not come from the candidate.
        limits: of the candidate; `wall_s` is the time of all calls together, and of each run.
        backend: where it runs; the process's default one by default.

    Raises:
        UsageError: the tests are wrong: none at all, an argument that is not plain data, code that asserts nothing.
        SandboxError: the sandbox broke, which says nothing about the program.
    """
    limits = limits or Limits()
    if not tests:
        raise UsageError("there are no tests, so every program would pass")
    backend = backend or (await chosen()).backend
    if isinstance(tests, str):
        questions = questions_of(tests, entry_point=entry_point)
        if questions is None:
            return await _run_dialogue(source, tests, support, entry_point, limits, backend)
        return await _run_calls(source, questions, entry_point, limits, backend)
    programs = [test for test in tests if isinstance(test, ProgramTest)]
    calls = [test for test in tests if isinstance(test, CallTest)]
    if len(programs) == len(tests):
        return await _run_programs(source, programs, limits, backend)
    if len(calls) != len(tests):
        raise UsageError("tests are all CallTest or all ProgramTest; split mixed ones into two calls of run_tests")
    return await _run_calls(source, [_question(test) for test in calls], entry_point, limits, backend)


def _question(test: CallTest) -> Question:
    if test.raises:
        return Question(
            args=test.args,
            kwargs=test.kwargs,
            accepts=lambda _: False,
            raises=test.raises,
            text=f"raises {test.raises}",
        )
    return Question(
        args=test.args,
        kwargs=test.kwargs,
        accepts=lambda value: same(value, test.expected, tolerance=test.tolerance),
        text=shown(test.expected),
    )


async def _run_calls(
    source: str, questions: Sequence[Question], entry_point: str, limits: Limits, backend: SandboxBackend
) -> TestReport:
    try:
        calls = [
            [
                code_inside.encode(tuple(q.args), is_argument=True),
                code_inside.encode(dict(q.kwargs), is_argument=True),
            ]
            for q in questions
        ]
    except code_inside.Unfit as error:
        raise UsageError(f"an argument of a test cannot enter a sandbox: {error}") from error
    request = json.dumps({"source": source, "entry_point": entry_point, "calls": calls})
    limits = replace(limits, output_bytes=max(limits.output_bytes, _REPORT_BYTES))
    completed = await _executed(backend, _INSIDE, stdin=request, limits=limits)
    outcomes = _outcomes(completed)
    failures = []
    for index, question in enumerate(questions):
        got = _judged(question, outcomes.get(index, outcomes.get(-1, {})), completed)
        if got is not None:
            failures.append(Failure(index=index, expected=question.text, got=got))
    return TestReport(passed=len(questions) - len(failures), total=len(questions), failures=tuple(failures))


def _outcomes(completed: Completed) -> dict[int, Mapping[str, Any]]:
    """Read the lines of a report that the candidate may have forged: the first of each call counts."""
    found: dict[int, Mapping[str, Any]] = {}
    for line in completed.stdout.splitlines():
        try:
            outcome = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(outcome, dict) and isinstance(outcome.get("index"), int):
            found.setdefault(outcome["index"], outcome)
    return found


def _judged(question: Question, outcome: Mapping[str, Any], completed: Completed) -> str | None:
    """Return what was wrong about an outcome, or None where the test holds."""
    if "raised" in outcome:
        names = outcome["raised"]
        is_wanted = bool(question.raises) and isinstance(names, list) and question.raises in names
        return None if is_wanted else str(outcome.get("message", "raised something"))
    if "value" not in outcome:
        return str(outcome.get("unfit") or _ending(completed))
    try:
        value = code_inside.decode(outcome["value"])
        # a value may not support the comparison at all, which is a wrong answer
        return None if question.accepts(value) else shown(value)
    except (ValueError, TypeError, ArithmeticError, RecursionError, AttributeError) as error:
        return f"{type(error).__name__} when it was compared"


def _ending(completed: Completed) -> str:
    if completed.ending == "exited":
        return f"no value: the process exited with {completed.exit_code}"
    if completed.ending == "signal":
        return f"no value: the process was ended by signal {completed.signal}"
    return f"no value: {completed.ending}"


async def _run_dialogue(
    source: str, test: str, support: str, entry_point: str, limits: Limits, backend: SandboxBackend
) -> TestReport:
    limits = replace(limits, output_bytes=max(limits.output_bytes, _REPORT_BYTES))
    why = await converse(source, test=test, support=support, entry_point=entry_point, limits=limits, backend=backend)
    failures = (Failure(index=0, expected="the test code ends without an error", got=why),) if why else ()
    return TestReport(passed=1 - len(failures), total=1, failures=failures)


async def _run_programs(
    source: str, tests: Sequence[ProgramTest], limits: Limits, backend: SandboxBackend
) -> TestReport:
    slots = asyncio.Semaphore(_PARALLEL_PROGRAMS)

    async def run(test: ProgramTest) -> Completed:
        room = replace(limits, output_bytes=max(limits.output_bytes, 4 * len(test.stdout) + _MORE_BYTES))
        async with slots:
            return await _executed(backend, source, stdin=test.stdin, limits=room)

    completed = await asyncio.gather(*(run(test) for test in tests))
    failures = []
    for index, (test, done) in enumerate(zip(tests, completed, strict=True)):
        is_right = done.ending == "exited" and done.exit_code == test.exit_code
        if not is_right or _lines(done.stdout) != _lines(test.stdout):
            got = shown(done.stdout) if is_right else f"{_ending(done)}; printed {shown(done.stdout)}"
            failures.append(Failure(index=index, expected=shown(test.stdout), got=got))
    return TestReport(passed=len(tests) - len(failures), total=len(tests), failures=tuple(failures))


async def _executed(backend: SandboxBackend, code: str, *, stdin: str, limits: Limits) -> Completed:
    completed = await backend.execute(code, stdin=stdin, limits=limits)
    if completed.ending == "closed":
        raise SandboxError("code_tests", "the sandbox closed while a program ran")
    return completed


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
