"""Process 1 of a container: runs one program in the current folder and writes how it went to standard output, as JSON.

The text of this file is sent to the container, so it needs the standard library only. It writes a line when it is
ready; then standard input holds a line with a number, and as many bytes of JSON. The program is a process of its own
that can neither open nor trace this one, and as process 1 of its namespace this one takes no signals from it.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

_PR_SET_DUMPABLE = 4
READY = b"ready\n"
_LOAD = """import os, sys
with open(sys.argv.pop()) as file:
    os.unlink(file.name)
    exec(compile(file.read(), "program.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
"""
_PIPE_S = 0.2  # for what is left in the pipes of a program that ended; a grandchild may hold them for ever


class _Kept:
    """The beginning and the end of a stream."""

    def __init__(self, fd, most_bytes):
        self._most = most_bytes // 2
        self._head, self._tail, self._num_bytes = bytearray(), bytearray(), 0
        self.thread = threading.Thread(target=self._drain, args=(fd,), daemon=True)
        self.thread.start()

    def _drain(self, fd):
        while data := os.read(fd, 65536):
            self._num_bytes += len(data)
            room = max(0, self._most - len(self._head))
            self._head += data[:room]
            self._tail = (self._tail + data[room:])[-self._most :]

    def text(self):
        head, tail = bytes(self._head), bytes(self._tail)
        omitted = self._num_bytes - len(head) - len(tail)
        between = f"\n[... {omitted} bytes omitted]\n".encode() if omitted > 0 else b""
        return (head + between + tail).decode("utf-8", "replace")


def serve_once() -> None:
    """Read a call, run it, answer, and end; whatever the program left behind ends with process 1."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.write(1, READY)
    call = json.loads(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))
    for name, data in call["files"].items():
        with open(name, "wb") as file:
            file.write(base64.b64decode(data))
    answer = _run(call)
    answer["files"] = {name: _encoded(name, call["most_file_bytes"]) for name in call["fetched"]}
    sys.stdout.buffer.write(json.dumps(answer).encode())
    sys.stdout.buffer.flush()
    os._exit(0)


def _run(call):
    begun = time.monotonic()
    # the variables of the image are no business of the program
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.getcwd(), "LANG": "C.UTF-8", "TMPDIR": "/tmp"}
    with tempfile.NamedTemporaryFile("wb", suffix=".py", delete=False) as file:  # an argument holds 128 KiB only
        file.write(call["code"].encode("utf-8", "replace"))
    program = subprocess.Popen(
        [sys.executable, "-X", "utf8", "-c", _LOAD, file.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=True,
    )
    streams = [_Kept(pipe.fileno(), call["output_bytes"]) for pipe in (program.stdout, program.stderr) if pipe]
    threading.Thread(target=_feed, args=(program.stdin, base64.b64decode(call["stdin"])), daemon=True).start()
    is_late = False
    try:
        program.wait(call["timeout_s"])
    except subprocess.TimeoutExpired:
        is_late = True
        program.send_signal(signal.SIGKILL)
        program.wait()
    took_s = time.monotonic() - begun
    deadline = time.monotonic() + _PIPE_S
    for stream in streams:
        stream.thread.join(max(0.0, deadline - time.monotonic()))
    stdout, stderr = (stream.text() for stream in streams)
    return {"code": program.returncode, "is_late": is_late, "took_s": took_s, "stdout": stdout, "stderr": stderr}


def _feed(pipe, data):
    try:
        pipe.write(data)
        pipe.close()
    except OSError:
        pass  # it does not read


def _encoded(name, most_bytes):
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            data = file.read(most_bytes + 1)
    except OSError:
        return None
    return base64.b64encode(data).decode() if len(data) <= most_bytes else None
