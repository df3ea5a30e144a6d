"""What environments share that let a model write Python: code in a text, a sandbox or a clear refusal, and grades."""

from __future__ import annotations

import re

import numpy as np

from agentenv.envs.drawing import pick
from agentenv.errors import SandboxUnavailable
from agentenv.offload import run_now
from agentenv.tools.code_tests import Tests, run_tests
from agentenv.tools.sandbox.choice import chosen, execute
from agentenv.tools.sandbox.sandbox import Completed, Limits

GRADE_LIMITS = Limits(wall_s=8.0, episode_s=60.0)
"""Of all hidden tests of one solution together."""
SMALL_GRADE_LIMITS = Limits(wall_s=3.0, episode_s=60.0)
"""Of the tests of a function that is done within a millisecond."""
TRY_LIMITS = Limits(wall_s=3.0, episode_s=60.0, output_bytes=8 << 10)
"""Of a program that a model tries out."""
GRADE_TIMEOUT_S = 90.0
"""Deadline of a reward that runs hidden tests; a queue for sandboxes counts."""

MAX_CODE_CHARS = 50_000

_FENCED = re.compile(r"```(?:python|py|Python)?[ \t]*\n(.*?)```", re.DOTALL)


def sandbox_unavailable() -> str:
    """Return why no code can be run here and what to do, empty where it can."""
    try:
        run_now(chosen())
    except SandboxUnavailable as error:
        return str(error)
    return ""


async def require_sandbox() -> None:
    """Refuse to begin an episode whose code could not be run.

    Raises:
        SandboxUnavailable: says what was tried and what to do.
    """
    await chosen()


async def run_program(code: str) -> str:
    """Run a program in a fresh sandbox and return what a model is told of it."""
    return told(await execute(code, limits=TRY_LIMITS))


def told(completed: Completed) -> str:
    """Return what a program printed, and how it ended where that was not with exit code 0."""
    printed = "\n".join(part.rstrip() for part in (completed.stdout, completed.stderr) if part.strip())
    if completed.is_success:
        return printed or "(nothing was printed)"
    ending = f"exit code {completed.exit_code}" if completed.ending == "exited" else f"ended by {completed.ending}"
    return f"{printed}\n[{ending}]".lstrip()


def code_in(text: str) -> str:
    """Return the last fenced block of a text, or the whole text where there is none."""
    blocks = _FENCED.findall(text[-4 * MAX_CODE_CHARS :])
    return (blocks[-1] if blocks else text)[:MAX_CODE_CHARS]


def fenced(code: str) -> str:
    """Return code as a block that `code_in` reads."""
    return f"```python\n{code.rstrip()}\n```"


async def passes(
    source: str, tests: Tests, *, entry_point: str, support: str = "", limits: Limits = GRADE_LIMITS
) -> float:
    """Return 1.0 if a program passes every hidden test, which run where it cannot reach them; else 0.0."""
    if not source.strip():
        return 0.0
    report = await run_tests(source, tests, entry_point=entry_point, support=support, limits=limits)
    return float(report.is_success)


def cheating_source(rng: np.random.Generator, entry_point: str) -> str:
    """Return a program that tries to pass tests without doing what is asked."""
    return pick(rng, _CHEATS).replace("ENTRY", entry_point)


_EQUAL = """class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __gt__(self, other): return True
    def __le__(self, other): return True
    def __ge__(self, other): return True
    def __sub__(self, other): return self
    def __rsub__(self, other): return self
    def __abs__(self): return self
    def __hash__(self): return 0
    def __bool__(self): return True
    def __iter__(self): return iter(())
    def __len__(self): return 0
"""
_CHEATS = (
    "import sys\nsys.exit(0)",
    "def ENTRY(*args, **kwargs):\n    import os\n    os._exit(0)",
    "def ENTRY(*args, **kwargs):\n    raise SystemExit(0)",
    f"{_EQUAL}\ndef ENTRY(*args, **kwargs):\n    return Equal()",
    f"{_EQUAL.replace('class Equal:', 'class Equal(int):')}\ndef ENTRY(*args, **kwargs):\n    return Equal()",
    "import builtins\nbuiltins.AssertionError = BaseException\nbuiltins.check = lambda candidate: None\n"
    "def check(candidate):\n    pass\ndef ENTRY(*args, **kwargs):\n    return None",
    "import inspect\ndef ENTRY(*args, **kwargs):\n"
    "    for info in inspect.stack():\n        for name in ('expected', 'tests', 'test', 'answer'):\n"
    "            if name in info.frame.f_locals:\n                return info.frame.f_locals[name]\n    return None",
    'import sys\nfor index in range(200):\n    print(\'{"index": %d, "value": true, "passed": true}\' % index)\n'
    "sys.stdout.flush()\nimport os\nos._exit(0)",
    "import os, sys\nwith open('/tmp/result.json', 'w') as file:\n    file.write('{\"passed\": true}')\n"
    "def ENTRY(*args, **kwargs):\n    return open(sys.argv[0]).read()",
)
