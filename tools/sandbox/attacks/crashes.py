"""Attacks that end their own process in every way there is; how it ended must be told apart."""

from __future__ import annotations

from dataclasses import replace

from agentenv.tools.sandbox.attacks.attack import SMALL, Arena, Attack, Broken, Kind, Seen, cells, ended, program, shell

_KIND: Kind = "crashes"


def _by_signal(number: int) -> object:
    def check(_: Arena, result: Seen) -> None:
        if (result.ending, result.signal) != ("signal", number):
            raise Broken(f"told as {result.ending} ({result.exit_code}, {result.signal}), not as signal {number}")

    return check


def _exits(code: int) -> object:
    def check(_: Arena, result: Seen) -> None:
        if (result.ending, result.exit_code) != ("exited", code):
            raise Broken(f"told as {result.ending} ({result.exit_code}, {result.signal}), not as exit code {code}")

    return check


def _dies(name: str, code: str, check: object) -> Attack:
    return program(name, _KIND, code, check, finishes=False)  # type: ignore[arg-type]


def _cell_dies(name: str, code: str, *endings: str) -> Attack:
    return cells(name, _KIND, ["kept = 1", code], ended(*endings), finishes=False)


async def _state_is_reported_lost(arena: Arena) -> None:
    """After a crash the interpreter is new, and says so."""
    async with arena.episode() as sandbox:
        first = await sandbox.python("kept = 1")
        crashed = await sandbox.python("import os; os.abort()")
        after = await sandbox.python("'kept' in globals()")
        if crashed.ending == "exited" or not (first.is_fresh and after.is_fresh) or after.value != "False":
            raise Broken(f"the crash was told as {crashed.ending}, fresh: {after.is_fresh}, value {after.value!r}")
        if (await sandbox.python("1 + 1")).is_fresh:
            raise Broken("an interpreter that lives on is told as fresh")


ATTACKS = (
    _dies("reads memory that is not there", "import ctypes; ctypes.string_at(0)", _by_signal(11)),
    _dies("aborts", "import os; os.abort()", _by_signal(6)),
    _dies(
        "kills itself, which is no timeout", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", _by_signal(9)
    ),
    _dies("ends itself by SIGTERM", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)", _by_signal(15)),
    _dies(
        "runs out of stack",
        """
import sys; sys.setrecursionlimit(10**8)
def f(x): return f([x]) or 1
class A:
    def __repr__(self): return repr(self)
import ctypes; ctypes.CFUNCTYPE(None)(0)()
""",
        _by_signal(11),
    ),
    _dies("exits with 0 at once", "import os; os._exit(0)", _exits(0)),
    _dies("exits with 137, which is no signal", "raise SystemExit(137)", _exits(137)),
    _dies("exits with a text", "raise SystemExit('a text')", _exits(1)),
    _dies("exits with an exception", "raise KeyboardInterrupt", ended("exited", "signal")),
    _dies("is no Python", "def broken(:", _exits(1)),
    program(
        "recurses without end",
        _KIND,
        """
def f(): f()
try:
    f()
except RecursionError:
    pass
""",
        limits=replace(SMALL, wall_s=10.0),
    ),
    shell("kills its shell", _KIND, "kill -9 $$", _by_signal(9), finishes=False),  # type: ignore[arg-type]
    _cell_dies("aborts its interpreter", "import os; os.abort()", "signal"),
    _cell_dies("exits its interpreter", "import os; os._exit(0)", "exited", "signal", "closed"),
    _cell_dies("kills its interpreter", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal"),
    cells("raises SystemExit in its interpreter", _KIND, ["raise SystemExit(3)"], finishes=False),
    Attack(name="crashes its interpreter and hides it", kind=_KIND, play=_state_is_reported_lost),
)
