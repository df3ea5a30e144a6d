"""Sandboxes in containers of Docker or Podman, over the engine's socket: one fresh container for each program.

The container keeps nothing, see `CarriedSandbox`. It has no network, a read-only root, no capabilities, no way to gain
any, quotas of processes, memory and disk, and the engine's own filter of system calls.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentenv.errors import SandboxError, SandboxUnavailable
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.sandbox import container_inside
from agentenv.tools.sandbox.carried_sandbox import CarriedSandbox, Ran, ended_by, flooded, most_answer_bytes, shown
from agentenv.tools.sandbox.engine_client import EngineClient, StdoutFrames, Stream
from agentenv.tools.sandbox.sandbox import Completed, Isolation, Limits

IMAGE_VARIABLE = "AGENTENV_SANDBOX_IMAGE"
DEFAULT_IMAGE = "python:3.12-slim"

_NOBODY = "65534:65534"
_FILES_S = 10.0  # beyond the program's own time, for its files
_QUEUE_S = 600.0
_PARALLEL = max(2, 2 * (os.cpu_count() or 1))
_INSIDE = Path(container_inside.__file__).read_text(encoding="utf-8") + "\nserve_once()\n"


def make_docker(settings: SandboxSettings) -> ContainerBackend:
    """Return the back end `docker`; raises SandboxUnavailable where there is no socket."""
    return _made(settings, name="docker", places=["/var/run/docker.sock"])


def make_podman(settings: SandboxSettings) -> ContainerBackend:
    """Return the back end `podman`; raises SandboxUnavailable where there is no socket."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    own = [f"{runtime}/podman/podman.sock"] if runtime else []
    return _made(settings, name="podman", places=[*own, "/run/podman/podman.sock"])


def _made(settings: SandboxSettings, *, name: str, places: Sequence[str]) -> ContainerBackend:
    looked_at = [settings.url.removeprefix("unix://")] if settings.url else places
    socket = next((place for place in looked_at if os.path.exists(place)), None)
    if socket is None:
        raise SandboxUnavailable(
            f"there is no socket of {name} at {' or '.join(looked_at)}; start the engine, or let sandbox.url be the "
            "path of its socket"
        )
    return ContainerBackend(name=name, socket=socket, image=os.environ.get(IMAGE_VARIABLE, DEFAULT_IMAGE))


class ContainerBackend:
    """See `SandboxBackend`; `name` is `docker` or `podman`.

    Args:
        name: for settings and errors.
        socket: path of the engine's socket.
        image: has a `python3`; it must be there, nothing is pulled.
        call_s: deadline of one call of the engine.
        start_s: until a started container must be ready for its program.
    """

    isolation: Isolation = "strong"

    def __init__(
        self,
        *,
        name: str,
        socket: str,
        image: str = DEFAULT_IMAGE,
        call_s: float = 60.0,
        start_s: float = 60.0,
    ) -> None:
        self.name = name
        self._image = image
        self._start_s = start_s
        self._engine = EngineClient(socket=socket, where=name, call_s=call_s)
        self._slots = asyncio.Semaphore(_PARALLEL)

    async def open(self, *, limits: Limits) -> CarriedSandbox:
        """See `SandboxBackend.open`; a container is started for each command."""
        return CarriedSandbox(self, limits=limits)

    async def execute(self, code: str, *, stdin: str = "", limits: Limits) -> Completed:
        """See `SandboxBackend.execute`."""
        return (await self.run_code(code, stdin=stdin, timeout_s=limits.wall_s, limits=limits)).completed

    async def run_code(
        self,
        code: str,
        *,
        stdin: str = "",
        timeout_s: float,
        limits: Limits,
        files: Mapping[str, bytes] | None = None,
        fetched: Sequence[str] = (),
    ) -> Ran:
        """See `RunsCode.run_code`.

        Raises:
            SandboxError: the engine refuses, does not answer in time, or all slots stay taken.
        """
        call = {
            "code": code,
            "stdin": base64.b64encode(stdin.encode("utf-8", "replace")).decode(),
            "timeout_s": timeout_s,
            "output_bytes": limits.output_bytes,
            "files": {name: base64.b64encode(data).decode() for name, data in (files or {}).items()},
            "fetched": list(fetched),
            "most_file_bytes": most_answer_bytes(limits, has_files=True) // 2,
        }
        try:
            async with asyncio.timeout(_QUEUE_S):
                await self._slots.acquire()
        except TimeoutError:
            raise SandboxError(self.name, f"no free slot within {_QUEUE_S:g} s") from None
        try:
            most_bytes = most_answer_bytes(limits, has_files=bool(fetched))
            return await self._contained(json.dumps(call).encode(), timeout_s, most_bytes, limits)
        finally:
            self._slots.release()

    async def _contained(self, body: bytes, timeout_s: float, most_bytes: int, limits: Limits) -> Ran:
        container = f"agentenv-{secrets.token_hex(8)}"
        try:
            await self._engine.create(container, specification(image=self._image, limits=limits))
            async with self._engine.attached(container) as stream:
                await self._engine.start(container)
                frames = StdoutFrames(stream, where=self.name)
                await self._until_ready(frames)
                try:
                    async with asyncio.timeout(timeout_s + _FILES_S):
                        answer = await _exchange(stream, frames, body, most_bytes)
                except TimeoutError:
                    return Ran(completed=Completed(ending="timeout", wall_s=timeout_s))
            if len(answer) > most_bytes:
                return flooded(most_bytes)
            is_out_of_memory = await self._engine.is_out_of_memory(container)
            return _ran(answer, limits, is_out_of_memory=is_out_of_memory)
        finally:
            # also for a caller that gave up: nothing of a program may live on
            await asyncio.shield(asyncio.ensure_future(self._engine.remove(container)))

    async def _until_ready(self, frames: StdoutFrames) -> None:
        """Wait for process 1. Nothing of the program is there yet, so whatever goes wrong is not its doing."""
        told = b""
        try:
            async with asyncio.timeout(self._start_s):
                while len(told) < len(container_inside.READY) and (part := await frames.next()):
                    told += part
        except TimeoutError:
            raise SandboxError(self.name, f"the container was not ready within {self._start_s:g} s") from None
        if told != container_inside.READY:
            said = (told + frames.stderr).decode("utf-8", "replace")
            raise SandboxError(self.name, f"the container of {self._image} ended at once: {said[:500]}")

    async def close(self) -> None:
        """See `SandboxBackend.close`."""
        await self._engine.close()


