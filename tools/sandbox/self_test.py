"""What a back end must show, by running something, before any code of a model does."""

from __future__ import annotations

import json

from agentenv.errors import describe
from agentenv.tools.sandbox.sandbox import Isolation, Limits, SandboxBackend

_LIMITS = Limits(wall_s=20.0)

_PROGRAM = """
import ctypes, json, os, socket, subprocess, sys

libc = ctypes.CDLL(None)

def capabilities():
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    return libc.capget(header, data) or sum(data)

def opens(path, mode="rb"):
    try:
        open(path, mode).close()
    except OSError:
        return False
    return True

def makes(family):
    try:
        socket.socket(family).close()
    except OSError:
        return False
    return True

def seen(folder, wanted):
    try:
        return sum(bool(wanted(name)) for name in os.listdir(folder))
    except OSError:
        return 0

def interfaces():
    try:
        with open("/proc/net/dev") as file:
            return sorted(line.split(":")[0].strip() for line in file if ":" in line)
    except OSError:
        return []

found = {
    "is_root": os.getuid() == 0,
    "capabilities": capabilities(),
    "filtered": libc.prctl(21, 0, 0, 0, 0),
    "no_new_privileges": libc.prctl(39, 0, 0, 0, 0),
    "vsock": makes(40),
    "core_pattern": opens("/proc/sys/kernel/core_pattern", "r+b"),
    "environment_of_init": opens("/proc/1/environ"),
    "system_written": opens("/usr/agentenv-self-test", "wb"),
    "shadow": opens("/etc/shadow"),
    "work_written": opens("written", "wb"),
    "processes": seen("/proc", str.isdecimal),
    "interfaces": interfaces(),
    "secrets": sorted(name for name in os.environ if "KEY" in name or "TOKEN" in name),
    "child": subprocess.run([sys.executable or "python3", "-c", "print(7)"], capture_output=True, text=True).stdout,
}
print(json.dumps(found))
"""

_EVERYWHERE = {
    "is_root": False,
    "capabilities": 0,
    "filtered": 2,
    "no_new_privileges": 1,
    "vsock": False,
    "core_pattern": False,
    "environment_of_init": False,
    "system_written": False,
    "shadow": False,
    "work_written": True,
    "secrets": [],
    "child": "7\n",
}
_STRONG = {**_EVERYWHERE, "processes": 2, "interfaces": ["lo"]}


async def run_self_test(backend: SandboxBackend) -> str:
    """Run a program that tries what must fail and what must work; returns what is wrong, empty when nothing is."""
    try:
        completed = await backend.execute(_PROGRAM, limits=_LIMITS)
    except Exception as error:
        return describe(error)
    if not completed.is_success:
        return f"the self-test ended by {completed.ending}: {completed.stderr.strip()[-1000:]}"
    try:
        found = json.loads(completed.stdout)
    except ValueError:
        return f"the self-test printed {completed.stdout[:200]!r}"
    wrong = [
        f"{name} is {found.get(name)!r} and should be {value!r}"
        for name, value in _wanted(backend.isolation).items()
        if found.get(name) != value
    ]
    return "; ".join(wrong)


def _wanted(isolation: Isolation) -> dict[str, object]:
    return dict(_STRONG if isolation == "strong" else _EVERYWHERE)
