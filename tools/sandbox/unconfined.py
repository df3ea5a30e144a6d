"""The `none` back end: no isolation at all. It needs the config and an environment variable, and says what it is."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import ClassVar

from agentenv.errors import SandboxUnavailable
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.sandbox.bwrap_command import CODE_ENV
from agentenv.tools.sandbox.forking_backend import ForkingBackend
from agentenv.tools.sandbox.interpreter_files import plain_interpreter
from agentenv.tools.sandbox.landlock import start_plain_zygote
from agentenv.tools.sandbox.sandbox import Isolation
from agentenv.tools.sandbox.work_folders import WorkFolders
from agentenv.tools.sandbox.zygote_process import ZygoteSettings

ALLOWED_BY = "AGENTENV_ALLOW_UNSANDBOXED"

_BANNER = """
***********************************************************************
* NO SANDBOX: code that a model wrote can read and delete your files, *
* and use your network. Root's code runs as a user without a name.    *
***********************************************************************
"""


def make_backend(settings: SandboxSettings) -> UnconfinedBackend:
    """Return the back end and print a banner; raises SandboxUnavailable without the environment variable."""
    backend = UnconfinedBackend()
    sys.stderr.write(_BANNER)
    return backend


class UnconfinedBackend(ForkingBackend):
    """See `ForkingBackend`. Limits of time and memory hold, nothing else does; code of root runs as nobody known.

    Raises:
        SandboxUnavailable: the environment does not allow it.
    """

    name: ClassVar[str] = "none"
    isolation: ClassVar[Isolation] = "none"

    def __init__(self, *, slots: int = 0) -> None:
        if os.environ.get(ALLOWED_BY) != "1":
            raise SandboxUnavailable(
                f"running code without any isolation needs the environment variable {ALLOWED_BY}=1 as well"
            )
        # root's rights over the whole machine are never lent to a model: one wrong "rm -rf" is enough
        self._python = plain_interpreter()
        super().__init__(slots=slots, folders=WorkFolders())

    def settings(self) -> ZygoteSettings:
        """See `ForkingBackend.settings`."""
        files = self._python
        return ZygoteSettings(
            has_namespaces=False,
            filter=b"",
            path=("", *files.package_folders),
            env=(*CODE_ENV, ("PATH", files.search_path), ("PYTHONPATH", ":".join(files.package_folders))),
            modules=files.modules,
        )

    def start_zygote(self, fd: int) -> subprocess.Popen[bytes]:
        """See `ForkingBackend.start_zygote`."""
        return start_plain_zygote(self._python.program, fd)
