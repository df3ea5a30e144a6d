"""Any OpenAI-compatible chat-completions endpoint as the player, for evaluation."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field, JsonValue, SecretStr, model_validator

from agentenv.agent.chat import ChatAgent
from agentenv.agent.chat_completions import ChatCompletion, read_completion, request_messages
from agentenv.agent.dialect import Spoken
from agentenv.agent.policy import record_spoken
from agentenv.config import Config
from agentenv.engine.protocol import Completion
from agentenv.episode import Episode
from agentenv.errors import DeadlineExceeded, EngineError, UsageError, boundary, describe, did_you_mean
from agentenv.messages import Message
from agentenv.redaction import HIDDEN
from agentenv.trajectory import StopReason

REPORTED_TOKENS = "reported_tokens"
UNREPORTED_TURNS = "unreported_turns"

_MAX_ANSWER_BYTES = 16 * 1024 * 1024
_SHOWN_CHARS = 300
_CHECK_TIMEOUT_S = 10.0
_LONGEST_WAIT_S = 30.0
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 529})

logger = logging.getLogger(__name__)


class EndpointConfig(Config):
    """An endpoint and how it is asked."""

    url: str
    """Base URL, e.g. http://127.0.0.1:8000/v1; without a path, /v1 is added."""
    model: str = Field(min_length=1)
    """Name of the model, as the endpoint knows it."""
    api_key_env: str | None = None
    """Environment variable that holds the key; nothing is sent unless it is named."""
    api_key: SecretStr | None = None
    """The key itself, where no variable is named."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one turn at most; None leaves that to the endpoint."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Seconds for one turn, retries included."""
    max_retries: int = Field(default=5, ge=0)
    """Further attempts of one turn after a broken connection or an answer 408, 425, 429, 5xx."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of the request; null leaves a field of ours out, e.g. {seed: null}."""

    @model_validator(mode="after")
    def _is_http(self) -> EndpointConfig:
        try:
            parts = urlsplit(self.url)
            is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
        except ValueError:
            is_good, parts = False, None
        if not is_good or parts is None:
            raise ValueError("url must look like http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise ValueError("url holds a user or a password; give a key through api_key_env")
        if self.api_key is not None and self.api_key_env is not None:
            raise ValueError("give one of api_key and api_key_env")
        return self

    @property
    def base_url(self) -> str:
        """The URL below which `/chat/completions` lies."""
        url = self.url.rstrip("/")
        return url if urlsplit(url).path else f"{url}/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """An HTTP answer, read whole."""

    status: int
    content: bytes
    retry_after_s: float


class EndpointAgent(ChatAgent):
    """Lets an endpoint speak instead of the engine, through the same loop as any model.

    It is not trainable: an endpoint gives no token ids and no log-probs. Its turns are recorded in the ids of the
    runner's tokenizer (bytes will do) with log-probs 0 and weight version -1, which a trainer refuses. The metric
    `reported_tokens` holds the endpoint's own count of what it wrote.

    Raises:
        UsageError: the environment variable of the key is not set.
    """

    uses_engine: ClassVar[bool] = False

    def __init__(self, config: EndpointConfig) -> None:
        super().__init__()
        self.config = config
        self._key = _key(config)
        self._client: Any = None

    async def take_turn(self, episode: Episode, shown: Sequence[Message]) -> tuple[Completion, Spoken] | None:
        """Ask the endpoint; where the conversation is too long for its model, the episode ends."""
        turn = episode.recorder.num_turns
        body = self._body(episode, shown, turn=turn)
        started = time.perf_counter()
        with boundary("engine", f"{self.config.model} at {self.config.base_url}"):
            answer = await self._ask(body, episode=episode, turn=turn)
            if _is_too_long(answer):
                said = None
            else:
                self._refuse_error(answer)
                taken = [call.call_id for message in shown for call in message.tool_calls]
                said = read_completion(_object(answer, shown=self._shown(answer)), turn=turn, taken=taken)
        episode.count("endpoint_s", time.perf_counter() - started)
        if said is None:
            await episode.truncate(StopReason.CONTEXT_OVERFLOW)
            return None
        _count_usage(episode, said)
        completion = record_spoken(episode, said.message, finish_reason=said.finish_reason)
        return completion, Spoken(message=said.message, shown=said.message)

    async def check(self) -> None:
        """Find out, before anything is played, whether the endpoint answers and takes the key.

        Raises:
            UsageError: nobody answers there, or the key is refused.
        """
        url = f"{self.config.base_url}/models"
        try:
            answer = await self._once("GET", "/models", timeout_s=_CHECK_TIMEOUT_S)
        except TimeoutError:
            raise UsageError(f"{url} did not answer within {_CHECK_TIMEOUT_S:g} s; is the server running?") from None
        except EngineError as error:
            raise UsageError(str(error)) from None
        if answer.status in (401, 403):
            raise UsageError(f"{url} answered {answer.status}: {self._shown(answer)}. {_KEY_HINT}")
        names = _model_names(answer)
        if names and self.config.model not in names:  # some endpoints take names that they do not list
            hint = did_you_mean(self.config.model, names)
            logger.warning("%s does not list the model %r.%s", url, self.config.model, hint)

    async def close(self) -> None:
        """Close all connections; idempotent."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    def _body(self, episode: Episode, shown: Sequence[Message], *, turn: int) -> dict[str, object]:
        sampling = episode.sampling
        body: dict[str, object] = {
            "model": self.config.model,
            "messages": request_messages(shown),
            "tools": list(episode.tools) or None,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.top_p < 1 else None,
            "max_tokens": self.config.max_tokens,
            "seed": episode.spec.derived_seed("turn", turn) % 2**31,
            **self.config.extra,
        }
        return {key: value for key, value in body.items() if value is not None}

    async def _ask(self, body: Mapping[str, object], *, episode: Episode, turn: int) -> _Answer:
        """Post until there is an answer that another attempt would not change.

        Raises:
            DeadlineExceeded: the time for the turn is over.
            EngineError: no connection could be made, or broke, with every attempt.
        """
        deadline_s = min(self.config.timeout_s, episode.time_left_s())
        end = time.perf_counter() + deadline_s
        where = f"POST {self.config.base_url}/chat/completions"
        for attempt in range(self.config.max_retries + 1):
            failure: EngineError | None = None
            answer: _Answer | None = None
            try:
                left_s = max(0.001, end - time.perf_counter())
                answer = await self._once("POST", "/chat/completions", body=body, timeout_s=left_s)
            except TimeoutError:
                raise DeadlineExceeded("engine", where, f"no complete answer within {deadline_s:g} s") from None
            except EngineError as error:
                failure = error
            if answer is not None and answer.status not in _RETRIED:
                return answer
            # half to one and a half times the usual wait, so that episodes do not come back all at once
            spread = 0.5 + np.random.default_rng(episode.spec.derived_seed("wait", turn, attempt)).random()
            wait_s = max(min(_LONGEST_WAIT_S, 0.5 * 2**attempt) * spread, answer.retry_after_s if answer else 0.0)
            if attempt == self.config.max_retries or wait_s >= end - time.perf_counter():
                if failure is not None:
                    raise failure
                assert answer is not None
                return answer
            episode.count("endpoint_retries")
            await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    async def _once(
        self, method: str, path: str, *, timeout_s: float, body: Mapping[str, object] | None = None
    ) -> _Answer:
        """Send one request and read the whole answer.

        Raises:
            TimeoutError: there was none within `timeout_s`.
            EngineError: the connection failed, or the answer is too large.
        """
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=None,
                limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            )
        content = None if body is None else json.dumps(body, default=str).encode("utf-8", "replace")
        url = self.config.base_url + path
        parts: list[bytes] = []
        size = 0
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream(
                    method, url, content=content, headers={"Content-Type": "application/json"}
                ) as response,
            ):
                async for part in response.aiter_bytes():
                    size += len(part)
                    if size > _MAX_ANSWER_BYTES:
                        raise EngineError(f"{method} {url} answered more than {_MAX_ANSWER_BYTES} bytes")
                    parts.append(part)
                return _Answer(
                    status=response.status_code, content=b"".join(parts), retry_after_s=_retry_after_s(response.headers)
                )
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise EngineError(f"{method} {url} failed: {describe(error)}; is the server running?") from error

    def _refuse_error(self, answer: _Answer) -> None:
        """Raise where the status says that there is no completion."""
        if 200 <= answer.status < 300:
            return
        hint = ""
        if answer.status in (401, 403):
            hint = f". {_KEY_HINT}"
        elif answer.status == 404:
            hint = f". Is {self.config.base_url} the base URL, and {self.config.model!r} a model that it serves?"
        raise EngineError(f"it answered {answer.status}: {self._shown(answer)}{hint}")

    def _shown(self, answer: _Answer) -> str:
        """Return the beginning of an answer, without the key, which some servers repeat."""
        text = answer.content.decode("utf-8", "replace")
        text = text.replace(self._key, HIDDEN) if self._key else text
        return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


