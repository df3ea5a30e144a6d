"""The `landlock` back end: no namespaces, so it works in a plain container; a weaker border, only on request."""

from __future__ import annotations

import os
import subprocess
from typing import ClassVar

from agentenv.errors import SandboxUnavailable
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.sandbox.bwrap_command import CODE_ENV
from agentenv.tools.sandbox.forking_backend import ForkingBackend
from agentenv.tools.sandbox.inside import landlock, seccomp
from agentenv.tools.sandbox.interpreter_files import plain_interpreter
from agentenv.tools.sandbox.sandbox import Isolation
from agentenv.tools.sandbox.work_folders import WorkFolders
from agentenv.tools.sandbox.zygote_process import ZygoteSettings, boot_program, start_process

_READABLE = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")
_SIGNALS_ARE_SCOPED = 6


def make_backend(settings: SandboxSettings) -> LandlockBackend:
    """Return the back end; raises SandboxUnavailable where the kernel or the Python does not do."""
    return LandlockBackend()


class LandlockBackend(ForkingBackend):
    """See `ForkingBackend`. Code sees the same process table, network namespace and `/tmp` as we do.

    Landlock takes away all files but its own folder and the system's programs, the filter takes away sockets, and the
    limits are those of single processes plus a watch on the memory of all.

    Raises:
        SandboxUnavailable: the kernel has no Landlock, or too old a one for a user who is not root.
    """

    name: ClassVar[str] = "landlock"
    isolation: ClassVar[Isolation] = "reduced"

    def __init__(self, *, slots: int = 0) -> None:
        version = landlock.version()
        if version < 1:
            raise SandboxUnavailable("this kernel has no Landlock (5.13 or newer, with lsm=landlock)")
        if version < _SIGNALS_ARE_SCOPED and os.geteuid() != 0:
            # the code would be the same user as everything else that runs here, and could kill it
            raise SandboxUnavailable(
                f"Landlock {version} does not confine signals; run as root, or Linux 6.12 or newer"
            )
        self._python = plain_interpreter()
        super().__init__(slots=slots, folders=WorkFolders())

    def settings(self) -> ZygoteSettings:
        """See `ForkingBackend.settings`."""
        python = self._python
        path = ":".join(python.package_folders)
        return ZygoteSettings(
            has_namespaces=False,
            filter=seccomp.build_filter(has_network=False),
            readable=(*_READABLE, *([python.prefix] if python.prefix else ()), *python.packages),
            path=("", *python.package_folders),
            env=(*CODE_ENV, ("PATH", python.search_path), ("PYTHONPATH", path)),
            modules=python.modules,
        )

    def start_zygote(self, fd: int) -> subprocess.Popen[bytes]:
        """See `ForkingBackend.start_zygote`."""
        return start_plain_zygote(self._python.program, fd)


def start_plain_zygote(python: str, fd: int) -> subprocess.Popen[bytes]:
    """Start a zygote beside us, without namespaces."""
    boot = boot_program(folder=os.path.dirname(__file__), package="inside")
    return start_process([python, "-I", "-S", "-B", "-X", "utf8", "-c", boot, str(fd)], fd)
