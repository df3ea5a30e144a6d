"""What the model answered to a program's call, and the pieces that all APIs write answers from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from agentenv.agent.model_request import ModelRequest, RequestError
from agentenv.agent.session import Reply
from agentenv.messages import ToolCall, decode_arguments
from agentenv.renderer import Renderer

JsonObject = dict[str, object]

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
"""One encoder for all: making it costs more than most events."""

_PIECE_CHARS = 48
_MAX_PIECES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResponse:
    """The turns that answer a request.

    Attributes:
        response_id: unique within the run, without the prefix that each API puts before it.
        request: what was asked.
        replies: one for each choice.
        renderer: of the model.
        created_s: Unix time.
    """

    response_id: str
    request: ModelRequest
    replies: tuple[Reply, ...]
    renderer: Renderer
    created_s: float

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt; the choices share it."""
        return self.replies[0].num_prompt_tokens

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt that the engine had in its cache for the first choice."""
        return min(self.replies[0].completion.num_cached_tokens, self.num_prompt_tokens)

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(reply.completion.token_ids) for reply in self.replies)


class Api(Protocol):
    """Translates between one API and the session; pure, so that it can be tried with anything."""

    def read(self, body: Mapping[str, object]) -> ModelRequest:
        """Return what a body asks for.

        Raises:
            RequestError: the body is not what the API says, or asks for something that is not done.
        """
        ...

    def answer(self, response: ModelResponse) -> JsonObject:
        """Return the body of an answer."""
        ...

    def events(self, response: ModelResponse) -> Iterator[str]:
        """Yield an answer as server-sent events."""
        ...

    def fault(self, error: RequestError) -> JsonObject:
        """Return the body of an error."""
        ...

    def fault_event(self, error: RequestError) -> str:
        """Return an error inside a stream that has begun."""
        ...


def dumps(value: object) -> str:
    """Return compact JSON."""
    return _encode(value)


def event(data: Mapping[str, object], *, name: str = "") -> str:
    """Return one server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    return f"event: {name}\ndata: {dumps(data)}\n\n" if name else f"data: {dumps(data)}\n\n"


def pieces(text: str) -> Iterator[str]:
    """Cut a text into the pieces that a stream sends: few, because all of it is known when the first is sent."""
    size = max(_PIECE_CHARS, -(-len(text) // _MAX_PIECES))
    return (text[start : start + size] for start in range(0, len(text), size))


def arguments_text(call: ToolCall) -> str:
    """Return a call's arguments as the APIs with textual arguments carry them.

    Of an attempt whose arguments are no JSON object, the program gets what the model wrote for them, so that its own
    parser fails on it as it would with any model.
    """
    if call.status == "ok":
        return dumps(dict(call.arguments))
    try:
        written = json.loads(call.raw)["arguments"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return call.raw
    return written if isinstance(written, str) else dumps(written)


def arguments_object(call: ToolCall) -> JsonObject:
    """Return a call's arguments as the API with arguments as objects carries them."""
    return dict(call.arguments) if call.status == "ok" else {"malformed_arguments": arguments_text(call)}


def is_shown_as(call: ToolCall, *, given: ToolCall) -> bool:
    """True where `given` is what a program sends back of an attempt that was shown to it."""
    return call.name == given.name and (given.arguments, given.status) in (
        decode_arguments(arguments_text(call)),
        (arguments_object(call), "ok"),
    )


def token_logprobs(reply: Reply, renderer: Renderer) -> list[JsonObject]:
    """Return text and log-prob of every token of a turn but the one that ended it."""
    ids = list(reply.completion.token_ids)
    if ids and ids[-1] in renderer.stop_ids:
        del ids[-1]
    out: list[JsonObject] = []
    for token, logprob in zip(ids, reply.completion.logprobs, strict=False):
        text = renderer.decode([token])
        # a token may be a part of a character; its bytes cannot be told from its text then
        raw = None if "\ufffd" in text else list(text.encode())
        out.append({"token": text, "logprob": min(float(logprob), 0.0), "bytes": raw, "top_logprobs": []})
    return out


def openai_fault(error: RequestError) -> JsonObject:
    """Return the body of an error in OpenAI's shape, which chat completions and Responses share."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {"message": str(error), "type": kind, "param": error.field or None, "code": error.code or None},
    }
