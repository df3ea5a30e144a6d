"""Grading by values: what is paid, what is not, and whose fault it is."""

import asyncio
import shutil
from collections.abc import AsyncIterator

import pytest

from agentenv.errors import SandboxError, UsageError
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.code_checks import questions_of
from agentenv.tools.code_tests import CallTest, ProgramTest, TestReport, Tests, run_tests
from agentenv.tools.sandbox.choice import make_backend
from agentenv.tools.sandbox.sandbox import Completed, Isolation, Limits, Sandbox, SandboxBackend

LIMITS = Limits(wall_s=20.0)

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@pytest.fixture
async def backend() -> AsyncIterator[SandboxBackend]:
    made = make_backend(SandboxSettings(), "bwrap")
    yield made
    await made.close()


async def grade(backend: SandboxBackend, source: str, tests: Tests, *, support: str = "") -> TestReport:
    async with asyncio.timeout(60):
        return await run_tests(source, tests, entry_point="f", support=support, limits=LIMITS, backend=backend)


async def test_values_count_by_exact_type_all_the_way_down(backend: SandboxBackend):
    source = (
        "def f(kind): return {'int': 1, 'float': 1.0, 'bool': True, 'list': [1, (2,)], 'set': {1}, 'bytes': b'x'}[kind]"
    )
    right = [
        CallTest(args=("int",), expected=1),
        CallTest(args=("list",), expected=[1, (2,)]),
        CallTest(args=("set",), expected={1}),
        CallTest(args=("bytes",), expected=b"x"),
    ]
    wrong = [
        CallTest(args=("float",), expected=1),
        CallTest(args=("bool",), expected=1),
        CallTest(args=("int",), expected=True),
        CallTest(args=("list",), expected=[1, [2]]),
        CallTest(args=("set",), expected={True}),
        CallTest(args=("bytes",), expected="x"),
    ]

    report = await grade(backend, source, [*right, *wrong])

    assert report.passed == 4
    assert [failure.index for failure in report.failures] == [4, 5, 6, 7, 8, 9]
    assert report.fraction == 0.4


async def test_numbers_within_the_tolerance_count(backend: SandboxBackend):
    tests = [
        CallTest(args=(3.0,), expected=[3.0005], tolerance=1e-3),
        CallTest(args=(3,), expected=[3.0], tolerance=1e-3),
        CallTest(args=(3.0,), expected=[3.1], tolerance=1e-3),
        CallTest(args=(float("nan"),), expected=[float("nan")]),
        CallTest(args=(10**400,), expected=[10**400]),
    ]
    report = await grade(backend, "def f(x): return [x]", tests)
    assert [failure.index for failure in report.failures] == [2]


async def test_an_expected_exception_counts_where_it_or_a_subclass_is_raised(backend: SandboxBackend):
    source = "class Mine(KeyError): pass\ndef f(x):\n    if x: raise Mine(x)\n    raise ValueError('no')"
    tests = [
        CallTest(args=(0,), raises="ValueError"),
        CallTest(args=(1,), raises="LookupError"),
        CallTest(args=(0,), raises="KeyError"),
        CallTest(args=(0,), expected=None),
    ]
    report = await grade(backend, source, tests)
    assert [failure.index for failure in report.failures] == [2, 3]
    assert report.failures[1].got == "ValueError: no"


async def test_a_call_that_never_returns_does_not_take_the_others_before_it(backend: SandboxBackend):
    tests = [CallTest(args=(0,), expected=0), CallTest(args=(1,), expected=1), CallTest(args=(0,), expected=0)]
    source = "def f(x):\n    while x: pass\n    return x"
    report = await run_tests(source, tests, entry_point="f", limits=Limits(wall_s=1.0), backend=backend)
    assert [failure.index for failure in report.failures] == [1, 2]
    assert report.failures[0].got == "no value: timeout"


async def test_programs_are_judged_by_what_they_print_and_how_they_exit(backend: SandboxBackend):
    source = "import sys\nx = int(input())\nprint('sum', x + 1, ' ')\nsys.exit(x == 9)"
    tests = [
        ProgramTest(stdin="1\n", stdout="sum 2\n\n"),
        ProgramTest(stdin="1\n", stdout="sum 3\n"),
        ProgramTest(stdin="9\n", stdout="sum 10"),
        ProgramTest(stdin="9\n", stdout="sum 10", exit_code=1),
        ProgramTest(stdin="", stdout=""),
    ]
    report = await grade(backend, source, tests)
    assert [failure.index for failure in report.failures] == [1, 2, 4]


