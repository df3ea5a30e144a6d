"""The private machine of one episode or program: namespaces and sized folders in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping

from . import syscalls

WORK, SCRATCH, SHARED_MEMORY = "/work", "/tmp", "/dev/shm"

_SMALL_BYTES = 64 << 20
_PLAIN = syscalls.MS_NOSUID | syscalls.MS_NODEV


def enter_fresh_place(limits: Mapping[str, int]) -> tuple[str, ...]:
    """Give this process, 1 of a new process table, a place of its own; returns the folders that live in memory."""
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWNET)
    syscalls.raise_loopback()
    _mount_memory(WORK, limits["work_bytes"], limits["work_files"])
    _mount_memory(SCRATCH, min(_SMALL_BYTES, limits["work_bytes"]), limits["work_files"])
    _mount_memory(SHARED_MEMORY, min(_SMALL_BYTES, limits["work_bytes"]), limits["work_files"])
    _mount_processes()
    return (WORK, SCRATCH, SHARED_MEMORY)


def enter_shared_place() -> tuple[str, ...]:
    """Keep the folders and the network of the session that started this process, 1 of a new process table."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    _mount_processes()
    return (WORK, SCRATCH, SHARED_MEMORY)


def _mount_memory(path: str, size: int, files: int) -> None:
    options = f"size={size},nr_inodes={files + 1},mode=0755,uid={os.getuid()},gid={os.getgid()}"
    syscalls.mount("tmpfs", path, "tmpfs", _PLAIN, options)


def _mount_processes() -> None:
    syscalls.mount("proc", "/proc", "proc", _PLAIN | syscalls.MS_NOEXEC)
    # knobs of our own network namespace belong to the user that code runs as
    syscalls.mount("/proc/sys", "/proc/sys", "none", syscalls.MS_BIND | syscalls.MS_REC)
    flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | _PLAIN | syscalls.MS_NOEXEC
    syscalls.mount("none", "/proc/sys", "none", flags)
