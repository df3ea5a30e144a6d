"""OpenAI Responses: a request body to what is asked of the model, and its turn to an answer or events.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from agentenv.agent.model_request import (
    Body,
    ModelRequest,
    RequestError,
    content_parts,
    read_message,
    tool_spec,
    unique_tools,
)
from agentenv.agent.model_response import (
    JsonObject,
    ModelResponse,
    arguments_text,
    event,
    openai_fault,
    pieces,
    token_logprobs,
)
from agentenv.messages import Message, Role, ToolCall, decode_arguments
from agentenv.renderer import ToolSpecs

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "input_image": "image",
    "refusal": "refusal",
}
_LOGPROBS = "message.output_text.logprobs"


class ResponsesApi:
    """Translates the Responses API."""

    def read(self, body: Mapping[str, object]) -> ModelRequest:
        """Return what a body asks for."""
        fields = Body(body)
        fields.refuse("background", why="send the request and wait, or stream")
        fields.refuse("conversation", why="name the response before this one with previous_response_id")
        fields.refuse("prompt", why="send the text itself")
        fields.refuse("top_logprobs", why="the log-probs of other tokens are not recorded")
        text = fields.part("text")
        text_format = None if text is None else text.part("format")
        if text_format is not None and text_format.text("type") != "text":
            raise text_format.wrong("type", '"text"; output cannot be forced into a schema')
        include = fields.get("include")
        messages = _messages(fields)
        if not messages:
            raise fields.wrong("input", "a text, or a list of at least one item")
        return ModelRequest(
            model=fields.text("model"),
            messages=messages,
            instructions=fields.text("instructions"),
            tools=_tools(fields),
            max_tokens=fields.number("max_output_tokens", low=1),
            previous=fields.text("previous_response_id").removeprefix("resp_"),
            is_kept=fields.flag("store", default=True),
            is_streamed=fields.flag("stream"),
            wants_logprobs=isinstance(include, list) and _LOGPROBS in include,
            ignored=fields.ignored(),
        )

    def answer(self, response: ModelResponse) -> JsonObject:
        """Return the body of an answer."""
        return _body(response, _items(response), is_done=True)

    def events(self, response: ModelResponse) -> Iterator[str]:
        """Yield an answer as server-sent events."""
        for number, (name, data) in enumerate(_events(response)):
            yield event({"type": name, "sequence_number": number, **data}, name=name)

    def fault(self, error: RequestError) -> JsonObject:
        """Return the body of an error."""
        return openai_fault(error)

    def fault_event(self, error: RequestError) -> str:
        """Return an error inside a stream that has begun."""
        data = {"type": "error", "code": error.code or None, "message": str(error), "param": error.field or None}
        return event({**data, "sequence_number": 0}, name="error")


def _messages(fields: Body) -> tuple[Message, ...]:
    """Read the input; what one turn of the model gave (reasoning, text, calls) is one message again."""
    given = fields.get("input")
    if isinstance(given, str):
        return (Message(role="user", content=given),)
    out: list[Message] = []
    reasoning = ""
    for item in fields.parts("input"):
        kind = item.text("type") or "message"
        if kind == "reasoning":
            reasoning = "".join(part.text("text") for part in item.parts("content"))
        elif kind == "function_call":
            call = _read_call(item)
            if out and out[-1].role == "assistant" and not reasoning:
                out[-1] = replace(out[-1], tool_calls=(*out[-1].tool_calls, call))
            else:
                out.append(Message(role="assistant", content="", tool_calls=(call,), reasoning=reasoning))
                reasoning = ""
        elif kind == "function_call_output":
            content = content_parts(item, "output", kinds=_PARTS)
            call_id = item.text("call_id", is_required=True)
            out.append(read_message("tool", content, at=item.at, tool_call_id=call_id))
        elif kind == "message":
            message = _read_message(item)
            out.append(replace(message, reasoning=reasoning) if message.role == "assistant" else message)
            reasoning = ""
        else:
            raise item.wrong("type", "message, function_call, function_call_output or reasoning")
    return tuple(out)


def _read_message(item: Body) -> Message:
    role = _ROLES.get(item.text("role"))
    if role is None:
        raise item.wrong("role", f"one of {', '.join(_ROLES)}")
    return read_message(role, content_parts(item, "content", kinds=_PARTS), at=item.at)


def _read_call(item: Body) -> ToolCall:
    arguments, status = decode_arguments(item.text("arguments"))
    return ToolCall(
        call_id=item.text("call_id", is_required=True),
        name=item.text("name", is_required=True),
        arguments=arguments,
        status=status,
        raw=item.text("arguments") if status != "ok" else "",
    )


def _tools(fields: Body) -> ToolSpecs:
    specs = []
    for tool in fields.parts("tools"):
        if tool.text("type") != "function":
            raise tool.wrong("type", '"function"; tools that a server runs are not offered')
        specs.append(tool_spec(tool, schema_key="parameters"))
    choice = fields.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise fields.wrong("tool_choice", '"auto" or "none"; a call cannot be forced')
    return () if choice == "none" else unique_tools(fields, specs)


def _items(response: ModelResponse) -> list[JsonObject]:
    """Return what the turn gave, as output items."""
    reply, name = response.replies[0], response.response_id
    message = reply.message
    status = "incomplete" if reply.finish == "length" else "completed"
    out: list[JsonObject] = []
    if message.reasoning:
        content = [{"type": "reasoning_text", "text": message.reasoning}]
        out.append({"id": f"rs_{name}", "type": "reasoning", "summary": [], "content": content, "status": status})
    if message.content or not message.tool_calls:
        logprobs = token_logprobs(reply, response.renderer) if response.request.wants_logprobs else []
        part = {"type": "output_text", "text": message.content, "annotations": [], "logprobs": logprobs}
        item: JsonObject = {"id": f"msg_{name}", "type": "message", "status": status, "role": "assistant"}
        out.append({**item, "content": [part]})
    for index, call in enumerate(message.tool_calls):
        out.append(
            {
                "id": f"fc_{name}_{index}",
                "type": "function_call",
                "call_id": call.call_id,
                "name": call.name,
                "arguments": arguments_text(call),
                "status": status,
            }
        )
    return out


def _body(response: ModelResponse, output: list[JsonObject], *, is_done: bool) -> JsonObject:
    request, was_cut = response.request, response.replies[0].finish == "length"
    status = "in_progress" if not is_done else "incomplete" if was_cut else "completed"
    cached = {"cached_tokens": response.num_cached_tokens}
    usage = {
        "input_tokens": response.num_prompt_tokens,
        "input_tokens_details": cached,
        "output_tokens": response.num_sampled_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": response.num_prompt_tokens + response.num_sampled_tokens,
    }
    return {
        "id": f"resp_{response.response_id}",
        "object": "response",
        "created_at": int(response.created_s),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_done and was_cut else None,
        "instructions": request.instructions or None,
        "max_output_tokens": request.max_tokens,
        "model": request.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": f"resp_{request.previous}" if request.previous else None,
        "store": request.is_kept,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [_flat(spec) for spec in request.tools],
        "top_p": None,
        "truncation": "disabled",
        "usage": usage if is_done else None,
        "metadata": {},
    }


def _flat(spec: Mapping[str, object]) -> JsonObject:
    return {"type": "function", "strict": False, **cast("JsonObject", spec["function"])}


def _events(response: ModelResponse) -> Iterator[tuple[str, JsonObject]]:
    """Yield names and data of a stream's events."""
    begun = _body(response, [], is_done=False)
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    items = _items(response)
    for index, item in enumerate(items):
        if item["type"] == "message":
            yield from _text_events(item, index=index)
        elif item["type"] == "function_call":
            yield from _call_events(item, index=index)
        else:
            yield "response.output_item.added", {"output_index": index, "item": {**item, "status": "in_progress"}}
            yield "response.output_item.done", {"output_index": index, "item": item}
    done = _body(response, items, is_done=True)
    yield f"response.{done['status']}", {"response": done}


