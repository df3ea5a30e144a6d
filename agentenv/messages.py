"""What is said in an episode: messages, tool calls and tool results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from agentenv.content import Image as Image
from agentenv.content import content_parts, read_content, segments
from agentenv.errors import UsageError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

CallStatus = Literal["ok", "invalid_json", "unclosed_block", "missing_name", "malformed_structure", "unknown_tool"]
CALL_STATUSES: tuple[CallStatus, ...] = get_args(CallStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One attempt of the model to call a tool; a malformed attempt is kept, with its status.

    Attributes:
        call_id: pairs the call with its result; unique within the episode.
        name: tool name; empty when the attempt did not carry one.
        arguments: decoded JSON object; empty for a malformed attempt.
        status: `"ok"`, or why the attempt could not be parsed.
        raw: the text the model wrote, for malformed attempts and for people.
    """

    call_id: str
    name: str
    arguments: Mapping[str, object]
    status: CallStatus = "ok"
    raw: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the OpenAI shape; `arguments` stays an object. Malformed attempts carry status and raw text."""
        out: dict[str, object] = {
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.name, "arguments": dict(self.arguments)},
        }
        if self.status != "ok":
            out["status"] = self.status
            out["raw"] = self.raw
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool call gave back to the model.

    Attributes:
        call_id: the call this answers.
        name: tool name as the model wrote it.
        content: text for the model.
        is_error: True when the call was refused, malformed or failed in a way the model may react to.
        images: pictures, by their position in `content`.
    """

    call_id: str
    name: str
    content: str
    is_error: bool = False
    images: tuple[Image, ...] = ()

    def to_message(self) -> Message:
        """Return the `tool` message that carries this result."""
        return Message(role="tool", content=self.content, tool_call_id=self.call_id, name=self.name, images=self.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: who speaks.
        content: text; empty for an assistant turn that only calls tools.
        tool_calls: attempts of an assistant turn, in order of appearance, malformed ones included.
        tool_call_id: on a `tool` message, the call that it answers.
        name: on a `tool` message, the tool's name.
        reasoning: an assistant's reasoning text where the model family has a channel for it.
        images: pictures, by their position in `content`.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""
    images: tuple[Image, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return the OpenAI chat shape, leaving empty fields out; with images the content is a list of parts."""
        content = content_parts(self.content, self.images) if self.images else self.content
        out: dict[str, object] = {"role": self.role, "content": content}
        if self.tool_calls:
            out["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.tool_call_id:
            out["tool_call_id"] = self.tool_call_id
        if self.name:
            out["name"] = self.name
        if self.reasoning:
            out["reasoning_content"] = self.reasoning
        return out


def message_from_dict(value: Mapping[str, object]) -> Message:
    """Read one message in the OpenAI chat shape.

    Args:
        value: a mapping with `role` and `content`; a content list may hold text and image parts (`read_content`).

    Raises:
        UsageError: names the field that is wrong and what was expected.
    """
    role = value.get("role")
    if role not in ROLES:
        raise UsageError(f"message field 'role' is {role!r}; expected one of {', '.join(ROLES)}")
    calls = value.get("tool_calls") or ()
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise UsageError(f"message field 'tool_calls' is {type(calls).__name__}; expected a list of calls")
    text, images = read_content(value.get("content"))
    if images and role == "assistant":
        raise UsageError("an assistant message has images; models read pictures and write text")
    return Message(
        role=cast(Role, role),
        content=text,
        tool_calls=tuple(_call_from_value(call, index) for index, call in enumerate(calls)),
        tool_call_id=_text_field(value, "tool_call_id"),
        name=_text_field(value, "name"),
        reasoning=_text_field(value, "reasoning_content") or _text_field(value, "reasoning"),
        images=images,
    )


def images_of(messages: Iterable[Message]) -> tuple[Image, ...]:
    """Return the images of a conversation in the order in which a model reads them."""
    return tuple(
        piece
        for message in messages
        if message.images
        for piece in segments(message.content, message.images)
        if isinstance(piece, Image)
    )


def as_messages(value: str | Message | Mapping[str, object] | Iterable[object]) -> tuple[Message, ...]:
    """Turn a prompt, in any shape an author may return, into messages; a bare string is one user message."""
    if isinstance(value, str):
        return (Message(role="user", content=value),)
    if isinstance(value, Message):
        return (value,)
    if isinstance(value, Mapping):
        return (message_from_dict(cast(Mapping[str, object], value)),)
    if not isinstance(value, Iterable):
        raise UsageError(f"a prompt is {type(value).__name__}; expected a string or messages")
    out: list[Message] = []
    for item in value:
        if isinstance(item, Message):
            out.append(item)
        elif isinstance(item, Mapping):
            out.append(message_from_dict(cast(Mapping[str, object], item)))
        else:
            raise UsageError(f"a prompt item is {type(item).__name__}; expected Message or a dict with 'role'")
    return tuple(out)


def malformed_call(*, call_id: str, status: CallStatus, raw: str, name: str = "") -> ToolCall:
    """Return the record of an attempt that could not be parsed."""
    return ToolCall(call_id=call_id, name=name, arguments={}, status=status, raw=raw)


def decode_arguments(value: object) -> tuple[Mapping[str, object], CallStatus]:
    """Read call arguments that are an object, or a JSON text of one; anything else is malformed."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            return {}, "invalid_json"
    if value is None:
        return {}, "ok"
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return {}, "malformed_structure"
    return cast(Mapping[str, object], value), "ok"


def _call_from_value(value: object, index: int) -> ToolCall:
    if isinstance(value, ToolCall):
        return value
    if not isinstance(value, Mapping):
        return malformed_call(call_id=f"call_{index}", status="malformed_structure", raw=repr(value)[:2000])
    call = cast(Mapping[str, object], value)
    body = call.get("function", call)
    call_id = str(call.get("id") or f"call_{index}")
    if not isinstance(body, Mapping):
        return malformed_call(call_id=call_id, status="malformed_structure", raw=repr(value)[:2000])
    body = cast(Mapping[str, object], body)
    name, raw = body.get("name"), str(call.get("raw") or "")
    if call.get("status") not in (None, "ok"):
        given = call["status"]
        status = cast(CallStatus, given) if given in CALL_STATUSES else "malformed_structure"
        return malformed_call(call_id=call_id, status=status, raw=raw, name=str(name or ""))
    if not isinstance(name, str) or not name:
        return malformed_call(call_id=call_id, status="missing_name", raw=repr(value)[:2000])
    arguments, status = decode_arguments(body.get("arguments"))
    return ToolCall(call_id=call_id, name=name, arguments=arguments, status=status, raw=raw)


def _text_field(value: Mapping[str, object], key: str) -> str:
    field = value.get(key)
    if field is None:
        return ""
    if not isinstance(field, str):
        raise UsageError(f"message field {key!r} is {type(field).__name__}; expected text")
    return field
