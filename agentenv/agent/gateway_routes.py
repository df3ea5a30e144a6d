"""What the gateway answers to: the turn of a model, whole or as a stream, the result of a tool, the task."""

from __future__ import annotations

import asyncio
import re
import time
from abc import ABC, abstractmethod
from typing import Protocol, cast

from agentenv.agent.chat_api import ChatApi, message_body
from agentenv.agent.endpoint import Endpoint
from agentenv.agent.gateway_http import Headers, Receive, Scope, Send, header, query, read_object, send_json
from agentenv.agent.model_request import ModelRequest, RequestError
from agentenv.agent.model_response import Api, ModelResponse
from agentenv.errors import EpisodeError

_STREAM_BYTES = 16_384
_PLAIN_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_EVENTS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Desk(Protocol):
    """Where a route finds episodes, and what it may spend on a request."""

    max_body_bytes: int
    request_timeout_s: float
    keep_alive_s: float

    def find(self, scope: Scope) -> Endpoint:
        """Return the episode that a request names.

        Raises:
            RequestError: there is none (404), or the request may not ask (401).
        """
        ...


class JsonRoute(ABC):
    """Answers one path with JSON; whatever goes wrong is answered in the shape of an API.

    Args:
        desk: finds the episode.
        api: shape of errors.
        method: the only one allowed.
    """

    def __init__(self, desk: Desk, *, api: Api, method: str) -> None:
        self.desk = desk
        self.api = api
        self.method = method

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an ASGI request."""
        endpoint = None
        try:
            if scope["method"] != self.method:
                raise RequestError(f"{scope['method']} is not answered here; send {self.method}", status=405)
            endpoint = self.desk.find(scope)
            await self.serve(endpoint, scope, receive, send)
        except RequestError as error:
            if endpoint is not None:
                endpoint.last_error = str(error)
            await send_json(send, self.api.fault(error), status=error.status, headers=_retry_headers(error))
        except EpisodeError as error:
            fault = self.api.fault(RequestError(str(error), status=500, code=f"{error.side}_error"))
            await send_json(send, fault, status=500, headers=_retry_headers(None))
        except RecursionError:
            await send_json(send, self.api.fault(RequestError("the body is nested too deeply")), status=400)

    @abstractmethod
    async def serve(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for an episode."""


