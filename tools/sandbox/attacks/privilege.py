"""Attacks that gain privileges, or reach parts of the kernel that no program of a model needs."""

from __future__ import annotations

from agentenv.tools.sandbox.attacks.attack import Arena, Attack, Broken, Kind, Seen, program

_KIND: Kind = "privilege"

# number on x86_64, number on aarch64, arguments that a kernel which looks at them refuses or that do nothing
_CALLS: dict[str, tuple[int, int, str]] = {
    "ptrace": (101, 117, "0, 0, 0, 0"),
    "process_vm_readv": (310, 270, "os.getppid(), 0, 0, 0, 0, 0"),
    "process_vm_writev": (311, 271, "os.getppid(), 0, 0, 0, 0, 0"),
    "mount": (165, 40, "0, 0, 0, 0, 0"),
    "umount2": (166, 39, "0, 0"),
    "pivot_root": (155, 41, "0, 0"),
    "chroot": (161, 51, "0"),
    "open_tree": (428, 428, "-1, b'/', 1"),
    "move_mount": (429, 429, "-1, 0, -1, 0, 0"),
    "fsopen": (430, 430, "b'tmpfs', 0"),
    "mount_setattr": (442, 442, "-1, 0, 0, 0, 0"),
    "setns": (308, 268, "-1, 0"),
    "unshare": (272, 97, "0x10000000"),
    "bpf": (321, 280, "0, 0, 0"),
    "perf_event_open": (298, 241, "0, 0, -1, -1, 0"),
    "userfaultfd": (323, 282, "1"),
    "io_uring_setup": (425, 425, "1, 0"),
    "keyctl": (250, 219, "0, -3, 0"),
    "add_key": (248, 217, "0, 0, 0, 0, -3"),
    "request_key": (249, 218, "0, 0, 0, 0"),
    "open_by_handle_at": (304, 265, "-1, 0, 0"),
    "init_module": (175, 105, "0, 0, 0"),
    "finit_module": (313, 273, "-1, 0, 0"),
    "delete_module": (176, 106, "0, 0"),
    "kexec_load": (246, 104, "0, 0, 0, -1"),
    "personality": (135, 92, "0xFFFFFFFF"),
    "pidfd_getfd": (438, 438, "-1, 0, 0"),
    "shmget": (29, 194, "0x5AFE5AFE, 1, 0"),
    "semget": (64, 190, "0x5AFE5AFE, 1, 0"),
    "msgget": (68, 186, "0x5AFE5AFE, 0"),
}

_REFUSED = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
number = {{"x86_64": {x86}, "aarch64": {arm}}}.get(os.uname().machine)
if number is not None:
    ctypes.set_errno(0)
    result = libc.syscall(number, {arguments})
    if result >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS, errno.EACCES):
        print("GOT", {name!r}, result, errno.errorcode.get(ctypes.get_errno()))
"""


def _refused(name: str) -> Attack:
    x86, arm, arguments = _CALLS[name]
    code = _REFUSED.format(x86=x86, arm=arm, arguments=arguments, name=name)
    return program(f"makes the system call {name}", _KIND, code)


_STATUS = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
"""


def _is_killed_or_refused(_: Arena, result: Seen) -> None:
    if result.ending not in ("signal", "exited"):
        raise Broken(f"it ended by {result.ending}")


_FOREIGN = """
import ctypes, mmap, os, platform, sys
if platform.machine() != "x86_64":
    sys.exit(0)
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write({code})
call = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
result = call()
if {reached}:
    print("GOT an answer of a foreign architecture:", result, flush=True)
os._exit(0)
"""

ATTACKS = (
    *(_refused(name) for name in _CALLS),
    program(
        "has capabilities",
        _KIND,
        f"""{_STATUS}
header, found = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
if libc.capget(header, found) == 0 and any(found):
    print("GOT capabilities", [hex(word) for word in found])
""",
    ),
    program(
        "may gain privileges by a set-user-id program",
        _KIND,
        f"{_STATUS}\nif libc.prctl(39, 0, 0, 0, 0) != 1:\n    print('GOT no_new_privs unset')",
    ),
    program(
        "runs without a filter of system calls",
        _KIND,
        f"{_STATUS}\nif libc.prctl(21, 0, 0, 0, 0) != 2:\n    print('GOT no filter')",
    ),
    program(
        "becomes root",
        _KIND,
        """
import os
for attempt in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try:
        attempt()
        if os.geteuid() == 0 and open("/proc/self/uid_map").read().split()[1:2] == ["0"]:
            print("GOT root of the host")
    except OSError:
        pass
if os.getuid() == 0 and open("/proc/self/uid_map").read().split()[1:2] == ["0"]:
    print("GOT root of the host")
""",
    ),
    program(
        "makes namespaces of its own",
        _KIND,
        """
import ctypes, errno, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x02000000):
    if libc.unshare(flag) == 0:
        print("GOT a namespace", hex(flag))
number = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)
for flag in (0x10000000, 0x10000000 | 0x00020000):
    pid = libc.syscall(number, flag | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid > 0:
        os.waitpid(pid, 0)
        print("GOT a child in a namespace of its own")
import struct
pid = libc.syscall(435, struct.pack("11Q", 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88)
if pid == 0:
    os._exit(0)
if pid > 0:
    os.waitpid(pid, 0)
    print("GOT a child in a namespace by clone3")
""",
    ),
    program(
        "raises its limits",
        _KIND,
        """
import os, resource
for name in ("RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_CORE"):
    kind = getattr(resource, name)
    before = resource.getrlimit(kind)[1]
    if before == resource.RLIM_INFINITY:
        print("GOT no limit", name)
        continue
    try:
        resource.setrlimit(kind, (before + 1, before + 1))
        print("GOT a higher", name)
    except (OSError, ValueError):
        pass
try:
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    print("GOT a higher priority")
except OSError:
    pass
try:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    print("GOT real-time scheduling")
except OSError:
    pass
""",
    ),
    program(
        "sets the clock and the name of the machine",
        _KIND,
        """
import socket, time
try:
    socket.sethostname(socket.gethostname())
    print("GOT the name of the machine")
except OSError:
    pass
try:
    time.clock_settime(time.CLOCK_REALTIME, -1)
    print("GOT the clock")
except (PermissionError, AttributeError):
    pass
except OSError as error:
    print("GOT as far as the clock", error)
""",
    ),
    program(
        "types into the terminal of the host",
        _KIND,
        """
import fcntl, os
for number in (0, 1, 2):
    try:
        fcntl.ioctl(number, 0x5412, b"x")
        print("GOT a key pressed")
    except OSError:
        pass
try:
    os.close(os.open("/dev/tty", os.O_RDWR))
    print("GOT the terminal")
except OSError:
    pass
""",
    ),
    program(
        "makes system calls of a 32-bit program",
        _KIND,
        # mov eax, 20 (getpid); int 0x80; ret
        _FOREIGN.format(code=r'b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"', reached="result > 0"),
        _is_killed_or_refused,
        finishes=False,
    ),
    program(
        "makes system calls of the x32 kind",
        _KIND,
        # mov eax, 0x40000027 (getpid); syscall; ret
        _FOREIGN.format(code=r'b"\xb8\x27\x00\x00\x40\x0f\x05\xc3"', reached="result > 0"),
        _is_killed_or_refused,
        finishes=False,
    ),
)
