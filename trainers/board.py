"""A board of short notes that all ranks read and write: torch's key-value store, with a connection per thread.

torchrun's agent holds it, outside the ranks. Where rank 0 itself holds it (ranks started by hand), a rank 0 that is
stopped but not dead cannot be told from a slow one.
"""

from __future__ import annotations

import time
from typing import Any

_LONGEST_PAUSE_S = 0.05


class BoardGone(Exception):
    """The process that holds the board has ended."""


class Board:
    """Notes by name, over a connection of its own.

    Args:
        store: a `torch.distributed` store. A connection serves one call at a time, so every thread takes its own.
    """

    def __init__(self, store: Any) -> None:
        self._store = store.clone()

    def another(self) -> Board:
        """Return the same board over another connection."""
        return Board(self._store)

    def write(self, name: str, text: str = "") -> None:
        """Put up a note, over an older one of this name.

        Raises:
            BoardGone: nobody holds the board any more; so do all methods.
        """
        self._do("set", name, text)

    def read(self, name: str) -> str | None:
        """Return a note's text, or None where there is none."""
        if not self._do("check", [name]):
            return None
        return self._do("get", name).decode(errors="replace")

    def has(self, name: str) -> bool:
        """True where a note of this name is up."""
        return self._do("check", [name])

    def erase(self, name: str) -> None:
        """Take a note down, if there is one."""
        self._do("delete_key", name)

    def wait(self, name: str, *, timeout_s: float) -> bool:
        """Wait until a note is up; False where it did not come in time."""
        # by looking again and again: the store's own wait complains aloud whenever its time is up
        deadline, pause_s = time.monotonic() + timeout_s, 0.001
        while not self.has(name):
            if time.monotonic() > deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return True

    def _do(self, verb: str, *args: Any) -> Any:
        try:
            return getattr(self._store, verb)(*args)
        except RuntimeError as error:
            raise BoardGone(str(error).partition("\n")[0]) from error
