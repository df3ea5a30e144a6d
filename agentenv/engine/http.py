"""The lean JSON client that engines over HTTP talk through: one connection pool, a deadline on every request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError, UsageError, describe

_SHOWN_BYTES = 300


class JsonClient:
    """Posts JSON to one server and reads JSON back.

    Built on aiohttp, whose cost per request stays flat with the number of open connections; on the hot path of a
    rollout that is worth a dependency.

    Args:
        base_url: of the server, e.g. `"http://127.0.0.1:8000"`.
        max_connections: open at once; further requests wait inside their deadline.
        headers: sent with every request.
    """

    def __init__(self, base_url: str, *, max_connections: int = 1024, headers: Mapping[str, str] | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self.max_connections = max_connections
        self.headers = dict(headers or {})
        self._session: Any = None
        self._is_closed = False

    async def post(self, path: str, body: Mapping[str, object], *, deadline_s: float) -> dict[str, Any]:
        """Post a JSON object and return the JSON object that comes back.

        Args:
            path: begins with a slash.
            body: the object.
            deadline_s: seconds for the whole exchange, waiting for a connection included.

        Raises:
            DeadlineExceeded: no complete answer in time.
            EngineError: the connection failed, the status is not 2xx, or the body is not a JSON object.
            EngineClosed: the client was closed.
        """
        session = self._open()
        url = self.base_url + path
        data = json.dumps(body, separators=(",", ":")).encode()
        scope = asyncio.timeout(deadline_s)
        try:
            async with scope, session.post(url, data=data, headers=_JSON) as response:
                content = await response.read()
                status = response.status
        except TimeoutError:
            if not scope.expired():
                raise
            raise DeadlineExceeded("engine", f"POST {url}", f"no complete answer within {deadline_s:g} s") from None
        except self._failures as error:
            raise EngineError(f"POST {url} failed: {describe(error)}; is the server running?") from error
        if not 200 <= status < 300:
            raise EngineError(f"POST {url} answered {status}: {_shown(content)}")
        return _object(content, url=url)

    async def close(self) -> None:
        """Close all connections; idempotent."""
        self._is_closed = True
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _open(self) -> Any:
        if self._is_closed:
            raise EngineClosed(f"the client of {self.base_url} was closed")
        if self._session is None:
            try:
                import aiohttp
            except ImportError as error:
                raise UsageError('engines over HTTP need aiohttp; run `pip install "agentenv[http]"`') from error
            self._failures: tuple[type[Exception], ...] = (aiohttp.ClientError, OSError)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self.max_connections, keepalive_timeout=60.0),
                timeout=aiohttp.ClientTimeout(total=None),
                headers=self.headers,
                auto_decompress=True,
                skip_auto_headers=("User-Agent",),
            )
        return self._session


_JSON = {"Content-Type": "application/json"}


def _object(content: bytes, *, url: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"POST {url} answered something that is not JSON: {_shown(content)}") from error
    if not isinstance(value, dict):
        raise EngineError(f"POST {url} answered {type(value).__name__}; expected a JSON object")
    return value


def _shown(content: bytes) -> str:
    text = content[:_SHOWN_BYTES].decode("utf-8", "replace")
    return text + ("..." if len(content) > _SHOWN_BYTES else "")
