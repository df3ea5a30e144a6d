"""Sandboxes on a server that speaks SandboxFusion's protocol: `POST /run_code` with a program, its input and files.

The server keeps nothing between calls, see `CarriedSandbox`. How strong its border is, is its promise, which the
self-test of every back end looks into.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from agentenv.errors import SandboxError, SandboxUnavailable, UsageError, describe
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.sandbox.carried_sandbox import CarriedSandbox, Ran, ended_by, flooded, most_answer_bytes, shown
from agentenv.tools.sandbox.sandbox import Completed, Isolation, Limits

TOKEN_VARIABLE = "AGENTENV_SANDBOX_TOKEN"

_NAME = "remote sandbox"
_RETRIED = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How a call that the server could not take is repeated; running a program twice there changes nothing here.

    Attributes:
        most: repetitions after the first attempt.
        wait_s: before the first of them; doubled each time.
        answer_s: seconds beyond the program's own time that the server has for one attempt.
    """

    most: int = 3
    wait_s: float = 0.2
    answer_s: float = 15.0


def make_backend(settings: SandboxSettings) -> RemoteBackend:
    """Return the back end that `sandbox.url` names; the environment may hold a token for it.

    Raises:
        SandboxUnavailable: there is no address.
    """
    if settings.url is None:
        raise SandboxUnavailable("the remote back end needs sandbox.url, the address of a server")
    return RemoteBackend(url=settings.url, token=os.environ.get(TOKEN_VARIABLE, ""))


class RemoteBackend:
    """See `SandboxBackend`; `name` is `remote`.

    Args:
        url: of the server, without `/run_code`.
        token: sent as `Authorization: Bearer`, where the server wants one.
        retries: of calls.
        isolation: what the server promises.
    """

    name = "remote"

    def __init__(
        self, *, url: str, token: str = "", retries: Retries | None = None, isolation: Isolation = "strong"
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"sandbox.url is {url!r}; it must begin with http:// or https://")
        self.isolation: Isolation = isolation
        self._url = url.rstrip("/")
        self._retries = retries or Retries()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=None, trust_env=False, follow_redirects=False)

    async def open(self, *, limits: Limits) -> CarriedSandbox:
        """See `SandboxBackend.open`; nothing is sent yet."""
        return CarriedSandbox(self, limits=limits)

    async def execute(self, code: str, *, stdin: str = "", limits: Limits) -> Completed:
        """See `SandboxBackend.execute`."""
        return (await self.run_code(code, stdin=stdin, timeout_s=limits.wall_s, limits=limits)).completed

    async def run_code(
        self,
        code: str,
        *,
        stdin: str = "",
        timeout_s: float,
        limits: Limits,
        files: Mapping[str, bytes] | None = None,
        fetched: Sequence[str] = (),
    ) -> Ran:
        """See `RunsCode.run_code`.

        Raises:
            SandboxError: the server does not answer in time, or something else than the protocol.
        """
        request = {
            "code": code,
            "language": "python",
            "stdin": stdin,
            "compile_timeout": timeout_s,
            "run_timeout": timeout_s,
            "memory_limit_MB": max(1, limits.memory_bytes >> 20),
            "files": {name: base64.b64encode(data).decode() for name, data in (files or {}).items()},
            "fetch_files": list(fetched),
        }
        body = json.dumps(request).encode("utf-8", "replace")
        most_bytes = most_answer_bytes(limits, has_files=bool(fetched))
        answer = await self._with_retries(body, timeout_s=timeout_s, most_bytes=most_bytes)
        return flooded(most_bytes) if answer is None else _ran(answer, limits)

    async def _with_retries(self, body: bytes, *, timeout_s: float, most_bytes: int) -> dict[str, Any] | None:
        """Return the answer, or None for one that is too large."""
        why = ""
        for attempt in range(self._retries.most + 1):
            if attempt:
                await asyncio.sleep(self._retries.wait_s * 2 ** (attempt - 1))
            try:
                async with asyncio.timeout(timeout_s + self._retries.answer_s):
                    status, answer = await self._post(body, most_bytes)
            except TimeoutError:
                # it may run still, and would again: no second attempt
                raise SandboxError(_NAME, f"no answer within {timeout_s + self._retries.answer_s:g} s") from None
            except httpx.HTTPError as error:
                why = describe(error)
                continue
            if status in _RETRIED:
                why = f"status {status}"
                continue
            return None if len(answer) > most_bytes else _checked(status, answer)
        raise SandboxError(_NAME, f"{self._url} failed {self._retries.most + 1} times; last: {why}")

    async def _post(self, body: bytes, most_bytes: int) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        async with self._client.stream("POST", f"{self._url}/run_code", content=body, headers=headers) as response:
            answer = bytearray()
            async for part in response.aiter_bytes():
                answer += part
                if len(answer) > most_bytes:
                    break
            return response.status_code, bytes(answer)

    async def close(self) -> None:
        """See `SandboxBackend.close`."""
        await self._client.aclose()


def _checked(status: int, answer: bytes) -> dict[str, Any]:
    beginning = answer[:300].decode("utf-8", "replace")
    if status != 200:
        raise SandboxError(_NAME, f"status {status}: {beginning}")
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        raise SandboxError(_NAME, f"no JSON: {beginning}") from None
    if not isinstance(found, dict):
        raise SandboxError(_NAME, f"no object: {beginning}")
    return found


def _ran(answer: Mapping[str, Any], limits: Limits) -> Ran:
    """Return what a server's answer says of a program; raises SandboxError where the server failed."""
    result = answer.get("run_result")
    if answer.get("status") == "SandboxError" or not isinstance(result, dict):
        raise SandboxError(_NAME, f"the server failed: {str(answer.get('message'))[:500]}")
    stdout, stderr = (shown(result.get(name), limits) for name in ("stdout", "stderr"))
    took_s = result.get("execution_time")
    wall_s = float(took_s) if isinstance(took_s, (int, float)) else 0.0
    told = Completed(ending="timeout", stdout=stdout, stderr=stderr, wall_s=wall_s)
    if result.get("status") == "TimeLimitExceeded":
        return Ran(completed=told, files=_files(answer))
    code = result.get("return_code")
    if result.get("status") != "Finished" or not isinstance(code, int):
        raise SandboxError(_NAME, f"the server could not run it: {str(result.get('status'))[:100]}, {stderr[:300]}")
    return Ran(completed=ended_by(told, code=code), files=_files(answer))


def _files(answer: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of an answer; what is no base64 is as good as missing."""
    files: dict[str, bytes] = {}
    encoded = answer.get("files")
    for name, data in encoded.items() if isinstance(encoded, dict) else ():
        try:
            files[name] = base64.b64decode(data, validate=True)
        except (binascii.Error, TypeError, ValueError):
            continue
    return files
