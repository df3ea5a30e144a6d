"""Builds the system-call filter (classic BPF, see seccomp(2)) that model-written code runs under."""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable

_LD_W_ABS, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
# offsets in `struct seccomp_data`; arguments are 64 bit, little end first
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_FIRST_UNKNOWN = 470
"""System calls from this number on are younger than this list: they answer that they do not exist."""

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_NAMESPACES = 0x7E020000
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_TERMINAL_INJECTION = (0x5412, 0x541C, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCSETD

# name: (number on x86_64, number on aarch64); None where the architecture has no such call
_MISSING: dict[str, tuple[int | None, int | None]] = {
    # glibc falls back to clone, whose flags a filter can read; those of clone3 lie in memory, out of its reach
    "clone3": (435, 435),
    # memory that no RLIMIT counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # wide doors into the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "lookup_dcookie": (212, 18),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "_sysctl": (156, None),
    "nfsservctl": (180, 42),
    # System V memory, semaphores and messages outlive their process
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    # the machine
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
}
# the first argument names a process; 0 is oneself
_OF_A_PROCESS = {
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
}
# the first argument says what the second one names; a user, the last kind, would be everybody here
_OF_A_KIND = {"setpriority": (141, 140, 2), "ioprio_set": (251, 30, 3)}
_CLONE, _SOCKET, _IOCTL, _PRLIMIT = (56, 220), (41, 198), (16, 29), (302, 261)


def build_filter(machine: str = "", *, has_network: bool = True) -> bytes:
    """Return the program, 8 bytes an instruction.

    Args:
        machine: `x86_64` or `aarch64`; this machine's by default.
        has_network: False where no network namespace closes the network: no socket can be made, only pairs of them.

    Raises:
        OSError: another architecture, for which no list exists.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system-call list for {machine}; there is one for x86_64 and aarch64")
    column = 0 if machine == "x86_64" else 1
    program = [
        *_load(_ARCHITECTURE),
        _op(_JEQ, _ARCHITECTURES[machine], on_true=1),
        _op(_RET, _KILL_PROCESS),
        *_load(_NUMBER),
    ]
    if machine == "x86_64":
        program += [_op(_JGE, _X32_BIT, on_false=1), _fail(errno.ENOSYS)]
    program += [_op(_JGE, _FIRST_UNKNOWN, on_false=1), _fail(errno.ENOSYS)]
    program += _refuse((numbers[column] for numbers in _MISSING.values()), errno.ENOSYS)
    program += _refuse((numbers[column] for numbers in _DENIED.values()), errno.EPERM)
    program += _when(
        _CLONE[column], [*_load(_argument(0)), _op(_JSET, _NEW_NAMESPACES, on_false=1), _fail(errno.EPERM)]
    )
    program += _when(_SOCKET[column], _only_families(_FAMILIES if has_network else ()))
    program += _when(_IOCTL[column], _without_requests(_TERMINAL_INJECTION))
    program += _when(_PRLIMIT[column], _only_own_limits())
    # init is of the same user: slowed down for ever it would look broken, and a broken sandbox costs no reward
    for numbers in _OF_A_PROCESS.values():
        program += _when(numbers[column], [*_load(_argument(0)), *_unless_zero()])
    for *calls, user in _OF_A_KIND.values():
        of_no_user = [*_load(_argument(0)), _op(_JEQ, user, on_false=1), _fail(errno.EPERM)]
        program += _when(calls[column], [*of_no_user, *_load(_argument(1)), *_unless_zero()])
    program.append(_op(_RET, _ALLOW))
    return b"".join(program)


def _only_families(families: tuple[int, ...]) -> list[bytes]:
    checks = [_op(_JEQ, family, on_true=len(families) - i) for i, family in enumerate(families)]
    return [*_load(_argument(0)), *checks, _fail(errno.EAFNOSUPPORT)]


def _without_requests(requests: tuple[int, ...]) -> list[bytes]:
    checks = [ins for request in requests for ins in (_op(_JEQ, request, on_false=1), _fail(errno.EPERM))]
    return [*_load(_argument(1)), *checks]


def _only_own_limits() -> list[bytes]:
    """Reading is free; setting is for oneself (0): same user or not, init's limits are not the code's to lower."""
    return [
        *_load(_argument(0)),
        _op(_JEQ, 0, on_true=5),
        *_load(_argument(2)),
        _op(_JEQ, 0, on_false=2),
        *_load(_argument(2) + 4),
        _op(_JEQ, 0, on_true=1),
        _fail(errno.EPERM),
    ]


def _unless_zero() -> list[bytes]:
    return [_op(_JEQ, 0, on_true=1), _fail(errno.EPERM)]


def _refuse(numbers: Iterable[int | None], number: int) -> list[bytes]:
    known = [call for call in numbers if call is not None]
    return [ins for call in known for ins in (_op(_JEQ, call, on_false=1), _fail(number))]


def _when(call: int, body: list[bytes]) -> list[bytes]:
    """`body` ends the program or falls out at its end, where the accumulator no longer holds the call's number."""
    return [_op(_JEQ, call, on_false=len(body) + 1), *body, _op(_RET, _ALLOW)]


def _argument(index: int) -> int:
    return _ARGUMENTS + 8 * index


def _load(offset: int) -> list[bytes]:
    return [_op(_LD_W_ABS, offset)]


def _fail(number: int) -> bytes:
    return _op(_RET, _ERRNO | number)


def _op(code: int, value: int, *, on_true: int = 0, on_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, on_true, on_false, value)
