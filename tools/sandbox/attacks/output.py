"""Attacks that print without end."""

from __future__ import annotations

from dataclasses import replace

from agentenv.tools.sandbox.attacks.attack import SMALL, Arena, Broken, Kind, Seen, cells, ended, program
from agentenv.tools.sandbox.attacks.processes import NAMED

_KIND: Kind = "output"
_LIMITS = replace(SMALL, output_bytes=8192, wall_s=20.0)
_QUICK = replace(_LIMITS, wall_s=1.0)


def _bounded(_: Arena, result: Seen) -> None:
    """Beginning and end of each stream; escapes make at most six characters of a byte."""
    if len(result.text) > 6 * 2 * 8192 + 1000:
        raise Broken(f"{len(result.text):,} characters came out of {2 * 8192:,}")


def _cut(_: Arena, result: Seen) -> None:
    if "bytes omitted]" not in result.text:
        raise Broken(f"nothing says that output was cut: {result.text[:100]!r}")
    if "first word" not in result.text or "last word" not in result.text:
        raise Broken("beginning or end of the output is lost")


_FRAME = """
print('first word', flush=True)
{}
print('last word')
"""

ATTACKS = (
    program(
        "prints 50 MiB",
        _KIND,
        _FRAME.format("""
import os
for _ in range(800):
    os.write(1, b'x' * 65535 + b'\\n')
"""),
        _bounded,
        _cut,
        ended("exited"),
        limits=_LIMITS,
        finishes=False,
    ),
    program(
        "prints one line of 20 MiB",
        _KIND,
        _FRAME.format("print('x' * (20 << 20), flush=True)"),
        _bounded,
        _cut,
        ended("exited"),
        limits=_LIMITS,
        finishes=False,
    ),
    program(
        "writes a hundred thousand times",
        _KIND,
        _FRAME.format("""
import os
for _ in range(100_000):
    os.write(1, b'.')
"""),
        _bounded,
        _cut,
        ended("exited"),
        limits=_LIMITS,
        finishes=False,
    ),
    program(
        "prints errors without end",
        _KIND,
        """
import os
for _ in range(400):
    os.write(2, b'x' * 65536)
""",
        _bounded,
        ended("exited"),
        limits=_LIMITS,
        finishes=False,
    ),
    program(
        "prints on both streams",
        _KIND,
        """
import os
for _ in range(200):
    os.write(1, b'x' * 65536)
    os.write(2, b'y' * 65536)
""",
        _bounded,
        ended("exited"),
        limits=_LIMITS,
        finishes=False,
    ),
    program(
        "prints until its time is over",
        _KIND,
        """
import os
while True:
    os.write(1, b'x' * 65536)
""",
        _bounded,
        ended("timeout", within_s=1.0),
        limits=_QUICK,
        finishes=False,
    ),
    program(
        "prints and hangs",
        _KIND,
        """
import os, time
os.write(1, b'x' * (1 << 20))
time.sleep(60)
""",
        _bounded,
        ended("timeout", within_s=1.0),
        limits=_QUICK,
        finishes=False,
    ),
    program(
        "prints from a child when it is gone",
        _KIND,
        f"{NAMED}\nif os.fork() == 0:\n    named()\n    while True:\n        os.write(1, b'x' * 65536)",
        _bounded,
        ended("exited", within_s=2.0),
        limits=_LIMITS,
        finishes=False,
    ),
    program(
        "ignores a megabyte of input",
        _KIND,
        "print('not read')",
        ended("exited"),
        stdin="x" * (1 << 20),
        limits=_LIMITS,
    ),
    cells(
        "floods its interpreter", _KIND, ["for _ in range(2000):\n    print('x' * 10_000)"], _bounded, limits=_LIMITS
    ),
    cells("answers with a value of 20 MiB", _KIND, ["'x' * (20 << 20)"], _bounded, limits=_LIMITS),
    cells("raises an error of 20 MiB", _KIND, ["raise ValueError('x' * (20 << 20))"], _bounded, limits=_LIMITS),
)
