"""The bubblewrap command line: what is visible inside, and that nothing there can be written."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from agentenv.tools.sandbox.inside import seccomp
from agentenv.tools.sandbox.interpreter_files import INSIDE, PACKAGES, InterpreterFiles, interpreter_files, is_reachable
from agentenv.tools.sandbox.zygote_process import ZygoteSettings, boot_program, start_process

_FIRST_UID = 58_317
"""A user that owns nothing on any usual machine; the next free one is taken where it has a name."""

_INSIDE_FOLDER = Path(__file__).parent / "inside"
_LAUNCHER = Path(__file__).parent / "launch.py"

CODE_ENV = (
    ("HOME", "/work"),
    ("LANG", "C.UTF-8"),
    ("MALLOC_ARENA_MAX", "2"),
    ("MKL_NUM_THREADS", "1"),
    ("OMP_NUM_THREADS", "1"),
    ("OPENBLAS_NUM_THREADS", "1"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
    ("TMPDIR", "/tmp"),
    ("USER", "sandbox"),
)
"""Environment of all code, besides its search paths."""


@dataclass(frozen=True, slots=True)
class _Reachable:
    """Names of folders on the command line, by what the user that runs bwrap can reach."""

    marks: dict[str, str]

    def __call__(self, path: str) -> str:
        return self.marks.get(path, path)


def bwrap_settings() -> ZygoteSettings:
    """Return how a zygote inside bubblewrap confines code; raises OSError on a processor without a filter."""
    files = interpreter_files()
    return ZygoteSettings(
        has_namespaces=True,
        filter=seccomp.build_filter(),
        path=("", PACKAGES),
        env=(*CODE_ENV, ("PATH", files.search_path), ("PYTHONPATH", PACKAGES)),
        modules=files.modules,
    )


def start_bwrap(program: str, fd: int) -> subprocess.Popen[bytes]:
    """Start a zygote in bubblewrap, as a user who is not root.

    Args:
        program: path of bwrap.
        fd: the zygote's end of the control socket.
    """
    files = interpreter_files()
    boot = boot_program(folder=INSIDE, package="inside")
    zygote = ["--", files.program, "-I", "-S", "-B", "-X", "utf8", "-c", boot, str(fd)]
    if os.geteuid() != 0:
        return start_process([*bwrap_arguments(program, files, _Reachable({})), *zygote], fd)
    shown = [folder for folder in (files.prefix, str(_INSIDE_FOLDER), *files.packages) if folder]
    # the launcher's doors stand in /tmp and hide what lies below it, so it is all of them or none
    hidden = [] if all(is_reachable(folder) for folder in shown) else shown
    reachable = _Reachable({folder: f"@folder{i}@" for i, folder in enumerate(hidden)})
    launch = {"uid": free_uid(), "folders": hidden, "argv": [*bwrap_arguments(program, files, reachable), *zygote]}
    return start_process([sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(launch)], fd)


def free_uid() -> int:
    """Return the user that bwrap runs as when we are root: one without a name, and never 0."""
    uid = _FIRST_UID
    while _has_name(uid):
        uid += 1
    return uid


def bwrap_arguments(program: str, files: InterpreterFiles, reachable: _Reachable) -> list[str]:
    """Return bwrap and its options: everything read-only, no network, no `/etc` of the host, no environment."""
    argv = [
        program,
        *("--unshare-user", "--unshare-all", "--uid", "0", "--gid", "0", "--hostname", "sandbox"),
        # the zygote makes namespaces for code and keeps these rights to itself; the last one lets it map its own user,
        # who is 0 inside, to another number in a namespace below
        *("--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_NET_ADMIN", "--cap-add", "CAP_SETFCAP"),
        *("--die-with-parent", "--new-session", "--as-pid-1"),
        *("--ro-bind", "/usr", "/usr"),
    ]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = f"/{name}"
        if os.path.islink(path):
            argv += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            argv += ["--ro-bind", path, path]
    if files.prefix:
        argv += ["--ro-bind", reachable(files.prefix), files.prefix]
    for folder in files.masked:
        argv += ["--tmpfs", folder, "--remount-ro", folder]
    for path in files.packages:
        argv += ["--ro-bind", reachable(path), f"{PACKAGES}/{os.path.basename(path)}"]
    argv += ["--ro-bind", reachable(str(_INSIDE_FOLDER)), f"{INSIDE}/inside"]
    for name in ("passwd", "group", "hosts"):
        argv += ["--symlink", f"{INSIDE}/inside/etc/{name}", f"/etc/{name}"]
    argv += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    argv += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    argv += ["--proc", "/proc", "--dev", "/dev", "--dir", "/tmp", "--dir", "/work"]
    return [*argv, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
