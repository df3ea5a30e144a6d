"""Ends vLLM's processes with the process that started them, also when that one is killed.

vLLM's core does not notice that its parent died, and would hold its memory for ever. Our plugin runs in each of its
processes, so each of them can look after itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator

_VARIABLE = "AGENTENV_VLLM_OWNER"


@contextlib.contextmanager
def owned_processes() -> Iterator[None]:
    """Make what vLLM starts inside this block end with this process."""
    os.environ[_VARIABLE] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[_VARIABLE]  # what else this process starts is none of our business


def end_with_owner() -> None:
    """Watch the owner from a thread, in a process that vLLM started for it; elsewhere do nothing."""
    owner = os.environ.get(_VARIABLE, "")
    if not owner.isdecimal() or int(owner) == os.getpid():
        return
    try:
        descriptor = os.pidfd_open(int(owner))
    except ProcessLookupError:
        _end()
    except (AttributeError, OSError):
        return  # no Linux, or one older than 5.3
    else:
        threading.Thread(target=_watch, args=(descriptor,), name="agentenv-owner", daemon=True).start()


def _watch(descriptor: int) -> None:
    select.select([descriptor], [], [])  # readable once the owner has ended
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
