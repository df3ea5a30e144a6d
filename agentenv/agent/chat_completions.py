"""Conversations in the wire format of OpenAI-compatible chat completions, seen from the client."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from agentenv.engine.protocol import FinishReason
from agentenv.errors import EngineError
from agentenv.messages import Message, ToolCall, decode_arguments, malformed_call

_MAX_NAME_CHARS = 64
_MAX_RAW_CHARS = 20_000
_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an endpoint says that an answer cost, in its own tokens."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletion:
    """An endpoint's answer.

    Attributes:
        message: the assistant's turn; malformed calls are kept, with their status.
        finish_reason: `"length"` where the endpoint cut it, else `"stop"`.
        usage: None where the endpoint does not say.
    """

    message: Message
    finish_reason: FinishReason
    usage: Usage | None


def request_messages(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Return messages as a request carries them; reasoning is not sent back."""
    return [_request_message(message) for message in messages]


def read_completion(answer: Mapping[str, object], *, turn: int, taken: Collection[str] = ()) -> ChatCompletion:
    """Read the first choice of an answer.

    Args:
        answer: the JSON object that came.
        turn: index of the turn; names calls to which the endpoint gave no id, or one that was used before.
        taken: ids of earlier calls.

    Raises:
        EngineError: it is no chat completion; the message says what is missing.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EngineError(f"no chat completion came: 'choices' is {_shown(choices)}")
    choice = cast(Mapping[str, object], choices[0])
    body = choice.get("message")
    if not isinstance(body, dict):
        raise EngineError(f"no chat completion came: 'choices[0].message' is {_shown(body)}")
    body = cast(Mapping[str, object], body)
    calls = body.get("tool_calls") or []
    if not isinstance(calls, list):
        raise EngineError(f"no chat completion came: 'tool_calls' is {_shown(calls)}")
    message = Message(
        role="assistant",
        content=_text(body.get("content"), field="content") or _text(body.get("refusal"), field="refusal"),
        tool_calls=_read_calls(calls, turn=turn, taken=taken),
        reasoning=_text(body.get("reasoning_content") or body.get("reasoning"), field="reasoning"),
    )
    finish: FinishReason = "length" if choice.get("finish_reason") == "length" else "stop"
    return ChatCompletion(message=message, finish_reason=finish, usage=_usage(answer.get("usage")))


def _request_message(message: Message) -> dict[str, object]:
    out: dict[str, object] = {"role": message.role, "content": _content(message)}
    if message.tool_calls:
        out["content"] = message.content or None
        out["tool_calls"] = [_request_call(call) for call in message.tool_calls]
    if message.role == "tool":
        out["tool_call_id"] = message.tool_call_id
    return out


def _request_call(call: ToolCall) -> dict[str, object]:
    """Return an earlier call. A malformed one is sent as valid JSON, since servers parse the history again."""
    arguments = dict(call.arguments) if call.status == "ok" else {"malformed": call.raw}
    name = _NO_NAME.sub("_", call.name)[:_MAX_NAME_CHARS] or "unnamed"
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments, default=str)},
    }


def _content(message: Message) -> object:
    """Return the text, or a list of parts where there are pictures."""
    if not message.images:
        return message.content
    parts: list[dict[str, object]] = []
    start = 0
    for image in sorted(message.images, key=lambda image: image.position):
        if message.content[start : image.position]:
            parts.append({"type": "text", "text": message.content[start : image.position]})
        start = max(start, image.position)
        data = base64.b64encode(image.data).decode("ascii")
        parts.append({"type": "image_url", "image_url": {"url": f"data:{image.media_type};base64,{data}"}})
    if message.content[start:]:
        parts.append({"type": "text", "text": message.content[start:]})
    return parts


def _read_calls(calls: Sequence[object], *, turn: int, taken: Collection[str]) -> tuple[ToolCall, ...]:
    used = set(taken)
    out: list[ToolCall] = []
    for index, value in enumerate(calls):
        call = _read_call(value, call_id=f"call_{turn}_{index}", used=used)
        used.add(call.call_id)
        out.append(call)
    return tuple(out)


def _read_call(value: object, *, call_id: str, used: Collection[str]) -> ToolCall:
    body = cast(Mapping[str, object], value).get("function") if isinstance(value, dict) else None
    if not isinstance(body, dict):
        return malformed_call(call_id=call_id, status="malformed_structure", raw=_shown(value))
    given = cast(Mapping[str, object], value).get("id")
    if isinstance(given, str) and given and given not in used:
        call_id = given
    fields = cast(Mapping[str, object], body)
    name, arguments = fields.get("name"), fields.get("arguments")
    raw = arguments if isinstance(arguments, str) else _shown(arguments)
    raw = raw[:_MAX_RAW_CHARS]
    if not isinstance(name, str) or not name:
        return malformed_call(call_id=call_id, status="missing_name", raw=raw)
    decoded, status = decode_arguments(arguments)
    return ToolCall(call_id=call_id, name=name, arguments=decoded, status=status, raw=raw)


def _text(value: object, *, field: str) -> str:
    """Return a text, or the joined text parts of a list; other kinds of part are left out."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [cast(Mapping[str, object], part).get("text") for part in value if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    raise EngineError(f"no chat completion came: '{field}' is {_shown(value)}; a text is needed")


def _usage(value: object) -> Usage | None:
    if not isinstance(value, dict):
        return None
    usage = cast(Mapping[str, object], value)
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (_is_count(prompt) and _is_count(completion)):
        return None
    return Usage(prompt_tokens=cast(int, prompt), completion_tokens=cast(int, completion))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


def _shown(value: object) -> str:
    if value is None:
        return "missing"
    try:
        text = json.dumps(value, default=str)
    except (RecursionError, ValueError):
        text = type(value).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
