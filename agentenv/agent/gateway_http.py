"""The gateway's side of HTTP: bodies read with a bound and a deadline, and JSON sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from agentenv.agent.model_request import RequestError
from agentenv.agent.model_response import dumps
from agentenv.errors import describe

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_BODY_TIMEOUT_S = 60.0
_JSON: Headers = [(b"content-type", b"application/json")]


async def read_object(
    scope: Scope, receive: Receive, *, max_bytes: int, is_optional: bool = False
) -> Mapping[str, object]:
    """Read a body that is a JSON object.

    Args:
        scope: of the request.
        receive: gives the body.
        max_bytes: longest body.
        is_optional: no body at all is an empty object.

    Raises:
        RequestError: as `read_body`, and 400 where it is no JSON object.
    """
    raw = await read_body(scope, receive, max_bytes=max_bytes)
    if is_optional and not raw:
        return {}
    return _object(raw)


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
    """Read a body.

    Raises:
        RequestError: 413 where it is too long, 408 where it does not come.
    """
    too_long = RequestError(f"the body has more than {max_bytes} bytes", status=413, code="request_too_large")
    declared = header(scope, b"content-length")
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            raw, is_whole = await _read(receive, max_bytes=max_bytes)
    except TimeoutError:
        raise RequestError(f"the body did not come within {_BODY_TIMEOUT_S:g} s", status=408) from None
    if not is_whole or (declared.isdecimal() and int(declared) > max_bytes):
        raise too_long
    return raw


async def _read(receive: Receive, *, max_bytes: int) -> tuple[bytes, bool]:
    """Return the body, and False where it is longer; as much again is read and dropped, so that clients hear why."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("the client hung up", status=499)
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= max_bytes:
            chunks.append(chunk)
        elif size > 2 * max_bytes:
            return b"", False
        if not message.get("more_body"):
            return b"".join(chunks), size <= max_bytes


def _object(raw: bytes) -> Mapping[str, object]:
    try:
        value = json.loads(raw.decode(), parse_constant=_no_constant)
        if b"\\ud" in raw.lower():
            dumps(value).encode()  # half of a surrogate pair is no text that a tokenizer could take
    except UnicodeEncodeError:
        raise RequestError("the body holds half of a surrogate pair (\\ud800 to \\udfff)") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON ({describe(error)[:200]})", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body is {type(value).__name__}; expected a JSON object")
    return value


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def header(scope: Scope, name: bytes) -> str:
    """Return a header; "" where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return ""


def query(scope: Scope, name: str) -> str:
    """Return a parameter of the URL; "" where there is none."""
    found = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=100).get(name)
    return found[0] if found else ""


async def send_json(
    send: Send, body: Mapping[str, object], *, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Send a JSON answer."""
    raw = dumps(body).encode("utf-8", "replace")
    all_headers = [*_JSON, (b"content-length", str(len(raw)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": raw})
