"""Reads the answers of vLLM's two endpoints that take and give token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from agentenv.engine.protocol import Completion, FinishReason
from agentenv.errors import EngineError
from agentenv.trajectory import VersionSpan

P = TypeVar("P", bound=BaseModel)
C = TypeVar("C")

_FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Span(_Part):
    version: str
    start: int
    end: int


class _Token(_Part):
    token_id: int
    logprob: float


class _TokenLogprobs(_Part):
    content: list[_Token] | None = None


class _TextLogprobs(_Part):
    token_logprobs: list[float | None] = []


class _TokensChoice(_Part):
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: _TokenLogprobs | None = None
    weight_versions: list[_Span] | None = None


class _TextChoice(_Part):
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: _TextLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class _Cached(_Part):
    cached_tokens: int | None = None


class _Usage(_Part):
    prompt_tokens_details: _Cached | None = None


class _TokensAnswer(_Part):
    choices: list[_TokensChoice]
    usage: _Usage | None = None
    prompt_token_ids: list[int] | None = None


class _TextAnswer(_Part):
    choices: list[_TextChoice]
    usage: _Usage | None = None


def read_tokens_answer(answer: Mapping[str, Any], *, version: int | None) -> tuple[Completion, Sequence[int] | None]:
    """Read an answer of `/inference/v1/generate`.

    Args:
        answer: the JSON object.
        version: of the adapter that sampled all tokens; None takes the spans that the server gives.

    Returns:
        The completion, and the prompt as the server read it, where it was asked for.

    Raises:
        EngineError: a field is missing or has another type, or the log-probs are of other ids.
    """
    parsed = _parsed(_TokensAnswer, answer)
    choice = _only(parsed.choices)
    token_ids = choice.token_ids or []
    entries = (choice.logprobs.content if choice.logprobs else None) or []
    if [entry.token_id for entry in entries] != token_ids:
        raise EngineError(
            f"vLLM returned {len(token_ids)} token ids and {len(entries)} log-probs, or log-probs of other ids"
        )
    if version is None:
        spans = tuple(
            VersionSpan(version=version_number(span.version), start=span.start, end=span.end)
            for span in choice.weight_versions or ()
        )
    else:
        spans = (VersionSpan(version=version, start=0, end=len(token_ids)),)
    completion = Completion(
        token_ids=token_ids,
        logprobs=[entry.logprob for entry in entries],
        finish_reason=_finish(choice.finish_reason),
        weight_versions=spans,
        num_cached_tokens=_num_cached(parsed.usage),
    )
    return completion, parsed.prompt_token_ids


def read_completions_answer(answer: Mapping[str, Any], *, version: int) -> tuple[Completion, Sequence[int] | None]:
    """Read an answer of `/v1/completions` that was asked for token ids.

    Args:
        answer: the JSON object.
        version: of the weights; this endpoint does not say.

    Returns:
        The completion, and the prompt as the server read it.

    Raises:
        EngineError: a field is missing or has another type.
    """
    parsed = _parsed(_TextAnswer, answer)
    choice = _only(parsed.choices)
    token_ids = choice.token_ids or []
    logprobs = choice.logprobs.token_logprobs if choice.logprobs else []
    if len(logprobs) != len(token_ids) or None in logprobs:
        raise EngineError(f"vLLM returned {len(token_ids)} token ids and {len(logprobs)} log-probs, or empty ones")
    completion = Completion(
        token_ids=token_ids,
        logprobs=[value for value in logprobs if value is not None],
        finish_reason=_finish(choice.finish_reason),
        weight_versions=(VersionSpan(version=version, start=0, end=len(token_ids)),),
        num_cached_tokens=_num_cached(parsed.usage),
    )
    return completion, choice.prompt_token_ids


def version_number(version: str) -> int:
    """Return our number for vLLM's name of its weights; weights that nobody named are version 0.

    Raises:
        EngineError: somebody else named them.
    """
    if version == "default":
        return 0
    if not version.isdecimal():
        raise EngineError(f"the server's weights are called {version!r}, which is no version number of ours")
    return int(version)


def _parsed(kind: type[P], answer: Mapping[str, Any]) -> P:
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise EngineError(f"vLLM's answer cannot be read: {place}: {first['msg']}") from error


def _only(choices: list[C]) -> C:
    if len(choices) != 1:
        raise EngineError(f"vLLM returned {len(choices)} choices for one request")
    return choices[0]


def _finish(reason: str | None) -> FinishReason:
    finish = _FINISH.get(reason)
    if finish is None:
        raise EngineError(f"vLLM ended a request with finish reason {reason!r}")
    return finish


def _num_cached(usage: _Usage | None) -> int:
    details = usage.prompt_tokens_details if usage else None
    return (details.cached_tokens if details else None) or 0
