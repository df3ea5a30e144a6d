"""Landlock (see landlock(7)): rules on files for a process without any privilege. x86_64 and aarch64 share numbers."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_RIGHTS_OF_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_NEWEST_RIGHTS = (1 << 16) - 1
_NETWORK_RIGHTS = 3  # bind and connect of TCP, version 4
_SCOPES = 3  # abstract unix sockets and signals, version 6

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Return the kernel's Landlock version; 0 where there is none."""
    found = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return max(found, 0)


def restrict(*, readable: Sequence[str], writable: Sequence[str]) -> None:
    """Confine this process and its children to these folders; no TCP, no signals to processes outside, where known.

    Raises:
        OSError: the kernel has no Landlock, or refused.
    """
    found = version()
    if found < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    rights = _RIGHTS_OF_VERSION.get(found, _NEWEST_RIGHTS)
    network = _NETWORK_RIGHTS if found >= 4 else 0
    scopes = _SCOPES if found >= 6 else 0
    attributes = struct.pack("=QQQ", rights, network, scopes)[: 8 if found < 4 else 16 if found < 6 else 24]
    ruleset = _checked(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)))
    try:
        for path in readable:
            _allow(ruleset, path, (_EXECUTE | _READ_FILE | _READ_DIR) & rights)
        for path in writable:
            _allow(ruleset, path, rights)
        for path in ("/dev/null", "/dev/zero", "/dev/full"):
            _allow(ruleset, path, (_READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV) & rights)
        for path in ("/dev/urandom", "/dev/random"):
            _allow(ruleset, path, _READ_FILE)
        _checked(_libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _FILE_ONLY | _TRUNCATE | _IOCTL_DEV
        rule = struct.pack("=Qi", rights, fd)
        add = _libc.syscall(
            ctypes.c_long(_ADD_RULE), ctypes.c_int(ruleset), _RULE_PATH_BENEATH, rule, ctypes.c_uint32(0)
        )
        _checked(add)
    finally:
        os.close(fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {os.strerror(number)}")
    return result
