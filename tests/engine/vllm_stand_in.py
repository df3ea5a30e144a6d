"""A small server that speaks vLLM 0.32's protocol over real HTTP, as the real one was seen to, and can misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

OLD = "Worker failed with error 'weights do not fit. The old weights serve on.', please check the stack trace"


class StandIn:
    """One server.

    Attributes:
        version: what `/version` says.
        has_dev_mode: routes to pause and update exist.
        takes_tokens: the endpoint for token ids is enabled.
        scale: what log-probs are of: `"unmasked"`, `"masked"` or `"raw"`.
        weights: what `/weight_info` says.
        calls: paths with their queries, in order, questions left out.
        bodies: of the requests to generate.
        replies: path -> (status, text) sent instead of the usual answer.
        hold: generating waits until it is set.
        num_cut: requests whose client went away.
    """

    def __init__(self) -> None:
        self.version = "0.32.0"
        self.has_dev_mode = True
        self.takes_tokens = True
        self.is_paused = False
        self.scale = "unmasked"
        self.weights = "default"
        self.calls: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.replies: dict[str, tuple[int, str]] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.num_cut = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in self.replies:
            status, text = self.replies[request.path]
            response = web.Response(status=status, text=text)
            if status == 500 and request.transport is not None:  # as uvicorn does it: the client is not told
                await response.prepare(request)
                await response.write_eof()
                request.transport.close()
            return response
        body = json.loads(await request.text() or "{}")
        if request.method == "GET":
            return self._question(request.path)
        if request.path in ("/inference/v1/generate", "/v1/completions"):
            return await self._generate(request.path, body)
        if not self.has_dev_mode:
            return web.json_response({"detail": "Not Found"}, status=404)
        self.calls.append(request.path_qs)
        if request.path == "/update_weight_version":
            self.weights = body["new_version"]
        if request.path == "/finish_weight_update":
            self.weights = body["weight_version"]
        return web.json_response({"message": "done"})

    def _question(self, path: str) -> web.Response:
        answers: dict[str, object] = {
            "/version": {"version": self.version},
            "/v1/models": {"data": [{"id": "served", "root": "/nowhere", "parent": None, "max_model_len": 200}]},
        }
        if path in ("/health", "/ping"):
            return web.Response()
        if self.has_dev_mode:
            answers |= {
                "/weight_info": {"weight_version": self.weights},
                "/is_paused": {"is_paused": self.is_paused},
                "/server_info": {"vllm_config": {"model_config": {"dtype": "torch.bfloat16"}}},
            }
        if path not in answers:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.json_response(answers[path])

    async def _generate(self, path: str, body: dict[str, Any]) -> web.Response:
        takes_tokens = path == "/inference/v1/generate"
        if takes_tokens and not self.takes_tokens:
            return web.json_response({"error": {"message": "Scale-out endpoints are disabled."}}, status=403)
        self.bodies.append(body)
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.num_cut += 1
            raise
        sampling = body["sampling_params"] if takes_tokens else body
        count = sampling["max_tokens"]
        ids = [(7 * place + 1) % 50 for place in range(count)]
        return web.json_response(self._tokens(body, ids, sampling) if takes_tokens else self._text(body, ids, sampling))

    def _logprob(self, sampling: dict[str, Any]) -> float:
        is_masked = sampling["top_k"] > 0 and sampling["temperature"] > 0
        if self.scale == "masked" and is_masked:
            return 0.0
        return -0.5 if self.scale == "raw" or sampling["temperature"] in (0, 1) else -1.5

    def _tokens(self, body: dict[str, Any], ids: list[int], sampling: dict[str, Any]) -> dict[str, Any]:
        logprob = self._logprob(sampling)
        content = [{"token_id": i, "logprob": logprob, "rank": 1, "top_logprobs": []} for i in ids]
        spans = [{"version": self.weights, "start": 0, "end": len(ids)}]
        choice = {"index": 0, "finish_reason": "length", "token_ids": ids, "logprobs": {"content": content}}
        answer: dict[str, Any] = {
            "choices": [choice | {"weight_versions": spans}],
            "usage": {"prompt_tokens_details": {"cached_tokens": 2}},
        }
        if body.get("return_token_ids"):
            answer["prompt_token_ids"] = [token for i in body["token_ids"] for token in ([i] * 3 if i == 9 else [i])]
        return answer

    def _text(self, body: dict[str, Any], ids: list[int], sampling: dict[str, Any]) -> dict[str, Any]:
        logprobs = {"token_logprobs": [self._logprob(sampling)] * len(ids)}
        choice = {"finish_reason": "length", "token_ids": ids, "logprobs": logprobs, "prompt_token_ids": body["prompt"]}
        return {"choices": [choice], "usage": {"prompt_tokens_details": None}}


@asynccontextmanager
async def stand_in() -> AsyncIterator[StandIn]:
    """Serve one on a free port."""
    server = StandIn()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        server.hold.set()
        await runner.cleanup()
