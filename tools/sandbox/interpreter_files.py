"""Which Python runs inside a sandbox, and which folders it needs there."""

from __future__ import annotations

import functools
import glob
import importlib.util
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from agentenv.errors import SandboxUnavailable

INSIDE = "/run/agentenv"
"""Where our own code is found in a sandbox."""

PACKAGES = "/run/packages"
"""Where packages of the host's environment are found in a sandbox."""

_SHARED = ("numpy",)
"""Packages of the host that code may import; nothing else of an environment is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpreterFiles:
    """A Python and its folders.

    Attributes:
        program: path of the interpreter, the same on both sides.
        prefix: folder that holds it and its standard library; empty when `/usr` does.
        masked: folders with other installed packages, which stay hidden.
        packages: files and folders shown in `PACKAGES`.
        modules: those packages, as they are imported.
    """

    program: str
    prefix: str
    masked: tuple[str, ...]
    packages: tuple[str, ...]
    modules: tuple[str, ...]

    @property
    def search_path(self) -> str:
        """Value of PATH inside."""
        own = [f"{self.prefix}/bin"] if self.prefix else []
        return ":".join([*own, "/usr/local/bin", "/usr/bin", "/bin"])

    @property
    def package_folders(self) -> tuple[str, ...]:
        """Folders that hold the packages on the host; everything else in them becomes importable too."""
        return tuple(sorted({os.path.dirname(path) for path in self.packages}))


@functools.cache
def interpreter_files() -> InterpreterFiles:
    """Return the Python that this process runs on, without its virtual environment."""
    program = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    packages = tuple(path for name in _SHARED for path in _package_paths(name))
    return InterpreterFiles(
        program=program,
        prefix="" if prefix == "/usr" or prefix.startswith("/usr/") else prefix,
        masked=tuple(sorted(_package_folders(prefix))),
        packages=packages,
        modules=tuple(name for name in _SHARED if _package_paths(name)),
    )


def plain_interpreter() -> InterpreterFiles:
    """Return a Python that every user can reach: ours, or one of the system without packages.

    Raises:
        SandboxUnavailable: there is none.
    """
    ours = interpreter_files()
    needed = [ours.program, *([ours.prefix] if ours.prefix else [])]
    if os.geteuid() != 0 or all(is_reachable(path) for path in needed):
        packages = tuple(path for path in ours.packages if os.geteuid() != 0 or is_reachable(path))
        return replace(ours, packages=packages, modules=ours.modules if packages else ())
    for program in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(program):
            return InterpreterFiles(program=program, prefix="", masked=(), packages=(), modules=())
    raise SandboxUnavailable(
        f"code runs as a user without rights, who cannot reach the Python at {ours.program} (a folder on the way is "
        f"closed to others), and there is no /usr/bin/python3; install one, or move the environment out of /root"
    )


def is_reachable(path: str) -> bool:
    """True when every user may reach and read this path."""
    here = Path(os.path.realpath(path))
    try:
        return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (here, *here.parents) if folder.is_dir())
    except OSError:
        return False


def _package_folders(prefix: str) -> set[str]:
    roots = {prefix, "/usr", "/usr/local"}
    found = (path for root in roots for path in glob.glob(f"{root}/lib*/python3*/*-packages"))
    return {path for path in found if os.path.isdir(path) and not os.path.islink(path)}


def _package_paths(name: str) -> list[str]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        return []
    folder = os.path.dirname(os.path.realpath(spec.origin))
    # wheels keep the shared libraries of a package beside it
    beside = f"{folder}.libs"
    return [folder, *([beside] if os.path.isdir(beside) else [])]
