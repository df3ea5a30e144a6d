"""Anthropic messages: a request body to what is asked of the model, and its turn to an answer or events.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from agentenv.agent.model_request import (
    Body,
    ModelRequest,
    RequestError,
    content_part,
    content_parts,
    read_message,
    tool_spec,
    unique_tools,
)
from agentenv.agent.model_response import JsonObject, ModelResponse, arguments_object, dumps, event, pieces
from agentenv.messages import Message
from agentenv.renderer import ToolSpecs

_TEXT = {"text": "text"}
_PARTS = {"text": "text", "image": "image"}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_FAULTS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    504: "timeout_error",
}


class MessagesApi:
    """Translates Anthropic messages."""

    def read(self, body: Mapping[str, object]) -> ModelRequest:
        """Return what a body asks for."""
        fields = Body(body)
        fields.refuse("mcp_servers", "container", why="only function tools, run by the program, are offered")
        fields.refuse("output_format", "output_config", why="output cannot be forced into a schema")
        system = content_parts(fields, "system", kinds=_TEXT)
        messages = [message for item in fields.parts("messages") for message in _messages(item)]
        if not messages:
            raise fields.wrong("messages", "at least one message")
        if messages[-1].role == "assistant":
            raise RequestError("messages end with the assistant; prefilled turns are not supported", field="messages")
        max_tokens = fields.number("max_tokens", low=1)
        if max_tokens is None:
            raise fields.wrong("max_tokens", "a whole number of at least 1")
        thinking = fields.part("thinking")
        return ModelRequest(
            model=fields.text("model"),
            messages=tuple(messages),
            instructions=system if isinstance(system, str) else "".join(str(part["text"]) for part in system),
            tools=_tools(fields),
            max_tokens=max_tokens,
            stop=fields.stops("stop_sequences"),
            is_streamed=fields.flag("stream"),
            wants_reasoning=thinking is not None and thinking.text("type") in ("enabled", "adaptive"),
            ignored=fields.ignored(),
        )

    def answer(self, response: ModelResponse) -> JsonObject:
        """Return the body of an answer."""
        reply = response.replies[0]
        return {
            **_head(response),
            "content": _blocks(response),
            "stop_reason": "stop_sequence" if reply.stopped_by else _STOP_REASONS[reply.finish],
            "stop_sequence": reply.stopped_by or None,
            "usage": _usage(response, num_sampled=response.num_sampled_tokens),
        }

    def events(self, response: ModelResponse) -> Iterator[str]:
        """Yield an answer as server-sent events."""
        for data in _events(self.answer(response), usage=_usage(response, num_sampled=0)):
            yield event(data, name=str(data["type"]))

    def fault(self, error: RequestError) -> JsonObject:
        """Return the body of an error."""
        kind = _FAULTS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        # programs know a full context by these words
        text = f"prompt is too long: {error}" if error.code == "context_length_exceeded" else str(error)
        return {"type": "error", "error": {"type": kind, "message": text}}

    def fault_event(self, error: RequestError) -> str:
        """Return an error inside a stream that has begun."""
        return event(self.fault(error), name="error")


def _messages(item: Body) -> Iterator[Message]:
    """Yield what a message holds: tool results come in a user's message and are messages of their own here."""
    role = item.text("role")
    if role == "assistant":
        yield _assistant(item)
        return
    if role != "user":
        raise item.wrong("role", '"user" or "assistant"; send the system prompt as `system`')
    if isinstance(item.get("content"), str):
        yield Message(role="user", content=item.text("content"))
        return
    pending: list[Mapping[str, object]] = []
    blocks = item.parts("content")
    if not blocks:
        raise item.wrong("content", "a text, or a list of at least one block")
    for block in blocks:
        if block.text("type") != "tool_result":
            pending.append(content_part(block, kinds=_PARTS))
            continue
        if pending:
            yield read_message("user", pending, at=item.at)
            pending = []
        call_id = block.text("tool_use_id", is_required=True)
        yield read_message("tool", content_parts(block, "content", kinds=_PARTS), at=block.at, tool_call_id=call_id)
    if pending:
        yield read_message("user", pending, at=item.at)


def _assistant(item: Body) -> Message:
    content = item.get("content")
    if isinstance(content, str):
        return Message(role="assistant", content=content)
    texts: list[Mapping[str, object]] = []
    calls: list[Mapping[str, object]] = []
    reasoning = ""
    for block in item.parts("content"):
        kind = block.text("type")
        if kind == "tool_use":
            arguments = block.part("input")
            if arguments is None:
                raise block.wrong("input", "an object")
            function = {"name": block.text("name", is_required=True), "arguments": block.get("input")}
            calls.append({"id": block.text("id", is_required=True), "function": function})
        elif kind == "thinking":
            reasoning += block.text("thinking")
        elif kind != "redacted_thinking":
            texts.append(content_part(block, kinds=_PARTS))
    return read_message("assistant", texts, at=item.at, tool_calls=calls, reasoning_content=reasoning)


def _tools(fields: Body) -> ToolSpecs:
    specs = []
    for tool in fields.parts("tools"):
        if tool.get("type") not in (None, "custom"):
            raise tool.wrong("type", '"custom"; tools that a server runs are not offered')
        specs.append(tool_spec(tool, schema_key="input_schema"))
    choice = fields.part("tool_choice")
    kind = "auto" if choice is None else choice.text("type")
    if choice is not None and kind not in ("auto", "none"):
        raise choice.wrong("type", '"auto" or "none"; a call cannot be forced')
    return () if kind == "none" else unique_tools(fields, specs)


def _head(response: ModelResponse) -> JsonObject:
    return {
        "id": f"msg_{response.response_id}",
        "type": "message",
        "role": "assistant",
        "model": response.request.model,
    }


def _blocks(response: ModelResponse) -> list[JsonObject]:
    message = response.replies[0].message
    out: list[JsonObject] = []
    if message.reasoning and response.request.wants_reasoning:
        out.append({"type": "thinking", "thinking": message.reasoning, "signature": ""})
    if message.content:
        out.append({"type": "text", "text": message.content})
    for call in message.tool_calls:
        out.append({"type": "tool_use", "id": call.call_id, "name": call.name, "input": arguments_object(call)})
    return out


def _usage(response: ModelResponse, *, num_sampled: int) -> JsonObject:
    cached = response.num_cached_tokens
    return {
        "input_tokens": response.num_prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": num_sampled,
    }


def _events(body: JsonObject, *, usage: JsonObject) -> Iterator[JsonObject]:
    """Yield the events of a stream from the answer's body."""
    begun = {**body, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield {"type": "message_start", "message": begun}
    for index, block in enumerate(cast("list[JsonObject]", body["content"])):
        yield from _block_events(block, index=index)
    delta = {"stop_reason": body["stop_reason"], "stop_sequence": body["stop_sequence"]}
    yield {"type": "message_delta", "delta": delta, "usage": body["usage"]}
    yield {"type": "message_stop"}


def _block_events(block: JsonObject, *, index: int) -> Iterator[JsonObject]:
    if block["type"] == "tool_use":
        begun, field, text = {**block, "input": {}}, "partial_json", dumps(block["input"])
        kind = "input_json_delta"
    else:
        field = str(block["type"])
        begun, text, kind = {**block, field: ""}, str(block[field]), f"{field}_delta"
    yield {"type": "content_block_start", "index": index, "content_block": begun}
    for piece in pieces(text):
        yield {"type": "content_block_delta", "index": index, "delta": {"type": kind, field: piece}}
    yield {"type": "content_block_stop", "index": index}
