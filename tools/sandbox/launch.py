"""Run as root, as a program: opens a path to folders that a lesser user may not reach, becomes that user, starts bwrap.

An interpreter below /root (mode 700) is readable by everybody but cannot be reached by them. In a mount namespace of
its own this process binds such folders to places that can be reached; only bwrap, and nothing else, ever sees them.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_HALL = "/tmp"

_libc = ctypes.CDLL(None, use_errno=True)


def main(settings: dict) -> None:
    """Become the user `uid` and execute `argv`, in which `@folder0@` is where the first of `folders` can be reached."""
    uid, folders, argv = settings["uid"], settings["folders"], settings["argv"]
    if uid == 0:
        sys.exit("bwrap that root started is no sandbox; a uid other than 0 is needed")
    if folders:
        reachable = _make_reachable(folders)
        for mark, door in reachable.items():
            argv = [word.replace(mark, door) for word in argv]
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.chdir("/")
    os.execve(argv[0], argv, {})


def _make_reachable(folders: list[str]) -> dict[str, str]:
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    # opened in the new namespace, before the hall hides what may lie below it
    fds = [os.open(folder, os.O_PATH) for folder in folders]
    _mount("tmpfs", _HALL, "tmpfs", 0, "mode=0755,size=64k")
    reachable = {}
    for number, fd in enumerate(fds):
        door = f"{_HALL}/{number}"
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            os.mkdir(door)
        else:
            os.close(os.open(door, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(f"/proc/self/fd/{fd}", door, None, _MS_BIND | _MS_REC, None)
        os.close(fd)
        reachable[f"@folder{number}@"] = door
    return reachable


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    result = _libc.mount(*words, ctypes.c_ulong(flags), None if options is None else options.encode())
    _checked(result, f"mount on {target}")


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
