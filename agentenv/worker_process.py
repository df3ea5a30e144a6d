"""Child processes for work that may have to be killed: each call has a deadline, and what passes it dies.

A child is a fresh Python that imports one function and answers JSON with JSON. It sets its own kernel timer for every
call, so it dies even where its parent is gone; an idle one ends when its pipe closes.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from agentenv.errors import AgentEnvError, UsageError, describe

MAX_FRAME_BYTES = 64 << 20
_START_S = 60.0
_GRACE_S = 1.0
_HEAD = struct.Struct("<I")


class WorkerTimeout(AgentEnvError):
    """A call ran past its deadline; its process was killed."""


class WorkerDied(AgentEnvError):
    """The process of a call ended in the middle of it, for example because its memory was used up."""


class WorkerFailed(AgentEnvError):
    """The function raised; the message is its error."""


class WorkerPool:
    """Processes that run one function; safe to use from many threads, each call blocking its own.

    Args:
        target: `"module:function"`; the function takes and returns what JSON can hold.
        max_workers: processes at the same time; further calls wait, within their deadline.
        memory_bytes: address space of one process.
    """

    def __init__(self, target: str, *, max_workers: int = 2, memory_bytes: int = 2 << 30) -> None:
        if max_workers < 1:
            raise UsageError(f"max_workers is {max_workers}; at least 1 is needed")
        self._target = target
        self._memory_bytes = memory_bytes
        self._slots = threading.Semaphore(max_workers)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._owner = os.getpid()

    def call(self, value: object, *, timeout_s: float) -> object:
        """Run the function on a value.

        Args:
            value: what JSON can hold.
            timeout_s: seconds of the call, the wait for a free process included; the start of a process is not.

        Raises:
            WorkerTimeout: killed, or no process was free in time.
            WorkerDied: its process ended by itself.
            WorkerFailed: the function raised.
        """
        started = time.monotonic()
        if not self._slots.acquire(timeout=timeout_s):
            raise WorkerTimeout(f"{self._target}: no process was free within {timeout_s:g} s")
        try:
            left_s = max(timeout_s - (time.monotonic() - started), 0.01)
            return self._answer(self._take(), value, timeout_s=left_s)
        finally:
            self._slots.release()

    def close(self) -> None:
        """End the idle processes; idempotent, and the pool can be used again."""
        with self._lock:
            children, self._idle = self._idle, []
        for child in children:
            child.kill()

    def _answer(self, child: _Child, value: object, *, timeout_s: float) -> object:
        try:
            answer = child.ask({"value": value, "timeout_s": timeout_s}, timeout_s=timeout_s)
        except BaseException:
            child.kill()
            raise
        with self._lock:
            self._idle.append(child)
        if "error" in answer:
            raise WorkerFailed(str(answer["error"]))
        return answer["value"]

    def _take(self) -> _Child:
        with self._lock:
            if self._owner != os.getpid():  # after a fork the processes belong to the parent
                self._owner, self._idle = os.getpid(), []
            if self._idle:
                return self._idle.pop()
        return _Child(self._target, memory_bytes=self._memory_bytes)


class _Child:
    def __init__(self, target: str, *, memory_bytes: int) -> None:
        environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
        self._target = target
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agentenv.worker_process", target, str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's
        )
        try:
            hello = self.ask(None, timeout_s=_START_S)
        except BaseException:
            self.kill()
            raise
        if "error" in hello:
            self.kill()
            raise UsageError(f"{target} cannot be used in a process of its own: {hello['error']}")

    def ask(self, message: object, *, timeout_s: float) -> dict[str, object]:
        """Send a message, unless it is None, and return the answer."""
        assert self._process.stdin is not None
        ends = time.monotonic() + timeout_s + _GRACE_S
        if message is not None:
            body = json.dumps(message).encode()
            try:
                self._process.stdin.write(_HEAD.pack(len(body)) + body)
                self._process.stdin.flush()
            except OSError as error:
                raise WorkerDied(f"{self._target}: the process is gone ({describe(error)})") from error
        (length,) = _HEAD.unpack(self._read(_HEAD.size, ends, timeout_s))
        if length > MAX_FRAME_BYTES:
            raise WorkerDied(f"{self._target}: the process answered {length:,} bytes; {MAX_FRAME_BYTES:,} are allowed")
        return json.loads(self._read(length, ends, timeout_s))

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not flushed has no reader any more
                    continue

    def _read(self, count: int, ends: float, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        parts: list[bytes] = []
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while count:
            left_s = ends - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                raise WorkerTimeout(f"{self._target}: no answer within {timeout_s:.3g} s")
            part = os.read(descriptor, min(count, 1 << 20))
            if not part:
                raise self._ended(timeout_s)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _ended(self, timeout_s: float) -> AgentEnvError:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return WorkerTimeout(f"{self._target}: no answer within {timeout_s:.3g} s")
        return WorkerDied(f"{self._target}: the process ended with code {code} in the middle of a call")


def _serve(target: str, *, memory_bytes: int) -> None:
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # what the function prints must not be taken for an answer
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        module, _, name = target.partition(":")
        function: Callable[[object], object] = getattr(importlib.import_module(module), name)
    except Exception as error:
        _write(answers, {"error": describe(error)})
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write(answers, {"value": "ready"})
    while len(head := requests.read(_HEAD.size)) == _HEAD.size:
        message = json.loads(requests.read(_HEAD.unpack(head)[0]))
        signal.setitimer(signal.ITIMER_REAL, message["timeout_s"])
        try:
            answer: dict[str, object] = {"value": function(message["value"])}
        except Exception as error:
            answer = {"error": describe(error)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(answers, answer)


def _write(stream: object, answer: dict[str, object]) -> None:
    try:
        body = json.dumps(answer).encode()
    except (TypeError, ValueError) as error:
        body = json.dumps({"error": f"the answer is not JSON: {describe(error)}"}).encode()
    stream.write(_HEAD.pack(len(body)) + body)  # type: ignore[attr-defined]
    stream.flush()  # type: ignore[attr-defined]


if __name__ == "__main__":
    _serve(sys.argv[1], memory_bytes=int(sys.argv[2]))
