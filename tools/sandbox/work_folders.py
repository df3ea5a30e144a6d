"""Working folders on disk, for back ends without a file system of their own for each sandbox."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import deque

from agentenv.tools.sandbox.inside.files import WorkFolder

_FIRST_UID, _RANGE, _RANGES = 58_368, 512, 14
"""Users that have no name on any usual machine: the last ones below 65,536, the most that many containers know."""


class WorkFolders:
    """Makes and removes folders below one temporary folder.

    Where we are root, each folder belongs to a user of its own, as whom its code will run: the kernel then counts and
    separates the processes of two sandboxes.
    """

    def __init__(self) -> None:
        # several processes of one run take different ranges, so far as there are enough
        first = _FIRST_UID + os.getpid() % _RANGES * _RANGE
        self._uids = deque(range(first, first + _RANGE)) if os.geteuid() == 0 else deque()
        self._parent = tempfile.mkdtemp(prefix="agentenv-sandbox-")
        # searched, but not listed, by the users that code runs as
        os.chmod(self._parent, 0o711)

    def make(self) -> str:
        """Return a new, empty folder."""
        folder = tempfile.mkdtemp(dir=self._parent)
        if self._uids:
            uid = self._uids[0]
            # used again after all the others
            self._uids.rotate(-1)
            os.chown(folder, uid, uid)
        return folder

    def remove(self, folder: str) -> None:
        """Remove a folder, however deep the code has nested it."""
        with contextlib.suppress(OSError):
            work = WorkFolder(folder, most_bytes=0, most_files=0)
            try:
                work.clear()
            finally:
                work.close()
            os.rmdir(folder)

    def close(self) -> None:
        """Remove all that is left."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._parent):
                self.remove(f"{self._parent}/{name}")
        shutil.rmtree(self._parent, ignore_errors=True)