class CompletionRoute(JsonRoute):
    """Lets the model answer a conversation.

    The turn is sampled whole. An answer that is streamed is cut into events afterwards; while the turn is sampled, the
    stream carries comments, so that nobody between takes it for dead.
    """

    def __init__(self, desk: Desk, *, api: Api) -> None:
        super().__init__(desk, api=api, method="POST")

    async def serve(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Sample a turn and send it. A client that hangs up before cancels it."""
        body = await read_object(scope, receive, max_bytes=self.desk.max_body_bytes)
        if endpoint.has_ended:
            raise RequestError("the episode has ended", status=404, code="episode_ended")
        request = self.api.read(body)
        asking = asyncio.create_task(endpoint.complete(request))
        endpoint.running.add(asking)
        leaving = asyncio.create_task(_hung_up(receive))
        answering = _Answering(self.api, request=request, send=send)
        try:
            response = await self._sampled(asking, leaving, answering)
            if response is not None:
                await answering.finish(response)
        except RequestError as error:
            if not answering.has_begun:
                raise
            endpoint.last_error = str(error)
            await answering.fail(error)
        finally:
            leaving.cancel()
            if not asking.done():
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)  # the engine has heard of it then
            endpoint.running.discard(asking)

    async def _sampled(
        self, asking: asyncio.Task[ModelResponse], leaving: asyncio.Task[None], answering: _Answering
    ) -> ModelResponse | None:
        """Wait for the turn; None where the client is gone."""
        deadline = time.monotonic() + self.desk.request_timeout_s
        while not asking.done():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise RequestError(
                    f"no turn within {self.desk.request_timeout_s:g} s", status=504, code="request_timeout"
                )
            waited = min(left_s, self.desk.keep_alive_s) if answering.request.is_streamed else left_s
            await asyncio.wait((asking, leaving), timeout=waited, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done() and not asking.done():
                return None
            if not asking.done() and answering.request.is_streamed:
                await answering.keep_alive()
        if asking.cancelled():
            raise RequestError("the episode has ended", status=404, code="episode_ended")
        return asking.result()


class _Answering:
    """Sends one answer, whole or as a stream.

    Attributes:
        has_begun: the status is sent; errors must be events from then on.
    """

    def __init__(self, api: Api, *, request: ModelRequest, send: Send) -> None:
        self.request = request
        self.has_begun = False
        self._api = api
        self._send = send

    async def keep_alive(self) -> None:
        """Send a comment, which every reader of events skips."""
        await self._begin()
        await self._body(": still sampling\n\n")

    async def finish(self, response: ModelResponse) -> None:
        """Send the answer."""
        if not self.request.is_streamed:
            await send_json(self._send, self._api.answer(response), headers=_note(self.request))
            return
        waiting: list[str] = []
        size = 0
        for event in self._api.events(response):
            waiting.append(event)
            size += len(event)
            if size >= _STREAM_BYTES:
                await self._begin()
                await self._body("".join(waiting))
                waiting, size = [], 0
        rest = "".join(waiting).encode()
        if not self.has_begun:  # all of it fits into one write, which a length makes the last one
            await self._begin((b"content-length", str(len(rest)).encode()))
        await self._send({"type": "http.response.body", "body": rest})

    async def fail(self, error: RequestError) -> None:
        """End a stream with an error."""
        await self._send({"type": "http.response.body", "body": self._api.fault_event(error).encode()})

    async def _begin(self, *more: tuple[bytes, bytes]) -> None:
        if not self.has_begun:
            self.has_begun = True
            headers = [*_EVENTS, *_note(self.request), *more]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _body(self, text: str) -> None:
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})


class ModelsRoute(JsonRoute):
    """Lists the one model that there is: the policy."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, api=ChatApi(), method="GET")

    async def serve(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the list, which readers of either API understand."""
        model = {"id": "policy", "object": "model", "type": "model", "created": 0, "owned_by": "agentenv"}
        await send_json(send, {"object": "list", "data": [{**model, "display_name": "policy"}], "has_more": False})


class TaskRoute(JsonRoute):
    """Says what is to be done, for tasks that are too long for an environment variable."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, api=ChatApi(), method="GET")

    async def serve(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the task."""
        await send_json(send, endpoint.task())


class ToolRoute(JsonRoute):
    """Gives the result of a call that the model made of one of the environment's tools."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, api=ChatApi(), method="POST")

    async def serve(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the `tool` message, and whether the episode ended."""
        arguments = await read_object(scope, receive, max_bytes=self.desk.max_body_bytes, is_optional=True)
        call_id = header(scope, b"x-call-id") or query(scope, "call_id")
        if not call_id and isinstance(arguments.get("call_id"), str):
            call_id = cast(str, arguments["call_id"])
            arguments = {name: value for name, value in arguments.items() if name != "call_id"}
        message = await endpoint.desk.result(scope["path_params"]["name"], arguments, call_id=call_id)
        await send_json(send, {"message": message_body(message), "is_over": endpoint.has_ended})


async def _hung_up(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _note(request: ModelRequest) -> Headers:
    """Return the header that names what was not looked at; sampling is the run's business, and says so here."""
    names = [name for name in request.ignored if _PLAIN_NAME.fullmatch(name)][:32]
    return [(b"x-agentenv-ignored", ", ".join(names).encode())] if names else []


def _retry_headers(error: RequestError | None) -> Headers:
    return [(b"x-should-retry", b"false")] if error is None or error.is_final else []