async def test_assertions_about_constants_are_taken_apart(backend: SandboxBackend):
    check = """
METADATA = {"author": "x"}
def check(candidate):
    assert candidate(1) == 2, "text"
    assert candidate([1, 2]) == [1, 2, 1]
    assert abs(candidate(0.5) - 1.5) < 1e-6
    assert not candidate(-1)
    assert 5 + 2 * 3 == f(10)
    assert True
"""
    source = "def f(x): return x + [1] if isinstance(x, list) else x + 1"
    assert len(questions_of(check, entry_point="f") or ()) == 5
    report = await grade(backend, source, check)
    # f(10) is 11, which is 5 + 2 * 3
    assert (report.passed, report.total) == (5, 5)
    report = await grade(backend, "def f(x): return 11", check)
    assert report.passed == 1


async def test_test_code_that_computes_runs_apart_and_asks_for_values(backend: SandboxBackend):
    check = """
import random
def check(candidate):
    for _ in range(30):
        x = random.randint(0, 99)
        assert candidate(twice(x)) == x, "halves"
    try:
        candidate(None)
    except TypeError:
        pass
    else:
        assert False, "None must be refused"
"""
    support = "def twice(x): return 2 * x\ndef f(x): 'a prompt without a body'\n"
    assert questions_of(check, entry_point="f") is None
    assert (await grade(backend, "def f(x): return x // 2", check, support=support)).is_success
    wrong = await grade(backend, "def f(x): return x", check, support=support)
    assert (wrong.passed, wrong.total) == (0, 1)
    # the candidate cannot redefine what the test uses
    assert not (await grade(backend, "def twice(x): return x\ndef f(x): return x", check, support=support)).is_success


async def test_the_expected_value_is_never_in_the_candidates_process(backend: SandboxBackend):
    # it returns all that it can find: its frames, what was sent, and the files of its folder
    source = """
import glob, sys
def f(x):
    found, frame = [], sys._getframe()
    while frame:
        found += [repr(value)[:5000] for value in [*frame.f_locals.values(), *frame.f_globals.values()]]
        frame = frame.f_back
    found += [open(path, errors="replace").read(5000) for path in glob.glob("/work/*")]
    return any(str(x * 7) in text for text in found)
"""
    report = await grade(backend, source, [CallTest(args=(16183,), expected=16183 * 7)])
    assert report.failures[0].got == "False"


@pytest.mark.parametrize("tests", ["", (), "def check(candidate):\n    candidate(1)", "assert f(1) ==", [1]])
async def test_tests_that_cannot_fail_are_refused(tests: Tests):
    with pytest.raises(UsageError):
        await run_tests("def f(x): return x", tests, entry_point="f", backend=_Broken())


async def test_arguments_that_are_no_plain_data_are_the_tests_fault(backend: SandboxBackend):
    with pytest.raises(UsageError, match="no plain data"):
        await grade(backend, "def f(x): return x", [CallTest(args=(object(),), expected=1)])
    with pytest.raises(UsageError, match="plain data"):
        await grade(backend, "def f(x): return x", "def check(candidate):\n    assert candidate(lambda: 1)")


async def test_a_broken_sandbox_is_no_verdict():
    with pytest.raises(SandboxError):
        await run_tests("def f(x): return x", [CallTest(args=(1,), expected=1)], entry_point="f", backend=_Broken())


async def test_values_made_to_be_slow_to_compare_are_refused(backend: SandboxBackend):
    # 20,000 integers with one hash: a set of them takes 200 million comparisons
    source = """
import os
def f(x): return {2**61 - 1}
keys = ",".join(str((2**61 - 1) * i) for i in range(20_000))
for number in range(1, 32):
    try:
        os.write(number, ('{"index": 0, "value": {"set": [' + keys + ']}}\\n').encode())
    except OSError:
        pass
"""
    report = await grade(backend, source, [CallTest(args=(3,), expected={2**61 - 1})])
    assert report.failures[0].got == "ValueError when it was compared"


class _Broken:
    """A back end whose sandboxes close under the program."""

    name = "broken"
    isolation: Isolation = "strong"

    async def open(self, *, limits: Limits) -> Sandbox:
        raise SandboxError("broken", "none opens")

    async def execute(self, code: str, *, stdin: str = "", limits: Limits) -> Completed:
        return Completed(ending="closed")

    async def close(self) -> None:
        return None
