"""The server that programs call: OpenAI and Anthropic endpoints over the episodes that are being played."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from agentenv.agent.chat_api import ChatApi
from agentenv.agent.endpoint import Endpoint, ToolSets
from agentenv.agent.gateway_http import Scope, header, send_json
from agentenv.agent.gateway_routes import CompletionRoute, ModelsRoute, TaskRoute, ToolRoute
from agentenv.agent.messages_api import MessagesApi
from agentenv.agent.model_request import RequestError
from agentenv.agent.responses_api import ResponsesApi
from agentenv.agent.session import Session
from agentenv.errors import EngineError, UsageError
from agentenv.messages import Message

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 2.0
_IDLE_CONNECTION_S = 75.0
_MIN_TOKEN_CHARS = 16


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
        if not token and not _is_loopback(host):
            raise UsageError(
                f"host {host!r} can be reached from other machines; pass a token that clients must show, or listen on "
                "127.0.0.1"
            )
        if token and (len(token) < _MIN_TOKEN_CHARS or not token.isascii() or ":" in token or " " in token):
            raise UsageError(
                f"the token must have at least {_MIN_TOKEN_CHARS} ASCII characters, no colon and no space; "
                "`secrets.token_urlsafe()` makes one"
            )
        _require_packages()
        self.host = host
        self.port = port
        self.max_body_bytes = max_body_bytes
        self.request_timeout_s = request_timeout_s
        self.keep_alive_s = keep_alive_s
        self._token = token
        self._endpoints: dict[str, Endpoint] = {}
        self._tool_sets = ToolSets()
        self._server: Any = None
        self._serving: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def root_url(self) -> str:
        """Where programs of this machine reach it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listen. It goes on until `close`, or until the loop ends.

        Raises:
            UsageError: the port is taken, or the host is no address of this machine.
            EngineError: the server did not start.
        """
        assert self._serving is None, "a gateway is started once"
        listener = _listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        self._server = _make_server(self._app(), max_idle_s=_IDLE_CONNECTION_S)
        self._serving = asyncio.create_task(self._serve(listener), name="gateway")
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._server.is_listening.wait()
        except TimeoutError:
            await self.close()
            raise EngineError(f"the gateway did not start within {_START_TIMEOUT_S:g} s") from None

    def open(self, session: Session, *, opening: Sequence[Message]) -> Endpoint:
        """Let programs call the model of an episode, until `shut`.

        Args:
            session: of the episode, already reset.
            opening: what the environment said first.
        """
        key = secrets.token_urlsafe(24)
        endpoint = Endpoint(
            session,
            opening=opening,
            key=key,
            root_url=self.root_url,
            api_key=f"{self._token}:{key}" if self._token else key,
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
        if self._token and not any(hmac.compare_digest(one.encode(), self._token.encode()) for one in (token, shown)):
            raise RequestError("the token is missing or wrong; send it as the API key", status=401)
        if named is None and not shown:
            raise RequestError("there is no API key; it names the episode", status=401)
        endpoint = self._endpoints.get(key if named is None else named)
        if endpoint is None:
            raise RequestError("there is no such episode, or it has ended", status=404, code="episode_not_found")
        return endpoint

    async def _serve(self, listener: socket.socket) -> None:
        server = self._server
        try:
            await server.serve(sockets=[listener])
        finally:
            # the loop may end before `close`; then nothing else gives these back
            for one in getattr(server, "servers", ()):
                one.close()
            listener.close()
            for connection in list(server.server_state.connections):
                connection.transport.abort()

    async def _close(self) -> None:
        for endpoint in list(self._endpoints.values()):
            await self.shut(endpoint)
        if self._serving is None:
            return
        self._server.should_exit = True
        done, _ = await asyncio.wait((self._serving,), timeout=2 * _STOP_TIMEOUT_S)
        if not done:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

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


def _require_packages() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError('the gateway needs starlette and uvicorn; run `pip install "agentenv[gateway]"`') from error


def _make_server(app: Any, *, max_idle_s: float) -> Any:
    """Return a uvicorn server that leaves signals and logging to the program that it is a part of."""
    import uvicorn

    class Server(uvicorn.Server):
        is_listening = asyncio.Event()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self.is_listening.set()

    return Server(
        uvicorn.Config(
            app,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(max_idle_s),
            timeout_graceful_shutdown=int(_STOP_TIMEOUT_S),
            backlog=2048,
        )
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
        listener.setblocking(False)
    except (OSError, OverflowError) as error:
        listener.close()
        raise UsageError(
            f"the gateway cannot listen on {host}:{port} ({error}); choose another port or host"
        ) from error
    return listener
