"""Turns a forked process into one that may run model-written code: limits, no capabilities, system-call filter."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import landlock, syscalls
from .program import Streams

WORK = "/work"

_INSIDE_ID = 1000
_SLACK_BYTES = 64 << 20
_STACK_BYTES = 8 << 20
_SHARED_PROCESSES = 4096
"""Without a user of its own, code is counted together with everything else that its user runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """How code is confined here; made once by the zygote.

    Attributes:
        has_namespaces: False in the reduced back ends, where no private process table or file system exists.
        filter: seccomp program; empty where nothing is filtered.
        readable: folders that Landlock leaves readable; empty where it is not used.
        code_uid: the user that code becomes when we are root and no namespace hides that; 0 to stay who we are.
        streams: standard streams of all forks.
        base_bytes: address space of the zygote, which every fork starts with.
    """

    has_namespaces: bool
    filter: bytes
    readable: tuple[str, ...]
    code_uid: int
    streams: Streams
    base_bytes: int


def become_code(confinement: Confinement, limits: Mapping[str, int], *, work: str, keep: Sequence[int]) -> None:
    """Confine this process for good. Raises OSError when any part of it fails: nothing may run then.

    Args:
        confinement: how.
        limits: `memory_bytes`, `processes`, `file_bytes`, `descriptors`, `cpu_s`.
        work: the working folder.
        keep: descriptors, besides the standard ones, that stay open.
    """
    os.setsid()
    _close_all_but((0, 1, 2, *keep))
    _enter_folder(work)
    if confinement.has_namespaces:
        _enter_own_user_namespace()
    else:
        _become_user(confinement.code_uid, work)
    _set_limits(confinement, limits)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    syscalls.drop_capabilities()
    syscalls.forbid_new_privileges()
    if confinement.readable:
        landlock.restrict(readable=confinement.readable, writable=(work,))
    if confinement.filter:
        syscalls.install_filter(confinement.filter)


def _enter_folder(work: str) -> None:
    """Go to the working folder; elsewhere when the code has locked it, which must not look like a failure of ours."""
    try:
        os.chdir(work)
    except PermissionError:
        os.chdir("/")


def _enter_own_user_namespace() -> None:
    """Count this code's processes apart from everybody else's, and own nothing that the zygote owns."""
    user, group = os.getuid(), os.getgid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    # the change of credentials made this process undumpable, which hides its own map files from it
    syscalls.set_dumpable(1)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{_INSIDE_ID} {user} 1")
    _write("/proc/self/gid_map", f"{_INSIDE_ID} {group} 1")


def _become_user(uid: int, work: str) -> None:
    """Where no namespace gives code a number of its own: be nobody in particular, at home in the working folder."""
    os.environ.update(HOME=work, TMPDIR=work)
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        syscalls.set_dumpable(1)
    # the kernel ends a process table with its first process; here nothing else would
    syscalls.die_with_parent()


def _set_limits(confinement: Confinement, limits: Mapping[str, int]) -> None:
    _write("/proc/self/oom_score_adj", "1000")
    # the stack of each thread takes address space, but memory only where it is used
    stacks = limits["processes"] * _STACK_BYTES
    address_space = limits["memory_bytes"] + confinement.base_bytes + stacks + _SLACK_BYTES
    cpu_s = limits["cpu_s"]
    is_counted_apart = confinement.has_namespaces or confinement.code_uid
    processes = limits["processes"] if is_counted_apart else _SHARED_PROCESSES
    for kind, soft, hard in (
        (resource.RLIMIT_AS, address_space, address_space),
        (resource.RLIMIT_STACK, _STACK_BYTES, _STACK_BYTES),
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        (resource.RLIMIT_NPROC, processes, processes),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["descriptors"], limits["descriptors"]),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 1 << 16, 1 << 16),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_SIGPENDING, 256, 256),
        (resource.RLIMIT_RTPRIO, 0, 0),
    ):
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


def _close_all_but(keep: Sequence[int]) -> None:
    last = 3
    for fd in (*sorted(fd for fd in keep if fd >= last), 1 << 20):
        os.closerange(last, fd)
        last = fd + 1


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def reseed() -> None:
    """Give this fork its own random numbers: every fork of one zygote would draw the same ones."""
    # the module random does this by itself in every fork
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(int.from_bytes(os.urandom(4), "little"))
