"""Process 1 of an episode's sandbox: keeps its folder and its interpreter, and starts programs beside them."""

from __future__ import annotations

import functools
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from . import tree
from .code_process import SetupFailed
from .files import Refused, WorkFolder
from .frames import MAX_FRAME_BYTES, Channel, Frame, close_fds
from .init import BUSY_WATCH_S, Init, enter_place, fork_init, open_own_table, serve_program
from .interpreter import run_interpreter
from .program import Streams

_IDLE_WATCH_S = 0.25
"""Between calls only what the code left in the background can grow; a thousand sleeping sessions must stay cheap."""

_STEP_S = 0.001
_FILE_OPERATIONS = frozenset({"read", "write", "list", "snapshot", "restore"})


class Session:
    """Serves one episode until the peer shuts its side.

    Args:
        init: this process.
    """

    def __init__(self, init: Init) -> None:
        self._init = init
        limits = init.limits
        self._folder = WorkFolder(init.work, most_bytes=limits["work_bytes"], most_files=limits["work_files"])
        self._own_table = open_own_table() if init.confinement.has_namespaces else None
        self._python = 0
        self._watch_s = _IDLE_WATCH_S
        self._operations: dict[str, Callable[[Frame], Frame]] = {
            "start_python": self._start_python,
            "stop_python": self._stop_python,
            "busy": self._busy,
            "program": self._program,
            "read": self._read,
            "write": self._write,
            "list": self._list,
            "snapshot": self._snapshot,
            "restore": self._restore,
        }

    def serve(self) -> None:
        """Answer until the peer shuts its side, then end everything."""
        self._init.channel.send({"ready": True})
        try:
            self._loop()
        finally:
            self._init.kill_everyone()

    def _loop(self) -> None:
        init = self._init
        while True:
            is_spoken_to, ended, is_over = init.wait(watch_s=self._watch_s)
            if is_over:
                ended |= init.kill_everyone()
            if self._python in ended:
                self._tell_python_ended(ended[self._python], is_over=is_over)
            if not is_spoken_to:
                continue
            while True:
                request = init.channel.receive()
                if request is None:
                    return
                self._answer(request)
                if not init.channel.has_waiting():
                    break

    def _answer(self, request: Frame) -> None:
        answer: Frame
        operation = self._operations[request["op"]]
        try:
            if request["op"] in _FILE_OPERATIONS:
                with self._as_code_user():
                    answer = operation(request)
            else:
                answer = operation(request)
        except Refused as error:
            answer = {"refused": str(error)}
        except OSError as error:
            # a full disk, a folder without rights: what the code did to its folder, and no failure of ours
            answer = {"refused": os.strerror(error.errno or 0)}
        except SetupFailed as error:
            answer = {"failed": str(error)}
        self._init.channel.send({**answer, "id": request["id"]})

    def _start_python(self, request: Frame) -> Frame:
        cell, output = self._init.channel.take_fds(2)
        nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        body = functools.partial(_run_python, cell, self._init.limits["output_bytes"], self._init.confinement.streams)
        try:
            self._python = self._init.start(body, stdio=(nothing, output, output), keep=(cell,))
        except OSError as error:
            raise SetupFailed(str(error)) from None
        finally:
            close_fds((cell, output, nothing))
        return {}

    def _stop_python(self, request: Frame) -> Frame:
        """End the interpreter; `status` only where it ended by itself within `grace_s`."""
        deadline = time.monotonic() + request["grace_s"]
        ended = tree.reap()
        while self._python and self._python not in ended and time.monotonic() < deadline:
            time.sleep(_STEP_S)
            ended |= tree.reap()
        self._init.kill_everyone()
        python, self._python = self._python, 0
        return {"status": ended[python]} if python in ended else {}

    def _busy(self, request: Frame) -> Frame:
        self._watch_s = BUSY_WATCH_S if request["is_busy"] else _IDLE_WATCH_S
        if request["is_busy"]:
            self._init.watch_from_now(0.0)
        return {}

    def _program(self, request: Frame) -> Frame:
        (peer,) = self._init.channel.take_fds(1)
        serve = functools.partial(_serve_program_beside, self._init)
        close = (self._init.channel.sock.fileno(),)
        try:
            fork_init(peer, serve, own_table=self._own_table, close=close)
        except OSError as error:
            raise SetupFailed(str(error)) from None
        finally:
            os.close(peer)
        return {}

    def _read(self, request: Frame) -> Frame:
        size = min(request["size"], MAX_FRAME_BYTES // 2)
        return self._folder.read(request["path"], offset=request["offset"], size=size)

    def _write(self, request: Frame) -> Frame:
        return self._folder.write(request["path"], data=request["data"], is_first=request["is_first"])

    def _list(self, request: Frame) -> Frame:
        for chunk in self._folder.entries(request["path"]):
            self._init.channel.send({"id": request["id"], "is_part": True, "entries": chunk})
        return {}

    def _snapshot(self, request: Frame) -> Frame:
        (target,) = self._init.channel.take_fds(1)
        with os.fdopen(target, "wb") as file, self._all_paused():
            self._folder.snapshot(file)
        return {}

    def _restore(self, request: Frame) -> Frame:
        (source,) = self._init.channel.take_fds(1)
        with os.fdopen(source, "rb") as file, self._all_paused():
            self._folder.restore(file)
        return {}

    @contextmanager
    def _as_code_user(self) -> Iterator[None]:
        """Touch files as the user that owns them: what is made is theirs, and root's rights are not lent to a path."""
        uid = self._init.confinement.code_uid
        if uid:
            os.setegid(uid)
            os.seteuid(uid)
        try:
            yield
        finally:
            if uid:
                os.seteuid(0)
                os.setegid(0)

    @contextmanager
    def _all_paused(self) -> Iterator[None]:
        """Hold the code while its folder is read or replaced, so that it cannot race."""
        self._signal_all(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        pids = [-1] if self._init.confinement.has_namespaces else tree.descendants()
        for pid in pids:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                continue

    def _tell_python_ended(self, status: int, *, is_over: bool) -> None:
        self._python = 0
        # what it started must not outlive it
        self._init.kill_everyone()
        self._init.channel.send({"event": "python_ended", "status": status, "memory": is_over})


def serve_session(init: Init) -> None:
    """Serve an episode."""
    Session(init).serve()


def _serve_program_beside(outer: Init, channel: Channel) -> None:
    request = channel.receive()
    if request is None:
        return
    has_namespaces = outer.confinement.has_namespaces
    folders = enter_place(request, has_namespaces=has_namespaces, is_fresh=False)
    init = Init(channel, confinement=outer.confinement, limits=request["limits"], work=outer.work, folders=folders)
    serve_program(init, request)


def _run_python(cell: int, most_chars: int, streams: Streams) -> NoReturn:
    streams.use(is_merged=True)
    run_interpreter(socket.socket(fileno=cell), most_chars=most_chars)
