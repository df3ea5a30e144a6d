"""Process 1 of a sandbox: starts confined code, watches its memory, ends everything, tells how it ended."""

from __future__ import annotations

import functools
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from . import place, syscalls, tree
from .code_process import SetupFailed, start_code
from .confine import Confinement
from .frames import Channel, Frame, FrameError, close_fds
from .program import Streams, run_command, run_python

BUSY_WATCH_S = 0.05
"""How often the memory of running code is looked at."""


class Init:
    """One init process and the code below it.

    Args:
        channel: to the side that asked for it.
        confinement: how code is confined.
        limits: of this sandbox.
        work: its working folder.
        folders: folders whose files live in memory and count as memory.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        confinement: Confinement,
        limits: Mapping[str, int],
        work: str,
        folders: Sequence[str],
    ) -> None:
        self.channel = channel
        self.confinement = confinement
        self.limits = limits
        self.work = work
        self._folders = tuple(folders)
        self._signals = syscalls.child_signals()
        self._poll = select.poll()
        self._poll.register(channel.sock, select.POLLIN)
        self._poll.register(self._signals, select.POLLIN)
        self._next_look = 0.0

    def start(self, body: Callable[[], NoReturn], *, stdio: Sequence[int], keep: Sequence[int] = ()) -> int:
        """Fork confined code; raises SetupFailed."""
        return start_code(
            body, confinement=self.confinement, limits=self.limits, work=self.work, stdio=stdio, keep=keep
        )

    def wait(self, *, watch_s: float) -> tuple[bool, dict[int, int], bool]:
        """Wait until something happens.

        Args:
            watch_s: seconds between two looks at the memory.

        Returns:
            Whether the peer has something to say, wait statuses of children that ended, and whether memory is over
            its limit.
        """
        # a deadline and no plain time-out: a flood of ending children must not put the look off for ever
        now = time.monotonic()
        self._next_look = min(self._next_look, now + watch_s)
        ready = {fd for fd, _ in self._poll.poll(max(0.0, self._next_look - now) * 1000)}
        ended: dict[int, int] = {}
        if self._signals in ready:
            os.read(self._signals, 4096)
            ended = tree.reap()
        is_over = False
        if time.monotonic() >= self._next_look:
            is_over = self._is_over_memory()
            self._next_look = time.monotonic() + watch_s
        return self.channel.sock.fileno() in ready, ended, is_over

    def watch_from_now(self, watch_s: float) -> None:
        """Look at the memory this many seconds from now, and then as often as `wait` says."""
        self._next_look = time.monotonic() + watch_s

    def kill_everyone(self) -> dict[int, int]:
        """End everything below; returns wait statuses."""
        return tree.kill_everyone(has_namespaces=self.confinement.has_namespaces)

    def _is_over_memory(self) -> bool:
        most = self.limits["memory_bytes"]
        used = tree.memory_used(has_namespaces=self.confinement.has_namespaces, limit=most, folders=self._folders)
        return used > most


def serve_program(init: Init, request: Frame) -> None:
    """Run one program, tell how it ended, and leave nothing of it behind."""
    stdio = init.channel.take_fds(3)
    try:
        pid = init.start(functools.partial(_run_program, request, init.confinement.streams), stdio=stdio)
    except (SetupFailed, OSError) as error:
        init.channel.send({"failed": str(error)})
        return
    finally:
        close_fds(stdio)
    init.watch_from_now(BUSY_WATCH_S)
    ended: dict[int, int] = {}
    is_over = is_asked_to_stop = has_ended_itself = False
    try:
        while pid not in ended and not is_over and not is_asked_to_stop:
            # the peer never speaks twice: what arrives is the end of its side, which asks for the end of ours
            is_asked_to_stop, ended, is_over = init.wait(watch_s=BUSY_WATCH_S)
        has_ended_itself = pid in ended
    finally:
        ended |= init.kill_everyone()
    # the code may have ended by itself while it was being stopped: then that is what happened
    init.channel.send(
        {"status": ended.get(pid, -1), "memory": is_over and not has_ended_itself, "stopped": is_asked_to_stop}
    )


def fork_init(peer: int, serve: Callable[[Channel], None], *, own_table: int | None, close: Sequence[int]) -> int:
    """Fork an init that serves `peer`; returns its process id here.

    Args:
        peer: socket to the side that asked; the caller closes its own copy.
        serve: what the init does.
        own_table: descriptor of this process's own process table: the init becomes 1 of a new one. None without
            namespaces.
        close: descriptors of the parent that the init must not hold.
    """
    if own_table is not None:
        syscalls.unshare(syscalls.CLONE_NEWPID)
    pid = -1
    try:
        pid = os.fork()
    finally:
        # the child was born into the new table; whatever this process forks otherwise belongs into its own
        if pid != 0 and own_table is not None:
            syscalls.setns(own_table, syscalls.CLONE_NEWPID)
    if pid == 0:
        _become_init(peer, serve, close, is_first=own_table is not None)
    return pid


def open_own_table() -> int:
    """Return a descriptor of this process's own process table."""
    return os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def _become_init(peer: int, serve: Callable[[Channel], None], close: Sequence[int], *, is_first: bool) -> NoReturn:
    try:
        close_fds(close)
        # a signal without a handler does not reach process 1 from inside; SIGCHLD is read from a descriptor
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        syscalls.set_dumpable(0)
        channel = Channel(socket.socket(fileno=peer))
        if not is_first:
            # the end of the process that forked us looks like the end of the peer's side, and so ends all below us
            signal.signal(signal.SIGTERM, lambda *_: channel.sock.shutdown(socket.SHUT_RD))
            syscalls.die_with_parent(signal.SIGTERM)
        try:
            serve(channel)
        except (OSError, FrameError, KeyError) as error:
            channel.send({"failed": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


def enter_place(request: Frame, *, has_namespaces: bool, is_fresh: bool) -> tuple[str, ...]:
    """Prepare where code will run; returns the folders that live in memory."""
    if not has_namespaces:
        syscalls.become_subreaper()
        return ()
    return place.enter_fresh_place(request["limits"]) if is_fresh else place.enter_shared_place()


def _run_program(request: Frame, streams: Streams) -> NoReturn:
    if "argv" in request:
        run_command(request["argv"])
    streams.use(is_merged=False)
    run_python(request["code"])