def _text_events(item: JsonObject, *, index: int) -> Iterator[tuple[str, JsonObject]]:
    begun = {**item, "status": "in_progress", "content": []}
    yield "response.output_item.added", {"output_index": index, "item": begun}
    (part,) = cast("list[JsonObject]", item["content"])
    at: JsonObject = {"item_id": item["id"], "output_index": index, "content_index": 0}
    yield "response.content_part.added", {**at, "part": {**part, "text": "", "logprobs": []}}
    for piece in pieces(str(part["text"])):
        yield "response.output_text.delta", {**at, "delta": piece, "logprobs": []}
    yield "response.output_text.done", {**at, "text": part["text"], "logprobs": part["logprobs"]}
    yield "response.content_part.done", {**at, "part": part}
    yield "response.output_item.done", {"output_index": index, "item": item}


def _call_events(item: JsonObject, *, index: int) -> Iterator[tuple[str, JsonObject]]:
    begun = {**item, "status": "in_progress", "arguments": ""}
    yield "response.output_item.added", {"output_index": index, "item": begun}
    at: JsonObject = {"item_id": item["id"], "output_index": index}
    for piece in pieces(str(item["arguments"])):
        yield "response.function_call_arguments.delta", {**at, "delta": piece}
    done = {**at, "name": item["name"], "arguments": item["arguments"]}
    yield "response.function_call_arguments.done", done
    yield "response.output_item.done", {"output_index": index, "item": item}
