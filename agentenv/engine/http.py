"""The lean JSON client that engines over HTTP talk through: one connection pool, a deadline on every request."""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError, UsageError, describe

_SHOWN_BYTES = 300
_BUSY = (429, 503)
_BUSY_WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class RefusedRequest(EngineError):
    """The server answered with a status that is not 2xx.

    Attributes:
        status: HTTP status.
        content: the whole body; the message shows its beginning.
    """

    def __init__(self, message: str, *, status: int, content: bytes) -> None:
        super().__init__(message)
        self.status = status
        self.content = content


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server answered, whatever it was.

    Attributes:
        status: of HTTP.
        content: the whole body.
        url: that was asked, with the method, for errors.
    """

    status: int
    content: bytes
    url: str

    @property
    def is_ok(self) -> bool:
        """True for a status of 200 to 299."""
        return 200 <= self.status < 300

    @property
    def shown(self) -> str:
        """The beginning of the body, for errors."""
        return _shown(self.content)

    def require_ok(self) -> None:
        """Raise `RefusedRequest` unless the status is 2xx."""
        if not self.is_ok:
            raise RefusedRequest(
                f"{self.url} answered {self.status}: {self.shown}", status=self.status, content=self.content
            )

    def json(self) -> dict[str, Any]:
        """Return the JSON object that came.

        Raises:
            RefusedRequest: the status is not 2xx.
            EngineError: the body is not a JSON object.
        """
        self.require_ok()
        return _object(self.content, url=self.url)


class JsonClient:
    """Posts JSON to one server and reads JSON back.

    Built on aiohttp, whose cost per request stays flat with the number of open connections; on the hot path of a
    rollout that is worth a dependency.

    Args:
        base_url: of the server, e.g. `"http://127.0.0.1:8000"`.
        max_connections: open at once, and at most half of the descriptors that the process may open; further requests
            wait inside their deadline.
        headers: sent with every request.
        keepalive_s: seconds that an idle connection is kept for the next request; less than the server keeps it, or a
            request may meet a connection that is just being closed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        max_connections: int = 1024,
        headers: Mapping[str, str] | None = None,
        keepalive_s: float = 60.0,
        busy_s: float = 20.0,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.busy_s = busy_s
        self.num_busy = 0
        self.max_connections = max_connections
        self.keepalive_s = keepalive_s
        self.headers = dict(headers or {})
        self._session: Any = None
        self._is_closed = False

    async def post(self, path: str, body: Mapping[str, object], *, deadline_s: float) -> dict[str, Any]:
        """Post a JSON object and return the JSON object that comes back.

        A server that is too busy (429, 503) did nothing with the request, so it is asked again, later and later.

        Args:
            path: begins with a slash.
            body: the object.
            deadline_s: seconds for the whole exchange, waiting for a connection included.

        Raises:
            DeadlineExceeded: no complete answer in time.
            RefusedRequest: the status is not 2xx.
            EngineError: the connection failed, or the body is not a JSON object.
            EngineClosed: the client was closed.
        """
        clock = asyncio.get_running_loop().time
        started, left_s = clock(), deadline_s
        for wait_s in itertools.chain(_BUSY_WAITS_S, itertools.repeat(_BUSY_WAITS_S[-1])):
            answer = await self.exchange("POST", path, body, deadline_s=left_s)
            if answer.status not in _BUSY or clock() - started + wait_s > min(self.busy_s, deadline_s):
                return answer.json()
            self.num_busy += 1
            await asyncio.sleep(wait_s)
            left_s = deadline_s - (clock() - started)
        raise AssertionError("the waits never end")

    async def get(self, path: str, *, deadline_s: float) -> dict[str, Any]:
        """Return the JSON object at a path; fails as `post` does."""
        return (await self.exchange("GET", path, deadline_s=deadline_s)).json()

    async def command(self, path: str, body: Mapping[str, object] | None = None, *, deadline_s: float) -> None:
        """Post, and look at nothing but the status of the answer; fails as `post` does."""
        (await self.exchange("POST", path, body, deadline_s=deadline_s)).require_ok()

    async def probe(self, path: str, *, deadline_s: float) -> None:
        """Get, and look at nothing but the status of the answer; fails as `post` does."""
        (await self.exchange("GET", path, deadline_s=deadline_s)).require_ok()

    async def exchange(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        deadline_s: float,
    ) -> Answer:
        """Send one request and return whatever the server answers, refusals included.

        Raises:
            DeadlineExceeded: no complete answer in time.
            EngineError: the connection failed.
            EngineClosed: the client was closed.
        """
        session = self._open()
        url = self.base_url + path
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        scope = asyncio.timeout(deadline_s)
        try:
            async with scope, session.request(method, url, data=data, headers=_JSON if data else {}) as response:
                return Answer(status=response.status, content=await response.read(), url=f"{method} {url}")
        except TimeoutError:
            if not scope.expired():
                raise
            raise DeadlineExceeded("engine", f"{method} {url}", f"no complete answer within {deadline_s:g} s") from None
        except self._failures as error:
            raise EngineError(f"{method} {url} failed: {describe(error)}; is the server running?") from error

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
                connector=aiohttp.TCPConnector(
                    limit=_affordable(self.max_connections), keepalive_timeout=self.keepalive_s
                ),
                timeout=aiohttp.ClientTimeout(total=None),
                headers=self.headers,
                auto_decompress=True,
                skip_auto_headers=("User-Agent",),
            )
        return self._session


def _affordable(max_connections: int) -> int:
    """Leave half of the descriptors that this process may open to everybody else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max_connections if soft == resource.RLIM_INFINITY else max(1, min(max_connections, soft // 2))


_JSON = {"Content-Type": "application/json"}


def _object(content: bytes, *, url: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{url} answered something that is not JSON: {_shown(content)}") from error
    if not isinstance(value, dict):
        raise EngineError(f"{url} answered {type(value).__name__}; expected a JSON object")
    return value


def _shown(content: bytes) -> str:
    text = content[:_SHOWN_BYTES].decode("utf-8", "replace")
    return text + ("..." if len(content) > _SHOWN_BYTES else "")
