"""A stand-in for an SGLang server: its HTTP protocol over a small model of its own; ships for tests and docs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from agentenv.engine.sglang_protocol import parse_release
from agentenv.engine.sglang_stand_in_model import EMBEDDING, StandInRequest, StandInScheduler, Weights, stand_in_weights
from agentenv.engine.sglang_stand_in_wire import (
    PAUSED_UPDATE_MESSAGE,
    SAMPLING_FIELDS,
    SESSION_MESSAGE,
    completion_answer,
    join_group,
    model_info,
    read_folder,
    read_payload,
    receive_broadcast,
    server_info,
)
from agentenv.errors import UsageError

try:
    from aiohttp import web
except ImportError as error:
    raise UsageError('the SGLang stand-in needs aiohttp; run `pip install "agentenv[http]"`') from error

Fault = Literal["", "hang", "html", "half_json", "error"]
"""What every answer is instead of what it should be; empty is none."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SGLangStandIn:
    """Speaks SGLang's native HTTP protocol on loopback, as recorded from release 0.5.23.

    What it samples follows from its weights and seed, and its log-probs are those of its weights, so updates, version
    spans, retraction and prefix caching can be checked by numbers. Like the real server it dies of a token id outside
    its vocabulary and of a weight whose shape does not fit, ignores weights of unknown names, aborts by prefix, and
    does not answer `/health` while it is paused.

    Use it as `async with SGLangStandIn() as server:` and give `server.url` to `SGLangServer.connect`.

    Args:
        weights: of its model; see `stand_in_weights`. It works on copies.
        release: it claims to be this one; before 0.5.21 there are no update sessions.
        model_path: that it says to have been started with.
        context_length: tokens of prompt and output together.
        max_running: requests that run at once.
        step_s: seconds that a token takes.
        health_timeout_s: seconds after which `/health` gives up.
        seed: of its sampling.
        weight_version: that it starts with; SGLang's own default is `"default"`.
        api_key: that requests must carry; empty asks for none.
    """

    def __init__(
        self,
        weights: Weights | None = None,
        *,
        release: str = "0.5.23",
        model_path: str = "stand-in",
        context_length: int = 256,
        max_running: int = 64,
        step_s: float = 0.0005,
        health_timeout_s: float = 20.0,
        seed: int = 0,
        weight_version: str = "default",
        api_key: str = "",
    ) -> None:
        given = stand_in_weights() if weights is None else weights
        self.weights: Weights = {name: value.copy() for name, value in given.items()}
        self.vocab_size = len(self.weights[EMBEDDING])
        self.release = release
        self.model_path = model_path
        self.context_length = context_length
        self.health_timeout_s = health_timeout_s
        self.fault: Fault = ""
        """Set it to make every further answer wrong, or those of `fault_path`."""
        self.fault_path = ""
        """The path that `fault` is about; empty is every path."""
        self.corrupts_updates = False
        """True flips one value of every update, and reports success all the same."""
        self.requests: list[tuple[str, Mapping[str, Any]]] = []
        """Path and JSON body of everything that was asked, in order."""
        self.url = ""
        self._scheduler = StandInScheduler(
            self.weights, version=weight_version, max_running=max_running, step_s=step_s, context_length=context_length
        )
        self._seed = seed
        self._api_key = api_key
        self._count = itertools.count()
        self._known: dict[str, StandInRequest] = {}
        self._gate = asyncio.Event()
        self._gate.set()
        self._has_session = False
        self._groups: dict[str, Any] = {}
        self._runner: web.AppRunner | None = None
        self._stepping: asyncio.Task[None] | None = None

    @property
    def version(self) -> str:
        """Of the weights that it serves."""
        return self._scheduler.version

    @property
    def num_in_flight(self) -> int:
        """Requests that it knows of."""
        return len(self._known)

    @property
    def num_running(self) -> int:
        """Requests of which it draws tokens."""
        return len(self._scheduler.running)

    async def __aenter__(self) -> SGLangStandIn:
        """Listen on a free port of loopback."""
        app = web.Application(middlewares=[self._misbehave], client_max_size=1 << 30)
        app.add_routes(self._routes())
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._stepping = asyncio.get_running_loop().create_task(self._scheduler.run(), name="sglang stand-in")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        if self._stepping is not None:
            self._stepping.cancel()
        if self._runner is not None:
            self.kill()
            await self._runner.cleanup()

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Hold an update session open, as another trainer would."""
        self._has_session = True
        try:
            yield
        finally:
            self._has_session = False

    def kill(self) -> None:
        """Die as a killed process does: connections break, nobody listens any more."""
        if self._stepping is not None:
            self._stepping.cancel()
        assert self._runner is not None
        assert self._runner.server is not None
        for site in list(self._runner.sites):
            server = getattr(site, "_server", None)
            if server is not None:
                server.close()
        for connection in list(self._runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def _routes(self) -> list[web.RouteDef]:
        get: dict[str, Handler] = {
            "/model_info": self._model_info,
            "/get_model_info": self._model_info,
            "/server_info": self._server_info,
            "/get_server_info": self._server_info,
            "/health": self._health,
            "/ready": self._ready,
            "/ping": self._ping,
            "/v1/loads": self._loads,
        }
        post: dict[str, Handler] = {
            "/generate": self._generate,
            "/abort_request": self._abort,
            "/pause_generation": self._pause,
            "/continue_generation": self._continue,
            "/flush_cache": self._flush,
            "/update_weights_from_tensor": self._from_tensor,
            "/update_weights_from_distributed": self._from_distributed,
            "/update_weights_from_disk": self._from_disk,
            "/init_weights_update_group": self._init_group,
            "/destroy_weights_update_group": self._destroy_group,
            "/update_weight_version": self._set_version,
            "/weights_checker": self._check_weights,
        }
        if self._needs_session:
            post |= {"/begin_weight_update": self._begin, "/end_weight_update": self._end}
        return [web.get(path, handler) for path, handler in get.items()] + [
            web.post(path, handler) for path, handler in post.items()
        ]

    @property
    def _needs_session(self) -> bool:
        return parse_release(self.release) >= (0, 5, 21)

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.path, json.loads(body) if body else {}))
        if self._api_key and request.headers.get("Authorization") != f"Bearer {self._api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if self.fault_path not in ("", request.path):
            return await handler(request)
        if self.fault == "hang":
            await asyncio.sleep(3600)
        if self.fault == "html":
            return web.Response(text="<html><body>It works!</body></html>", content_type="text/html")
        if self.fault == "half_json":
            return web.Response(text='{"output_ids": [1, 2', content_type="application/json")
        if self.fault == "error":
            return web.Response(text="Internal Server Error", status=500)
        return await handler(request)

    async def _model_info(self, _: web.Request) -> web.Response:
        return web.json_response(model_info(self.model_path, version=self.version))

    async def _server_info(self, _: web.Request) -> web.Response:
        info = server_info(
            self.model_path, version=self.version, release=self.release, context_length=self.context_length
        )
        return web.json_response(info)

    async def _health(self, _: web.Request) -> web.Response:
        """The real one generates a token, which a paused server does not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.health_timeout_s):
                await self._gate.wait()
        return web.Response(status=200 if self._gate.is_set() else 503)

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._gate.is_set() else 503)

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _loads(self, _: web.Request) -> web.Response:
        scheduler = self._scheduler
        running, waiting = len(scheduler.running), len(scheduler.waiting)
        load = {
            "dp_rank": 0,
            "num_running_reqs": running,
            "num_waiting_reqs": waiting,
            "token_usage": running / scheduler.max_running,
        }
        return web.json_response({"version": self.release, "loads": [load]})

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        refusal = self._refusal(body)
        if refusal:
            return web.json_response({"error": refusal}, status=400)
        pending = self._pending(body)
        self._known[pending.request_id] = pending
        try:
            await self._gate.wait()
            late = self._late_refusal(body)
            if late:
                return _refused(late)
            if not all(0 <= token < self.vocab_size for token in pending.prompt_ids):
                self.kill()
                return web.Response(status=500)
            self._scheduler.add(pending)
            reason = await pending.done
        except asyncio.CancelledError:  # the client has gone
            self._scheduler.abort(pending.request_id)
            raise
        finally:
            self._known.pop(pending.request_id, None)
        return web.json_response(completion_answer(pending, reason=reason, version=self.version))

    def _pending(self, body: Mapping[str, Any]) -> StandInRequest:
        number = next(self._count)
        return StandInRequest(
            request_id=body.get("rid") or f"stand-in-{number}",
            prompt_ids=list(body["input_ids"]),
            params={"max_new_tokens": 128, **body.get("sampling_params", {})},
            generator=np.random.default_rng((self._seed, number)),
            done=asyncio.get_running_loop().create_future(),
        )

    def _refusal(self, body: Mapping[str, Any]) -> str | dict[str, str]:
        """What is found wrong before anything waits for a pause to end."""
        params = body.get("sampling_params", {})
        unknown = [name for name in params if name not in SAMPLING_FIELDS]
        if unknown:
            allowed = ", ".join(f"`{name}`" for name in SAMPLING_FIELDS)
            return f"unknown field `{unknown[0]}`, expected one of {allowed}"
        if "input_ids" not in body:
            return {"message": "Either text, input_ids or input_embeds should be provided."}
        if body.get("rid") in self._known:
            return {"message": f"Duplicate request ID detected: {body['rid']}"}
        return ""

    def _late_refusal(self, body: Mapping[str, Any]) -> str:
        """What is found wrong on the way into the scheduler."""
        params, count = body.get("sampling_params", {}), len(body["input_ids"])
        if not count:
            return "input_ids cannot be empty."
        if count >= self.context_length:
            return (
                f"The input ({count} tokens) is longer than the model's context length ({self.context_length} tokens)."
            )
        if count + params.get("max_new_tokens", 128) > self.context_length:
            return (
                "Requested token count exceeds the model's maximum context length "
                f"of {self.context_length} tokens. You requested a total of "
                f"{count + params.get('max_new_tokens', 128)} tokens."
            )
        if params.get("temperature", 1.0) < 0:
            return f"temperature must be a non-negative finite number, got {params['temperature']}."
        for token in params.get("logit_bias", {}):
            if not 0 <= int(token) < self.vocab_size:
                return f"logit_bias must has keys in [0, {self.vocab_size - 1}], got {token}."
        return ""

    async def _abort(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("abort_all"):
            self._scheduler.abort("")
        elif body.get("rid") in self._known:  # one that still waits for a pause to end is not found there
            self._scheduler.abort(body["rid"])
        return web.Response()

    async def _pause(self, request: web.Request) -> web.Response:
        mode = (await request.json()).get("mode", "abort")
        if mode not in ("abort", "retract", "in_place"):
            error = {"object": "error", "message": "validation errors", "type": "Bad Request", "param": None}
            return web.json_response({**error, "code": 400}, status=400)
        self._gate.clear()
        if mode == "abort":
            while self._scheduler.running or self._scheduler.waiting:
                self._scheduler.abort("")
                await asyncio.sleep(self._scheduler.step_s)
        else:
            self._scheduler.pause(retracts=mode == "retract")
        return web.json_response({"message": "Generation paused successfully.", "status": "ok"})

    async def _continue(self, _: web.Request) -> web.Response:
        self._scheduler.go_on()
        self._gate.set()
        return web.json_response({"message": "Generation continued successfully.", "status": "ok"})

    async def _flush(self, _: web.Request) -> web.Response:
        if not self._scheduler.flush():
            return web.Response(text="Flush cache failed.\n", status=400)
        more = "When there are running or waiting requests, the operation will not be performed."
        return web.Response(text=f"Cache flushed.\nPlease check backend logs for more details. ({more})\n")

    async def _begin(self, _: web.Request) -> web.Response:
        if self._has_session:
            message = "a weight-update session is already open; call end_weight_update() first"
            return _outcome(False, message)
        self._has_session = True
        return _outcome(True, "Success")

    async def _end(self, _: web.Request) -> web.Response:
        if not self._has_session:
            return _outcome(False, "no weight-update session is open; call begin_weight_update() first")
        self._has_session = False
        return _outcome(True, "Success")

    async def _from_tensor(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self._needs_session and not self._has_session:
            return _outcome(False, f"update_weights_from_tensor {SESSION_MESSAGE}")
        return await self._take(read_payload(body["serialized_named_tensors"][0]), body, said="Success")

    async def _from_distributed(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self._needs_session and not self._has_session:
            return _outcome(False, f"update_weights_from_distributed {SESSION_MESSAGE}")
        group = self._groups.get(body["group_name"])
        if group is None:
            return _outcome(
                False, f"Failed to receive weights: Group {body['group_name']} not in {list(self._groups)}."
            )
        weights = await asyncio.to_thread(receive_broadcast, group, names=body["names"], shapes=body["shapes"])
        return await self._take(weights, body, said="Succeeded to update parameter online.")

    async def _from_disk(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            weights = read_folder(body["model_path"])
        except OSError as error:
            return _outcome(False, f"Failed to get weights iterator: {error}.", num_paused_requests=0)
        self.model_path = body["model_path"]
        return await self._take(weights, body, said="Succeeded to update model weights.", num_paused_requests=0)

    async def _take(self, weights: Weights, body: Mapping[str, Any], *, said: str, **more: object) -> web.Response:
        """Load values in place; what does not fit kills the server, what is unknown is ignored."""
        if self._gate.is_set():  # while it is not paused, an update waits for the requests that it knows
            await asyncio.gather(*(request.done for request in self._known.values()))
        for name, value in weights.items():
            if name in self.weights and self.weights[name].shape != value.shape:
                self.kill()
                return web.Response(status=500)
        for name, value in weights.items():
            if name in self.weights:
                self.weights[name][...] = value
                self.weights[name].flat[0] += self.corrupts_updates
        version = body.get("weight_version")
        if version is not None:
            self._scheduler.set_version(version)
        if body.get("flush_cache", True) and not self._scheduler.flush():
            return _outcome(False, PAUSED_UPDATE_MESSAGE, **more)
        suffix = "" if version is None else f" Weight version updated to {version}."
        return _outcome(True, said + suffix, **more)

    async def _init_group(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._groups[body["group_name"]] = await asyncio.to_thread(join_group, body)
        return _outcome(True, "Succeeded to initialize custom process group.")

    async def _destroy_group(self, request: web.Request) -> web.Response:
        name = (await request.json())["group_name"]
        if self._groups.pop(name, None) is None:
            return _outcome(False, "The group to be destroyed does not exist.")
        return _outcome(True, "Succeeded to destroy custom process group.")

    async def _set_version(self, request: web.Request) -> web.Response:
        version = (await request.json())["new_version"]
        self._scheduler.set_version(version)
        return web.json_response(
            {"success": True, "message": f"Weight version updated to {version}", "new_version": version}
        )

    async def _check_weights(self, _: web.Request) -> web.Response:
        rank = {
            "tp_rank": 0,
            "tp_size": 1,
            "dp_rank": 0,
            "dp_size": 1,
            "pp_rank": 0,
            "pp_size": 1,
            "rank": 0,
            "size": 1,
        }
        ranks = [
            {
                "checksums": self._scheduler.sums(),
                "per_gpu_checksum": "",
                "parallelism_info": [{"role": "target", **rank}],
            }
        ]
        return web.json_response({"success": True, "message": "Success.", "ranks": ranks, "per_engine_checksum": ""})


def _refused(message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=400)


def _outcome(is_success: bool, message: str, **more: object) -> web.Response:
    return web.json_response({"success": is_success, "message": message, **more}, status=200 if is_success else 400)
