"""A container engine over a real unix socket, which starts the process of a container as nobody in an empty folder.

It isolates nothing: tests let it run harmless programs only, and look at what it was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(kw_only=True)
class Container:
    """What was asked for, and what runs."""

    specification: dict[str, Any]
    process: asyncio.subprocess.Process | None = None
    pump: asyncio.Task[None] | None = None
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None


@dataclass(kw_only=True)
class Engine:
    """The stand-in.

    Attributes:
        socket: where it listens.
        folder: of its containers.
        containers: that exist, by name.
        asked: method and path of every call.
        specifications: of every container that was made.
        answers: a status for calls whose path begins so, instead of doing them; 0 is never answered.
        is_out_of_memory: what it says of every container.
        first: replaces the program of a container's process 1.
        has_started: set when the first container started.
    """

    socket: str
    folder: Path
    containers: dict[str, Container] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    specifications: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    is_out_of_memory: bool = False
    first: str = ""
    has_started: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the calls of one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await _head(reader):
                method, target, length = head
                body = await reader.readexactly(length)
                self.asked.append(f"{method} {target.partition('?')[0]}")
                if await self._answer(method, target, body, reader, writer):
                    return  # the connection is the container's now
        writer.close()

    async def _answer(
        self, method: str, target: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        path, _, query = target.partition("?")
        name, _, action = path.removeprefix("/containers/").partition("/")
        for beginning, status in self.answers.items():
            if f"{method} {path}".startswith(beginning) or f"{method} {action}" == beginning:
                if not status:
                    await asyncio.Event().wait()
                _respond(writer, status, {"message": f"told to answer {status}"})
                return False
        if path == "/containers/create":
            name = query.removeprefix("name=")
            self.containers[name] = Container(specification=json.loads(body))
            self.specifications.append(json.loads(body))
            _respond(writer, 201, {"Id": "0" * 64, "Warnings": []})
        elif name not in self.containers:
            _respond(writer, 404, {"message": f"No such container: {name}"})
        elif action == "attach":
            self.containers[name].streams = (reader, writer)
            writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
            return True
        elif action == "start":
            await self._start(self.containers[name])
            self.has_started.set()
            _respond(writer, 204)
        elif action == "json":
            _respond(writer, 200, {"State": {"OOMKilled": self.is_out_of_memory}})
        elif method == "DELETE":
            await _end(self.containers.pop(name))
            _respond(writer, 204)
        return False

    async def _start(self, container: Container) -> None:
        assert container.streams is not None  # attached first, or its first words are lost
        flag, code = container.specification["Entrypoint"][-2:]
        assert flag == "-c"
        work = tempfile.mkdtemp(dir=self.folder)
        os.chmod(work, 0o777)
        # as the engine does it: user 65534, wherever the tests run as root
        user: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        container.process = await asyncio.create_subprocess_exec(
            "/usr/bin/env",
            "python3",  # one that nobody may run, which ours need not be
            "-I",
            "-c",
            self.first or code,
            cwd=work,
            env={"PATH": os.environ["PATH"], "GPG_KEY": "of the image"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            **user,
        )
        container.pump = asyncio.create_task(_pump(container.process, *container.streams))


async def _pump(
    process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Carry the streams of a container until its process ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None

    async def into(stdin: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                stdin.write(data)
                await stdin.drain()

    async def out(number: int, stream: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await stream.read(1000):  # small frames, so that an answer is many
                writer.write(bytes([number, 0, 0, 0]) + len(data).to_bytes(4, "big") + data)
                await writer.drain()

    feeding = asyncio.create_task(into(process.stdin))
    try:
        await asyncio.gather(out(1, process.stdout), out(2, process.stderr), process.wait())
    finally:
        feeding.cancel()
        writer.close()


async def _end(container: Container) -> None:
    if container.process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(container.process.pid, signal.SIGKILL)
        await container.process.wait()
    if container.pump is not None:
        container.pump.cancel()
        await asyncio.gather(container.pump, return_exceptions=True)
    elif container.streams is not None:
        container.streams[1].close()


async def _head(reader: asyncio.StreamReader) -> tuple[str, str, int] | None:
    """Return method, target and length of the body of the next request."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return method, target, int(headers.get("content-length", 0))


def _respond(writer: asyncio.StreamWriter, status: int, body: dict[str, Any] | None = None) -> None:
    data = json.dumps(body).encode() if body is not None else b""
    length = f"Content-Length: {len(data)}\r\n" if status != 204 else ""
    writer.write(f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n{length}\r\n".encode() + data)


@asynccontextmanager
async def engine_stand_in() -> AsyncIterator[Engine]:
    """Serve until the end, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="agentenv-engine-"))
    os.chmod(folder, 0o755)
    engine = Engine(socket=str(folder / "engine.sock"), folder=folder)
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(engine.serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_unix_server(connected, engine.socket)
    try:
        yield engine
    finally:
        server.close()
        for container in list(engine.containers.values()):
            await _end(container)
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        shutil.rmtree(folder, ignore_errors=True)