async def _exchange(stream: Stream, frames: StdoutFrames, body: bytes, most_bytes: int) -> bytes:
    """Send a call and return the answer, which is longer than `most_bytes` where it was given up."""
    sending = asyncio.ensure_future(stream.write(str(len(body)).encode() + b"\n" + body))
    answer = bytearray()
    try:
        while len(answer) <= most_bytes and (part := await frames.next()):
            answer += part
        return bytes(answer)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


def specification(*, image: str, limits: Limits) -> dict[str, Any]:
    """Return the body of the call that makes a container for one program."""
    owner = "uid=65534,gid=65534,mode=0755"
    return {
        "Image": image,
        "Entrypoint": ["python3", "-I", "-c", _INSIDE],
        "Cmd": [],
        "User": _NOBODY,
        "WorkingDir": "/work",
        "Env": [],
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "NetworkDisabled": True,
        "Labels": {"agentenv": "sandbox"},
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Privileged": False,
            "IpcMode": "private",
            "PidsLimit": limits.processes + 8,  # process 1 and its threads
            "Memory": limits.memory_bytes,
            "MemorySwap": limits.memory_bytes,  # memory and swap together: no swap
            "ShmSize": 16 << 20,
            "Tmpfs": {
                "/work": f"rw,exec,nosuid,nodev,size={limits.work_bytes},nr_inodes={limits.work_files},{owner}",
                "/tmp": f"rw,exec,nosuid,nodev,size={limits.work_bytes},nr_inodes={limits.work_files},mode=1777",
            },
            "Ulimits": [
                {"Name": "nofile", "Soft": limits.descriptors, "Hard": limits.descriptors},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "LogConfig": {"Type": "none", "Config": {}},
        },
    }


def _ran(answer: bytes, limits: Limits, *, is_out_of_memory: bool) -> Ran:
    """Return what process 1 said; where it said nothing, the program ended it, which is the program's doing."""
    try:
        told = json.loads(answer)
        code, is_late, files = int(told["code"]), bool(told["is_late"]), dict(told["files"])
        kept = {name: base64.b64decode(data) for name, data in files.items() if data is not None}
        completed = Completed(
            ending="timeout",
            stdout=shown(told["stdout"], limits),
            stderr=shown(told["stderr"], limits),
            wall_s=float(told["took_s"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        ended = Completed(ending="signal", signal=9, stderr="The container ended before the program did.")
        return Ran(completed=_out_of_memory(ended) if is_out_of_memory else ended)
    if is_late:
        return Ran(completed=completed, files=kept)
    ended = ended_by(completed, code=code)
    is_victim = is_out_of_memory and ended.signal == 9
    return Ran(completed=_out_of_memory(ended) if is_victim else ended, files=kept)


def _out_of_memory(ended: Completed) -> Completed:
    return Completed(ending="memory", stdout=ended.stdout, stderr=ended.stderr, wall_s=ended.wall_s)
