"""The `bwrap` back end: bubblewrap with a warm zygote inside, fresh namespaces for every program and episode."""

from __future__ import annotations

import shutil
import subprocess
from typing import ClassVar

from agentenv.errors import SandboxUnavailable
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.sandbox.bwrap_command import bwrap_settings, start_bwrap
from agentenv.tools.sandbox.forking_backend import ForkingBackend
from agentenv.tools.sandbox.sandbox import Isolation
from agentenv.tools.sandbox.zygote_process import ZygoteSettings

_REMEDY = "install bubblewrap (apt-get install bubblewrap)"


def make_backend(settings: SandboxSettings) -> BwrapBackend:
    """Return the back end; raises SandboxUnavailable without bwrap."""
    return BwrapBackend()


class BwrapBackend(ForkingBackend):
    """See `ForkingBackend`.

    Raises:
        SandboxUnavailable: bwrap is not installed.
    """

    name: ClassVar[str] = "bwrap"
    isolation: ClassVar[Isolation] = "strong"

    def __init__(self, *, slots: int = 0) -> None:
        program = shutil.which("bwrap")
        if program is None:
            raise SandboxUnavailable(f"bwrap is not installed; {_REMEDY}")
        super().__init__(slots=slots)
        self._program = program

    def settings(self) -> ZygoteSettings:
        """See `ForkingBackend.settings`."""
        return bwrap_settings()

    def start_zygote(self, fd: int) -> subprocess.Popen[bytes]:
        """See `ForkingBackend.start_zygote`."""
        return start_bwrap(self._program, fd)
