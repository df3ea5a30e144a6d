"""The server that programs call: OpenAI and Anthropic endpoints over the episodes that are being played."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from agentenv.agent.chat_api import ChatApi
from agentenv.agent.endpoint import Endpoint, ToolSets
from agentenv.agent.gateway_http import Scope, header, send_json
from agentenv.agent.gateway_routes import CompletionRoute, ModelsRoute, TaskRoute, ToolRoute
from agentenv.agent.http_listener import HttpListener
from agentenv.agent.messages_api import MessagesApi
from agentenv.agent.model_request import RequestError
from agentenv.agent.responses_api import ResponsesApi
from agentenv.agent.session import Session
from agentenv.messages import Message


class Gateway:
    """Serves the episodes that are open, in the event loop that started it.

    Args:
        host: address to listen on. Only programs of this machine reach a loopback address; any other needs a token.
        port: 0 takes a free one.
        token: what clients must show, beside the key of their episode; "" is none.
        max_body_bytes: longest request.
        request_timeout_s: seconds after which a turn that is not sampled is given up.
        keep_alive_s: seconds after which a stream whose turn is still sampled says that it lives.

    Raises:
        UsageError: the host is no loopback address and there is no token, or a package is missing.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        max_body_bytes: int = 32 * 1024 * 1024,
        request_timeout_s: float = 600.0,
        keep_alive_s: float = 10.0,
    ) -> None:
        self._listener = HttpListener(who="the gateway", host=host, port=port, token=token)
        self.max_body_bytes = max_body_bytes
        self.request_timeout_s = request_timeout_s
        self.keep_alive_s = keep_alive_s
        self._endpoints: dict[str, Endpoint] = {}
        self._tool_sets = ToolSets()
        self._closing: asyncio.Task[None] | None = None

    @property
    def host(self) -> str:
        """Address that it listens on."""
        return self._listener.host

    @property
    def port(self) -> int:
        """Port that it listens on, once it has started."""
        return self._listener.port

    @property
    def root_url(self) -> str:
        """Where programs of this machine reach it."""
        return self._listener.root_url

    async def start(self) -> None:
        """Listen. It goes on until `close`, or until the loop ends.

        Raises:
            UsageError: the port is taken, or the host is no address of this machine.
            EngineError: the server did not start.
        """
        await self._listener.start(self._app())

    def open(self, session: Session, *, opening: Sequence[Message]) -> Endpoint:
        """Let programs call the model of an episode, until `shut`.

        Args:
            session: of the episode, already reset.
            opening: what the environment said first.
        """
        key, token = secrets.token_urlsafe(24), self._listener.token
        endpoint = Endpoint(
            session,
            opening=opening,
            key=key,
            root_url=self.root_url,
            api_key=f"{token}:{key}" if token else key,
            tool_sets=self._tool_sets,
        )
        self._endpoints[key] = endpoint
        return endpoint

    async def shut(self, endpoint: Endpoint) -> None:
        """Forget an episode and cancel its calls; idempotent."""
        self._endpoints.pop(endpoint.key, None)
        await endpoint.close()

    async def close(self) -> None:
        """Shut all episodes and stop listening; idempotent."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="close gateway")
        await asyncio.shield(self._closing)

    def find(self, scope: Scope) -> Endpoint:
        """Return the episode that a request names, in its path or by its API key."""
        shown = header(scope, b"x-api-key") or header(scope, b"authorization").removeprefix("Bearer ").strip()
        token, _, key = shown.rpartition(":")
        named = scope["path_params"].get("episode")
        # in the path the episode is named already; there the token alone will do
        if not any(map(self._listener.is_token, (token, shown))):
            raise RequestError("the token is missing or wrong; send it as the API key", status=401)
        if named is None and not shown:
            raise RequestError("there is no API key; it names the episode", status=401)
        endpoint = self._endpoints.get(key if named is None else named)
        if endpoint is None:
            raise RequestError("there is no such episode, or it has ended", status=404, code="episode_not_found")
        return endpoint

    async def _close(self) -> None:
        for endpoint in list(self._endpoints.values()):
            await self.shut(endpoint)
        await self._listener.close()

    def _app(self) -> Any:
        from starlette.routing import Route, Router

        chat = ChatApi()
        paths = {
            "/chat/completions": CompletionRoute(self, api=chat),
            "/messages": CompletionRoute(self, api=MessagesApi()),
            "/responses": CompletionRoute(self, api=ResponsesApi()),
            "/tools/{name}": ToolRoute(self),
            "/models": ModelsRoute(self),
            "/task": TaskRoute(self),
        }
        prefixes = ("/e/{episode}/v1", "/v1")
        routes = [Route(prefix + path, route) for prefix in prefixes for path, route in paths.items()]
        return Router(routes, redirect_slashes=False, default=_nothing_here)


async def _nothing_here(scope: Any, receive: Any, send: Any) -> None:
    """Answer every other path."""
    if scope["type"] != "http":
        return
    fault = RequestError(
        f"nothing is served at {scope['path'][:200]!r}; there are /v1/chat/completions, /v1/responses, /v1/messages, "
        "/v1/models, /v1/task and /v1/tools/NAME",
        status=404,
    )
    await send_json(send, ChatApi().fault(fault), status=404)