_KEY_HINT = "Name the environment variable that holds the key (api_key_env, on the command line --api-key-env)"


def _key(config: EndpointConfig) -> str:
    if config.api_key is not None:
        key = config.api_key.get_secret_value()
    elif config.api_key_env is None:
        return ""
    else:
        key = os.environ.get(config.api_key_env, "")
        if not key.strip():
            raise UsageError(f"the environment variable {config.api_key_env} is not set; it should hold the key")
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError("the key holds characters that no HTTP header may carry")
    return key


def _object(answer: _Answer, *, shown: str) -> Mapping[str, object]:
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError):
        raise EngineError(f"it answered something that is not JSON: {shown}") from None
    if not isinstance(value, dict):
        raise EngineError(f"it answered {type(value).__name__}; expected a JSON object: {shown}")
    return value


def _is_too_long(answer: _Answer) -> bool:
    """True where the endpoint says that the conversation does not fit into its model's context."""
    if answer.status not in (400, 413):
        return False
    text = answer.content[:20_000].decode("utf-8", "replace").lower()
    return "context_length_exceeded" in text or "maximum context length" in text


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Return the seconds that the server asks to wait; a date, or nonsense, counts as nothing."""
    try:
        value = float(headers.get("retry-after", "0"))
    except ValueError:
        return 0.0
    return value if 0 <= value < 86_400 else 0.0


def _model_names(answer: _Answer) -> list[str]:
    try:
        listed = json.loads(answer.content)["data"]
        return [str(entry["id"]) for entry in listed]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _count_usage(episode: Episode, said: ChatCompletion) -> None:
    if said.usage is None:
        episode.count(UNREPORTED_TURNS)
        return
    episode.count(REPORTED_TOKENS, said.usage.completion_tokens)
    episode.count("reported_prompt_tokens", said.usage.prompt_tokens)
