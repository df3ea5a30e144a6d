"""Attacks that use up memory, disk, processes or descriptors."""

from __future__ import annotations

from dataclasses import replace

from agentenv.tools.sandbox.attacks.attack import SMALL, Arena, Broken, Kind, Seen, cells, program
from agentenv.tools.sandbox.attacks.processes import NAMED

_KIND: Kind = "bombs"
_LONG = replace(SMALL, wall_s=10.0)
_NARROW = replace(SMALL, descriptors=64)

_FILL = """
import os, shutil
folder = os.path.join({folder!r}, "<<mark>>")
written, block = 0, bytes(1 << 20)
try:
    os.makedirs(folder)
    for index in range({mebibytes} // 4):
        with open(f"{{folder}}/{{index}}", "wb") as file:
            for _ in range(4):
                written += file.write(block)
except OSError:
    pass
else:
    print("GOT", written >> 20, "MiB of files in {folder}")
shutil.rmtree(folder, ignore_errors=True)
"""


def _contained(_: Arena, result: Seen) -> None:
    """However it ended, it ended by its limits or its own exit."""
    if result.ending not in ("exited", "memory", "signal", "timeout"):
        raise Broken(f"it ended by {result.ending}")


ATTACKS = (
    program(
        "forks without end",
        _KIND,
        f"""{NAMED}
count = 0
try:
    for count in range(200):
        if os.fork() == 0:
            linger()
except OSError:
    pass
else:
    print("GOT 200 processes")
""",
        limits=_LONG,
    ),
    program(
        "forks in every child",
        _KIND,
        f"{NAMED}\nnamed()\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.05)",
        _contained,
        limits=replace(SMALL, wall_s=1.0),
        finishes=False,
    ),
    program(
        "starts threads without end",
        _KIND,
        """
import threading, time
threading.stack_size(65536)
try:
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
except RuntimeError:
    pass
else:
    print("GOT 200 threads")
""",
        limits=_LONG,
    ),
    program(
        "takes memory without end",
        _KIND,
        """
kept = []
for _ in range(40):
    kept.append(bytearray(b'x') * (8 << 20))
print('GOT 320 MiB', flush=True)
__import__('time').sleep(0.5)
""",
        _contained,
        limits=_LONG,
        finishes=False,
    ),
    program(
        "takes memory in many children",
        _KIND,
        f"""{NAMED}
pipe = os.pipe()
for _ in range(12):
    if os.fork() == 0:
        named()
        try:
            kept = bytearray(b"x") * (32 << 20)
            os.write(pipe[1], b"x")
        except MemoryError:
            pass
        time.sleep(4)
        os._exit(0)
os.close(pipe[1])
time.sleep(2)
os.set_blocking(pipe[0], False)
if len(os.read(pipe[0], 100)) == 12:
    print("GOT 12 times 32 MiB", flush=True)
    time.sleep(1)
""",
        _contained,
        limits=_LONG,
        finishes=False,
    ),
    program(
        "takes memory without a name",
        _KIND,
        """
import os, time
kept = []
try:
    for _ in range(10):
        descriptor = os.memfd_create("kept")
        kept.append(descriptor)
        for _ in range(7):
            os.write(descriptor, bytes(4 << 20))
except (OSError, AttributeError):
    pass
else:
    print("GOT 280 MiB without a name", flush=True)
    time.sleep(0.5)
""",
        _contained,
        finishes=False,
    ),
    program(
        "takes shared memory",
        _KIND,
        """
import mmap, time
kept = []
try:
    for _ in range(40):
        page = mmap.mmap(-1, 8 << 20)
        page.write(b"x" * (8 << 20))
        kept.append(page)
except (OSError, ValueError, MemoryError):
    pass
else:
    print("GOT 320 MiB of shared memory", flush=True)
    time.sleep(0.5)
""",
        _contained,
        finishes=False,
    ),
    program(
        "takes memory in pipes and sockets",
        _KIND,
        """
import fcntl, os, socket
total = 0
try:
    for _ in range(300):
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        fcntl.fcntl(writer, 1031, 1 << 20)
        total += os.write(writer, bytes(1 << 20))
        one, other = socket.socketpair()
        one.setblocking(False)
        total += one.send(bytes(1 << 17))
except OSError:
    pass
else:
    print("GOT", total >> 20, "MiB in pipes and sockets")
""",
        _contained,
        finishes=False,
    ),
    program(
        "fills its folder",
        _KIND,
        _FILL.format(folder=".", mebibytes=96),
        _contained,
        finishes=False,
        needs="disk quota",
        limits=_LONG,
    ),
    program(
        "fills /tmp",
        _KIND,
        _FILL.format(folder="/tmp", mebibytes=256),
        _contained,
        finishes=False,
        needs="disk quota",
        limits=_LONG,
    ),
    program(
        "fills /dev/shm",
        _KIND,
        _FILL.format(folder="/dev/shm", mebibytes=192),
        _contained,
        finishes=False,
        needs="disk quota",
        limits=_LONG,
    ),
    program(
        "fills /var/tmp",
        _KIND,
        _FILL.format(folder="/var/tmp", mebibytes=96),
        _contained,
        finishes=False,
        limits=_LONG,
        needs="disk quota",
    ),
    program(
        "makes files without end",
        _KIND,
        """
import os, shutil
os.mkdir("many")
try:
    for index in range(3000):
        open(f"many/{index}", "w").close()
except OSError:
    pass
else:
    print("GOT 3000 files")
shutil.rmtree("many", ignore_errors=True)
""",
        needs="disk quota",
    ),
    program(
        "writes one file without end",
        _KIND,
        """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with open("large", "wb") as file:
        for _ in range(12):
            file.write(bytes(1 << 20))
            file.flush()
    print("GOT a file of 12 MiB")
except OSError:
    pass
os.path.exists("large") and os.unlink("large")
""",
    ),
    program(
        "makes a sparse file of a terabyte",
        _KIND,
        """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with open("sparse", "wb") as file:
        file.truncate(1 << 40)
    print("GOT a file of a terabyte")
except OSError:
    pass
os.path.exists("sparse") and os.unlink("sparse")
""",
    ),
    program(
        "opens descriptors without end",
        _KIND,
        """
import os
kept = []
try:
    for _ in range(300):
        kept.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
else:
    print("GOT 300 descriptors")
for descriptor in kept:
    os.close(descriptor)
""",
        limits=_NARROW,
    ),
    program(
        "unpacks a bomb",
        _KIND,
        """
import time, zlib
small = zlib.compress(bytes(400 << 20), 9)
large = zlib.decompress(small)
print('GOT', len(large) >> 20, 'MiB', flush=True)
time.sleep(0.5)
""",
        _contained,
        finishes=False,
        limits=_LONG,
    ),
    cells(
        "takes the memory of its interpreter",
        _KIND,
        [
            """
kept = [bytearray(b'x') * (8 << 20) for _ in range(40)]
print('GOT 320 MiB')
__import__('time').sleep(0.5)
"""
        ],
        _contained,
        finishes=False,
        limits=_LONG,
    ),
    cells(
        "takes the processes of its interpreter",
        _KIND,
        [
            f"""{NAMED}
children = []
try:
    for _ in range(200):
        children.append(os.fork())
        if not children[-1]:
            linger()
    print("GOT 200 processes")
except OSError:
    pass
for child in children:
    os.kill(child, signal.SIGKILL)
"""
        ],
        _contained,
        finishes=False,
        limits=_LONG,
    ),
)
