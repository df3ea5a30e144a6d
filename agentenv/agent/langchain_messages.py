"""Messages of an episode as LangChain's, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from agentenv.errors import UsageError
from agentenv.messages import Message, ToolCall, decode_arguments, malformed_call, message_from_dict

try:
    from langchain_core import messages as langchain
    from langchain_core.messages.tool import invalid_tool_call, tool_call
except ModuleNotFoundError as error:
    raise UsageError(f'LangChain is missing ({error}); install it with: pip install "agentenv[langgraph]"') from error


def to_langchain(message: Message) -> langchain.BaseMessage:
    """Return a message of the environment for a graph."""
    content = cast(Any, message.to_dict()["content"])
    if message.role == "system":
        return langchain.SystemMessage(content=content)
    if message.role == "user":
        return langchain.HumanMessage(content=content)
    if message.role == "tool":
        return langchain.ToolMessage(content=content, tool_call_id=message.tool_call_id, name=message.name)
    return langchain.AIMessage(
        content=content,
        tool_calls=[as_tool_call(call) for call in message.tool_calls if call.status == "ok"],
        invalid_tool_calls=[as_invalid_call(call) for call in message.tool_calls if call.status != "ok"],
        additional_kwargs=reasoning_of(message),
    )


def from_langchain(message: langchain.BaseMessage) -> Message:
    """Read a message of a graph.

    Raises:
        UsageError: the kind of message, or a part of its content, is not one that a model can be given.
    """
    if isinstance(message, langchain.AIMessage):
        calls = [_read_call(call) for call in message.tool_calls]
        return Message(
            role="assistant",
            content=_spoken_text(message),
            tool_calls=(*calls, *map(_read_invalid_call, message.invalid_tool_calls)),
            reasoning=str(message.additional_kwargs.get("reasoning_content") or ""),
        )
    value: dict[str, object] = {"content": _content(message.content)}
    if isinstance(message, langchain.HumanMessage):
        value["role"] = "user"
    elif isinstance(message, langchain.SystemMessage):
        value["role"] = "system"
    elif isinstance(message, langchain.ToolMessage):
        value |= {"role": "tool", "tool_call_id": message.tool_call_id, "name": message.name or ""}
    elif isinstance(message, langchain.ChatMessage):
        value["role"] = message.role
    else:
        raise UsageError(
            f"a graph sent a {type(message).__name__}; allowed are human, system, AI and tool messages, and chat "
            "messages with one of these roles"
        )
    return message_from_dict(value)


def as_tool_call(call: ToolCall) -> langchain.ToolCall:
    """Return a call that a graph may run."""
    return tool_call(name=call.name, args=dict(call.arguments), id=call.call_id)


def as_invalid_call(call: ToolCall) -> langchain.InvalidToolCall:
    """Return an attempt that nobody can run.

    What the model wrote stands in `args` as a JSON string: merging streamed chunks mends half objects, and would make a
    call out of it.
    """
    written = call.raw or json.dumps(dict(call.arguments))
    error = "unknown_tool" if call.status == "ok" else call.status
    return invalid_tool_call(name=call.name or None, args=json.dumps(written), id=call.call_id, error=error)


def reasoning_of(message: Message) -> dict[str, Any]:
    """Return the extra fields in which LangChain's models carry reasoning."""
    return {"reasoning_content": message.reasoning} if message.reasoning else {}


def _read_call(call: langchain.ToolCall) -> ToolCall:
    arguments, status = decode_arguments(call["args"])
    return ToolCall(call_id=call["id"] or "", name=call["name"], arguments=arguments, status=status)


def _read_invalid_call(call: langchain.InvalidToolCall) -> ToolCall:
    return malformed_call(
        call_id=call["id"] or "", status="invalid_json", raw=call["args"] or "", name=call["name"] or ""
    )


def _spoken_text(message: langchain.AIMessage) -> str:
    """Return the text of an assistant's turn; blocks of calls and reasoning stand in fields of their own."""
    if isinstance(message.content, str):
        return message.content
    return "".join(_text_of(part) or "" for part in message.content)


def _content(content: object) -> object:
    """Return content as chat completions have it."""
    if not isinstance(content, list):
        return content
    parts: list[object] = []
    for part in content:
        text = _text_of(part)
        if text is not None:
            parts.append({"type": "text", "text": text})
        elif isinstance(part, dict) and part.get("type") == "image" and langchain.is_data_content_block(part):
            parts.append(langchain.convert_to_openai_image_block(part))
        else:
            parts.append(part)
    return parts


def _text_of(part: object) -> str | None:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    return None
