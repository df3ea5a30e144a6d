"""Starts confined processes, and hears about what failed before any code of theirs ran."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from .confine import Confinement, become_code, reseed

_FAILED = 70


class SetupFailed(Exception):
    """The process could not be confined; nothing of its code has run."""


def start_code(
    body: Callable[[], NoReturn],
    *,
    confinement: Confinement,
    limits: Mapping[str, int],
    work: str,
    stdio: Sequence[int],
    keep: Sequence[int] = (),
) -> int:
    """Fork a confined process that runs `body`; returns its process id.

    Args:
        body: never returns.
        confinement: how it is confined.
        limits: see `become_code`.
        work: its folder.
        stdio: descriptors that become its standard input, output and error.
        keep: descriptors that stay open in it.

    Raises:
        SetupFailed: it ended before `body` began.
    """
    told, tell = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(told)
        os.close(tell)
        raise
    if pid == 0:
        _become(body, confinement, limits, work, stdio, (*keep, tell), tell)
    os.close(tell)
    try:
        # one byte once it is confined; a text where it could not be; nothing where it was killed on the way
        word = os.read(told, 4096)
    finally:
        os.close(told)
    if word != b"\0":
        os.waitpid(pid, 0)
        raise SetupFailed(word.decode("utf-8", "replace") or "the process ended before its code began")
    return pid


def _become(
    body: Callable[[], NoReturn],
    confinement: Confinement,
    limits: Mapping[str, int],
    work: str,
    stdio: Sequence[int],
    keep: Sequence[int],
    tell: int,
) -> NoReturn:
    try:
        for fd, source in enumerate(stdio):
            os.dup2(source, fd, inheritable=True)
        reseed()
        become_code(confinement, limits, work=work, keep=keep)
        os.write(tell, b"\0")
        os.close(tell)
    except BaseException as error:
        os.write(tell, f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace")[:4000])
        os._exit(_FAILED)
    body()
