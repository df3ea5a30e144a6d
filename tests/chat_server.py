"""A chat-completions server in a thread of its own, for tests of synchronous commands."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Answer = Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def chat_server(answer: Answer) -> Iterator[str]:
    """Serve until the end; gives the base URL. `answer` gets a request and returns the assistant's message."""
    loop = asyncio.new_event_loop()
    runner = asyncio.run_coroutine_threadsafe
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    site = runner(_start(answer), loop).result(timeout=10)
    try:
        yield f"http://127.0.0.1:{site.addresses[0][1]}/v1"
    finally:
        runner(site.cleanup(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


async def _start(answer: Answer) -> web.AppRunner:
    async def complete(request: web.Request) -> web.Response:
        message = answer(await request.json())
        if "status" in message:
            return web.Response(status=message["status"], text=message["text"])
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    site = web.AppRunner(app, shutdown_timeout=0.1)
    await site.setup()
    await web.TCPSite(site, "127.0.0.1", 0).start()
    return site


def binary_search(request: dict[str, Any]) -> dict[str, Any]:
    """Guess the number in the middle of what is left, from the conversation alone."""
    low, high = map(int, re.findall(r"\d+", request["messages"][0]["content"])[:2])
    guesses = [
        json.loads(call["function"]["arguments"])["number"]
        for message in request["messages"]
        for call in message.get("tool_calls", [])
    ]
    told = [message["content"] for message in request["messages"] if message["role"] == "tool"]
    for guess, text in zip(guesses, told, strict=True):
        low, high = (guess + 1, high) if "higher" in text else (low, guess - 1)
    return guess_of((low + high) // 2, call_id=f"c{len(guesses)}")


def guess_of(number: int, *, call_id: str = "c") -> dict[str, Any]:
    """Return a turn that guesses."""
    function = {"name": "guess", "arguments": json.dumps({"number": number})}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }
