"""An HTTP server inside a program: it listens, serves an ASGI application, and ends with the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

from agentenv.errors import EngineError, UsageError

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 2.0
_IDLE_CONNECTION_S = 75.0
_MIN_TOKEN_CHARS = 16


class HttpListener:
    """Serves an application in the event loop that started it.

    Args:
        who: what is served, for errors: "the gateway".
        host: address to listen on. Only programs of this machine reach a loopback address; any other needs a token.
        port: 0 takes a free one.
        token: what clients must show; "" is none.

    Raises:
        UsageError: the host is no loopback address and there is no token, or a package is missing.
    """

    def __init__(self, *, who: str, host: str, port: int, token: str) -> None:
        if not token and not is_loopback(host):
            raise UsageError(
                f"host {host!r} can be reached from other machines; pass a token that clients must show, or listen on "
                "127.0.0.1"
            )
        if token and (len(token) < _MIN_TOKEN_CHARS or not token.isascii() or ":" in token or " " in token):
            raise UsageError(
                f"the token must have at least {_MIN_TOKEN_CHARS} ASCII characters, no colon and no space; "
                "`secrets.token_urlsafe()` makes one"
            )
        _require_packages(who)
        self.who = who
        self.host = host
        self.port = port
        self.token = token
        self._server: Any = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def root_url(self) -> str:
        """Where programs of this machine reach it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def start(self, app: Any) -> None:
        """Listen. It goes on until `close`, or until the loop ends.

        Raises:
            UsageError: the port is taken, or the host is no address of this machine.
            EngineError: the server did not start.
        """
        assert self._serving is None, "a listener is started once"
        listener = self._listen()
        self.port = listener.getsockname()[1]
        self._server = _make_server(app)
        self._serving = asyncio.create_task(self._serve(listener), name=self.who)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._server.is_listening.wait()
        except TimeoutError:
            await self.close()
            raise EngineError(f"{self.who} did not start within {_START_TIMEOUT_S:g} s") from None

    async def close(self) -> None:
        """Stop listening; idempotent."""
        if self._serving is None:
            return
        self._server.should_exit = True
        done, _ = await asyncio.wait((self._serving,), timeout=2 * _STOP_TIMEOUT_S)
        if not done:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

    def is_token(self, shown: str) -> bool:
        """True for the token, and for anything where there is none."""
        return not self.token or hmac.compare_digest(shown.encode(), self.token.encode())

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

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(2048)
            listener.setblocking(False)
        except (OSError, OverflowError) as error:
            listener.close()
            raise UsageError(
                f"{self.who} cannot listen on {self.host}:{self.port} ({error}); choose another port or host"
            ) from error
        return listener


def is_loopback(host: str) -> bool:
    """True for an address that only programs of this machine reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _require_packages(who: str) -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(f'{who} needs starlette and uvicorn; run `pip install "agentenv[gateway]"`') from error


def _make_server(app: Any) -> Any:
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
            timeout_keep_alive=int(_IDLE_CONNECTION_S),
            timeout_graceful_shutdown=int(_STOP_TIMEOUT_S),
            backlog=2048,
        )
    )
