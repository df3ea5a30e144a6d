"""A running SGLang server, driven over its native HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from agentenv.engine.http import Answer, JsonClient
from agentenv.engine.server_config import API_KEY_VARIABLE, ServerConfig
from agentenv.engine.sglang_protocol import (
    FIRST_VERSION,
    ServerFacts,
    SGLangLoad,
    local_vocab_size,
    read_facts,
    read_load,
    read_vocabulary_probe,
    started_from,
    vocabulary_probe,
)
from agentenv.engine.sglang_verbs import CONTROL_TIMEOUT_S, SGLangVerbs
from agentenv.errors import EngineError, UsageError

CONNECT_TIMEOUT_S = 20.0
"""For every question on connecting."""

_STATUS_TIMEOUT_S = 10.0
_KEEPALIVE_S = 3.0  # the server closes idle connections after 5 s


class SGLangServer(SGLangVerbs):
    """A running SGLang server; made by `connect`."""

    @classmethod
    async def connect(cls, url: str, *, config: ServerConfig, vocab_size: int | None = None) -> SGLangServer:
        """Ask a server what it is, and return an engine over it.

        Args:
            url: of the server, e.g. `"http://127.0.0.1:30000"`.
            config: limits, API key, and how weights travel.
            vocab_size: of its model; None finds it out.

        Raises:
            EngineError: nobody answers there, or not as SGLang does.
            DeadlineExceeded: it does not answer in time.
            UsageError: it is no SGLang, or serves no model that generates.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"SGLang's url is {url!r}; expected one such as http://127.0.0.1:30000")
        key = config.api_key
        headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
        client = JsonClient(url, headers=headers, keepalive_s=_KEEPALIVE_S)
        try:
            facts = await _facts(client, config=config, vocab_size=vocab_size)
            return cls(_HttpTransport(client), facts=facts, config=config, host=parts.hostname, is_own=not config.urls)
        except BaseException:
            await client.close()
            raise


class _HttpTransport:
    """`SGLangTransport` over HTTP."""

    def __init__(self, client: JsonClient) -> None:
        self._client = client
        self._tells_load = True

    async def generate(self, body: Mapping[str, object], *, deadline_s: float) -> Mapping[str, Any]:
        return await self._client.post("/generate", body, deadline_s=deadline_s)

    async def abort(self, request_id: str) -> None:
        body: dict[str, object] = {"rid": request_id} if request_id else {"abort_all": True}
        answer = await self._client.exchange("POST", "/abort_request", body, deadline_s=_STATUS_TIMEOUT_S)
        _refuse_unless_ok(answer)

    async def control(self, verb: str, body: Mapping[str, object], *, deadline_s: float) -> Mapping[str, Any]:
        answer = await self._client.exchange("POST", f"/{verb}", body, deadline_s=deadline_s)
        _refuse_unless_ok(answer)
        said = answer.json()
        if said.get("success") is False:
            raise EngineError(f"SGLang refused {verb}: {said.get('message')}")
        return said

    async def flush_cache(self) -> bool:
        answer = await self._client.exchange("POST", "/flush_cache", deadline_s=CONTROL_TIMEOUT_S)
        if answer.status == 400:
            return False
        _refuse_unless_ok(answer)
        return True

    async def weight_version(self) -> str:
        info = await self._client.get("/model_info", deadline_s=_STATUS_TIMEOUT_S)
        return str(info.get("weight_version", FIRST_VERSION))

    async def load(self) -> SGLangLoad | None:
        if not self._tells_load:
            return None
        answer = await self._client.exchange("GET", "/v1/loads", deadline_s=_STATUS_TIMEOUT_S)
        if answer.status == 404:
            self._tells_load = False
            return None
        return read_load(answer.json().get("loads", [{}]))

    async def close(self) -> None:
        await self._client.close()


async def _facts(client: JsonClient, *, config: ServerConfig, vocab_size: int | None) -> ServerFacts:
    model_info = await client.exchange("GET", "/model_info", deadline_s=CONNECT_TIMEOUT_S)
    if model_info.status == 404:
        raise UsageError(f"{client.base_url} answers, but has no /model_info as SGLang has; is engine.name right?")
    if model_info.status in (401, 403):
        raise UsageError(f"{client.base_url} asks for a key; put it into the environment variable {API_KEY_VARIABLE}")
    model = model_info.json()
    if "model_path" not in model:
        raise UsageError(f"{client.base_url} answers /model_info, but not as SGLang does; is engine.name right?")
    server = await client.get("/server_info", deadline_s=CONNECT_TIMEOUT_S)
    size = vocab_size or local_vocab_size(started_from(model, server))
    if size is None:
        probe = await client.exchange("POST", "/generate", vocabulary_probe(), deadline_s=CONNECT_TIMEOUT_S)
        size = read_vocabulary_probe(probe.shown)
    return read_facts(model, server, vocab_size=size, max_length=config.max_length)


def _refuse_unless_ok(answer: Answer) -> None:
    if not answer.is_ok:
        raise EngineError(f"{answer.url} answered {answer.status}: {answer.shown}")
