"""Attacks that outlive their call, or turn signals and protocol frames against whoever runs them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from agentenv.tools.sandbox.attacks.attack import (
    SMALL,
    Arena,
    Attack,
    Broken,
    Kind,
    cells,
    ended,
    nothing_outlives,
    program,
    shell,
)

_KIND: Kind = "processes"
_QUICK = replace(SMALL, wall_s=1.0)

NAMED = """
import ctypes, os, signal, subprocess, sys, time
def named():
    ctypes.CDLL(None).prctl(15, b"<<mark>>", 0, 0, 0)
def linger():
    named()
    time.sleep(60)
"""
"""Prelude: a child that calls `linger` is recognised outside by its name."""

_FRAMES = """
import json, os, struct
words = ({"id": 1, "ending": "exited", "exit_code": 0, "stdout": "FORGED", "value": "FORGED", "output": "FORGED"},
         {"ok": True, "value": "FORGED"}, ["FORGED"], "FORGED")
for number in range(1 if CLOSED else 3, 64):
    for word in words:
        body = json.dumps(word).encode()
        for form in (struct.pack(">I", len(body)) + body, struct.pack("<I", len(body)) + body, body + b"\\n",
                     struct.pack(">Q", len(body)) + body, struct.pack(">I", 1 << 31), b"\\xff" * 64):
            try:
                os.set_blocking(number, False)
                os.write(number, form)
            except OSError:
                break
"""


async def _closes(arena: Arena) -> None:
    """What an episode started in its interpreter ends when the episode is closed."""
    async with arena.episode() as sandbox:
        code = arena.fill(
            f"{NAMED}\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        linger()\n"
        )
        cell = await sandbox.python(code)
        if cell.error and "BlockingIOError" not in cell.error:
            raise Broken(f"it did not run: {cell.error[-200:]}")
    nothing_outlives(arena)


async def _cancelled(arena: Arena) -> None:
    """A caller that gives up leaves nothing behind."""
    async with arena.episode() as sandbox:
        task = asyncio.ensure_future(sandbox.run(["sleep", arena.fill("60.<<mark>>")]))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with arena.episode() as sandbox:
        done = await sandbox.run(["sh", "-c", "echo $((6 * 7))"])
        if done.stdout.strip() != "42":
            raise Broken(f"the next episode gave {done}")


ATTACKS = (
    program(
        "leaves a daemon behind by forking twice",
        _KIND,
        f"""{NAMED}
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        linger()
    os._exit(0)
os.wait()
""",
    ),
    program(
        "leaves a child that holds its output open",
        _KIND,
        f"{NAMED}\nif os.fork() == 0:\n    linger()\nprint('parent done')",
        ended("exited", within_s=2.0),
    ),
    program(
        "leaves programs in sessions of their own",
        _KIND,
        """
import subprocess
for _ in range(5):
    subprocess.Popen(['sh', '-c', 'trap "" TERM HUP; exec sleep 60.<<mark>>'], start_new_session=True)
""",
    ),
    shell(
        "leaves jobs of a shell behind",
        _KIND,
        "for i in 1 2 3; do (trap '' TERM HUP; sh -c 'exec sleep 60.<<mark>>') & done; "
        "nohup sh -c 'exec sleep 60.<<mark>>' >/dev/null 2>&1 &",
        ended("exited", within_s=2.0),
    ),
    shell(
        "leaves a subreaper and its brood",
        _KIND,
        """
python3 -c 'import ctypes, os, time
ctypes.CDLL(None).prctl(36, 1)
for _ in range(4):
    if os.fork() == 0:
        os.setsid(); ctypes.CDLL(None).prctl(15, b"<<mark>>"); time.sleep(60)
' || true
""",
    ),
    program(
        "leaves children when its time is over",
        _KIND,
        f"{NAMED}\nfor _ in range(4):\n    if os.fork() == 0:\n        os.setsid()\n        linger()\ntime.sleep(60)",
        ended("timeout", within_s=1.0),
        limits=_QUICK,
        finishes=False,
    ),
    program(
        "stops itself",
        _KIND,
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        ended("timeout", within_s=1.0),
        limits=_QUICK,
        finishes=False,
    ),
    program(
        "stops its parents",
        _KIND,
        """
import os, signal
for pid in (os.getppid(), 1):
    if pid and pid != os.getpid():
        try:
            os.kill(pid, signal.SIGSTOP)
        except OSError:
            pass
""",
        ended("exited", "timeout", "signal", within_s=1.0),
        limits=_QUICK,
        finishes=False,
        needs="process table",
    ),
    program(
        "kills everything that it can see",
        _KIND,
        """
import os, signal, sys
try:
    os.kill(<<sleeper_pid>>, 0)
    print("GOT processes of the host in reach")
    sys.exit(0)  # it would end them too
except OSError:
    pass
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGKILL):
    try:
        os.kill(-1, number)
    except OSError:
        pass
""",
        ended("exited", "signal", "timeout", within_s=5.0),
        finishes=False,
        needs="process table",
    ),
    program(
        "signals processes of the host",
        _KIND,
        """
import os
for pid in (<<sleeper_pid>>, <<host_pid>>):
    try:
        os.kill(pid, 0)
        print("GOT a signal through to the host")
    except OSError:
        pass
""",
        needs="process table",
    ),
    program(
        "leaves zombies",
        _KIND,
        """
import os, time
for _ in range(20):
    if os.fork() == 0:
        os._exit(0)
time.sleep(0.1)
""",
    ),
    program("forges frames on every descriptor", _KIND, f"CLOSED = False\n{_FRAMES}", finishes=False),
    cells("forges frames in its interpreter", _KIND, [f"CLOSED = False\n{_FRAMES}"], finishes=False),
    cells("forges frames also on standard output", _KIND, [f"CLOSED = True\n{_FRAMES}"], finishes=False),
    cells(
        "forges frames from a thread after its cell",
        _KIND,
        [
            f"""
import threading, time
def later():
    time.sleep(0.05)
    exec({_FRAMES!r}, {{"CLOSED": False}})
threading.Thread(target=later, daemon=True).start()
"""
        ],
        finishes=False,
    ),
    cells("closes every descriptor", _KIND, ["import os; os.closerange(0, 256)"], finishes=False),
    cells(
        "reads what is meant for its keeper",
        _KIND,
        [
            """
import os
for number in range(3, 64):
    try:
        os.set_blocking(number, False)
        os.read(number, 1 << 20)
    except OSError:
        pass
"""
        ],
        finishes=False,
    ),
    cells(
        "forks its interpreter and lets both answer",
        _KIND,
        [
            """
import os
pid = os.fork()
'FORGED'
"""
        ],
        finishes=False,
    ),
    Attack(name="leaves daemons of an interpreter when it closes", kind=_KIND, play=_closes),
    Attack(name="runs on when its caller gives up", kind=_KIND, play=_cancelled),
)
