"""A stand-in for an OpenEnv server: it answers with frames that were recorded from openenv-core 0.3.0."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

SCHEMA = {
    "action": {
        "additionalProperties": False,
        "description": "A guess.",
        "properties": {
            "metadata": {"additionalProperties": True, "title": "Metadata", "type": "object"},
            "number": {"title": "Number", "type": "integer"},
        },
        "required": ["number"],
        "title": "Guess",
        "type": "object",
    },
    "observation": {"properties": {"text": {"type": "string"}}, "type": "object"},
    "state": {"properties": {"step_count": {"type": "integer"}}, "type": "object"},
}
REFUSED = {
    "type": "error",
    "data": {
        "message": "Invalid message",
        "code": "VALIDATION_ERROR",
        "errors": [
            {"type": "missing", "loc": ["number"], "msg": "Field required", "input": {"numbr": 3}},
            {"type": "extra_forbidden", "loc": ["numbr"], "msg": "Extra inputs are not permitted", "input": 3},
        ],
    },
}
FAILED = {"type": "error", "data": {"message": "unlucky", "code": "EXECUTION_ERROR"}}


def observed(text: str, *, reward: float | None = None, done: bool = False) -> dict[str, Any]:
    """Return an observation frame."""
    return {"type": "observation", "data": {"observation": {"text": text}, "reward": reward, "done": done}}


class Numbers:
    """One session: find the number that the seed hides; 13 fails, 99 hangs, 98 hangs up, 97 answers nonsense."""

    def __init__(self) -> None:
        self.hidden, self.count = 0, 0

    def answer(self, message: dict[str, Any]) -> Any:
        """Return what the recorded server said in such a case."""
        if message["type"] == "reset":
            self.hidden, self.count = message["data"]["seed"] // 2 % 10, 0
            return observed("Guess a number from 0 to 9.")
        if message["type"] == "state":
            return {"type": "state", "data": {"episode_id": None, "step_count": self.count}}
        number = message["data"].get("number")
        if set(message["data"]) != {"number"}:
            return REFUSED
        self.count += 1
        if number == self.hidden:
            return observed("found", reward=1.0, done=True)
        return FAILED if number == 13 else observed("higher" if self.hidden > number else "lower", reward=0.0)


async def _play(socket: ServerConnection) -> None:
    session = Numbers()
    async for raw in socket:
        message = json.loads(raw)
        number = message.get("data", {}).get("number") if message["type"] == "step" else None
        if number == 99:
            await asyncio.sleep(60)
        if number == 98:
            await socket.close()
            return
        await socket.send("[1, 2]" if number == 97 else json.dumps(session.answer(message)))


def _page(connection: ServerConnection, request: Request) -> Response | None:
    if request.path != "/schema":
        return None
    body = json.dumps(SCHEMA).encode()
    headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"})
    return Response(200, "OK", headers, body)


@contextmanager
def openenv_server() -> Generator[str]:
    """Serve on a free port in a thread; gives the address."""
    loop = asyncio.new_event_loop()
    started: list[Any] = []
    ready = threading.Event()

    async def begin() -> None:
        server = await serve(_play, "127.0.0.1", 0, process_request=_page, close_timeout=1)
        started.extend([server, server.sockets[0].getsockname()[1]])
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(begin())
        loop.run_forever()

    async def end() -> None:
        started[0].close()
        own = asyncio.current_task()
        sleeping = [task for task in asyncio.all_tasks() if task is not own]
        for task in sleeping:
            task.cancel()
        await asyncio.wait(sleeping, timeout=5)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(timeout=10)
    try:
        yield f"http://127.0.0.1:{started[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
