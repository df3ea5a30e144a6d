"""Attacks that never end."""

from __future__ import annotations

from dataclasses import replace

from agentenv.tools.sandbox.attacks.attack import SMALL, Attack, Kind, cells, ended, program, shell

_KIND: Kind = "time"
_QUICK = replace(SMALL, wall_s=0.5)


def _endless(name: str, code: str) -> Attack:
    return program(name, _KIND, code, ended("timeout", within_s=0.5), limits=_QUICK, finishes=False)


ATTACKS = (
    _endless("loops in Python", "while True:\n    pass"),
    _endless("loops in C", "sum(iter(int, 1))"),
    _endless("backtracks in a regular expression", "import re; re.match('(a|aa)+$', 'a' * 60 + 'b')"),
    _endless("computes a huge integer", "print(len(str(7 ** (7 ** 9))))"),
    _endless("sleeps", "import time; time.sleep(60)"),
    _endless("waits for input that never comes", "import os; r, w = os.pipe(); os.read(r, 1)"),
    _endless(
        "swallows every exception",
        """
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
""",
    ),
    _endless(
        "ignores every signal",
        """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
""",
    ),
    _endless("hangs at exit", "import atexit, time; atexit.register(time.sleep, 60)"),
    program(
        "hangs in a finaliser",
        _KIND,
        """
import time
class Slow:
    def __del__(self): time.sleep(60)
kept = Slow()
""",
        ended("timeout", "exited", within_s=0.5),
        limits=_QUICK,
        finishes=False,
    ),
    _endless(
        "waits for a thread at exit", "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()"
    ),
    _endless(
        "loops in a system call",
        """
import os
while True:
    os.getppid()
""",
    ),
    _endless(
        "deadlocks",
        """
import threading
lock = threading.Lock()
lock.acquire()
lock.acquire()
""",
    ),
    cells(
        "loops in its interpreter",
        _KIND,
        ["while True:\n    pass"],
        ended("timeout", within_s=0.5),
        limits=_QUICK,
        finishes=False,
    ),
    cells(
        "swallows every exception in its interpreter",
        _KIND,
        [
            """
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
"""
        ],
        ended("timeout", within_s=0.5),
        limits=_QUICK,
        finishes=False,
    ),
    cells(
        "never ends the repr of its value",
        _KIND,
        [
            """
class Endless:
    def __repr__(self):
        while True:
            pass
Endless()
"""
        ],
        ended("timeout", within_s=0.5),
        limits=_QUICK,
        finishes=False,
    ),
    shell(
        "loops in a shell", _KIND, "while :; do :; done", ended("timeout", within_s=0.5), limits=_QUICK, finishes=False
    ),
)
