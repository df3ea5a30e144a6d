"""OpenAI chat completions: a request body to what is asked of the model, and its turns to an answer or events.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from agentenv.agent.session import Reply
from agentenv.messages import Message, Role
from agentenv.renderer import ToolSpecs

MAX_CHOICES = 128

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_PARTS = {"text": "text", "image_url": "image", "refusal": "refusal"}


class ChatApi:
    """Translates chat completions."""

    def read(self, body: Mapping[str, object]) -> ModelRequest:
        """Return what a body asks for."""
        fields = Body(body)
        fields.refuse("audio", "web_search_options", why="the policy only writes text")
        fields.refuse("functions", "function_call", why="send `tools` and `tool_choice`")
        fields.refuse("logit_bias", why="log-probs would be of another distribution than the policy's")
        fields.refuse("top_logprobs", why="the log-probs of other tokens are not recorded")
        if fields.get("modalities") not in (None, ["text"]):
            raise fields.wrong("modalities", '["text"]')
        response_format = fields.part("response_format")
        if response_format is not None and response_format.text("type") != "text":
            raise response_format.wrong("type", '"text"; output cannot be forced into a schema')
        messages = tuple(map(_message, fields.parts("messages")))
        if not messages:
            raise fields.wrong("messages", "at least one message")
        options = fields.part("stream_options")
        bound = fields.number("max_completion_tokens", low=1)
        max_tokens = fields.number("max_tokens", low=1)
        return ModelRequest(
            model=fields.text("model"),
            messages=messages,
            tools=_tools(fields),
            max_tokens=max_tokens if bound is None else bound,
            stop=fields.stops("stop"),
            num_choices=fields.number("n", low=1, high=MAX_CHOICES) or 1,
            is_streamed=fields.flag("stream"),
            wants_usage=options is not None and options.flag("include_usage"),
            wants_logprobs=fields.flag("logprobs"),
            wants_token_ids=fields.flag("return_token_ids"),
            ignored=fields.ignored(),
        )

    def answer(self, response: ModelResponse) -> JsonObject:
        """Return the body of an answer."""
        out = _head(response, "chat.completion")
        out["choices"] = [_choice(response, index) for index in range(len(response.replies))]
        out["usage"] = _usage(response)
        if response.request.wants_token_ids:
            out["prompt_token_ids"] = list(response.replies[0].prompt_ids)
        return out

    def events(self, response: ModelResponse) -> Iterator[str]:
        """Yield an answer as server-sent events."""
        head = _head(response, "chat.completion.chunk")
        prompt_ids = list(response.replies[0].prompt_ids)
        first: JsonObject = {"prompt_token_ids": prompt_ids} if response.request.wants_token_ids else {}
        for index, reply in enumerate(response.replies):
            for choice in _deltas(response, reply):
                yield event({**head, "choices": [{"index": index, **choice}], **first})
                first = {}
        if response.request.wants_usage:
            yield event({**head, "choices": [], "usage": _usage(response)})
        yield "data: [DONE]\n\n"

    def fault(self, error: RequestError) -> JsonObject:
        """Return the body of an error."""
        return openai_fault(error)

    def fault_event(self, error: RequestError) -> str:
        """Return an error inside a stream that has begun."""
        return event(self.fault(error))


def message_body(message: Message) -> JsonObject:
    """Return a message as programs send it: the OpenAI chat shape, call arguments as text."""
    out = message.to_dict()
    if message.tool_calls:
        out["tool_calls"] = [_call(message, index) for index in range(len(message.tool_calls))]
    return out


def _message(body: Body) -> Message:
    role = _ROLES.get(body.text("role"))
    if role is None:
        raise body.wrong("role", f"one of {', '.join(_ROLES)}")
    content = content_parts(body, "content", kinds=_PARTS)
    fields: dict[str, object] = {}
    if role == "assistant":
        body.refuse("audio", "function_call", why="send `content` and `tool_calls`")
        fields["reasoning_content"] = body.text("reasoning_content") or body.text("reasoning")
        fields["tool_calls"] = [_read_call(call) for call in body.parts("tool_calls")]
    elif role == "tool":
        fields["tool_call_id"] = body.text("tool_call_id", is_required=True)
        fields["name"] = body.text("name")
    return read_message(role, content, at=body.at, **fields)


def _read_call(call: Body) -> Mapping[str, object]:
    if call.get("type") not in (None, "function"):
        raise call.wrong("type", '"function"')
    function = call.part("function")
    if function is None:
        raise call.wrong("function", "an object with name and arguments")
    return {
        "id": call.text("id", is_required=True),
        "function": {"name": function.text("name", is_required=True), "arguments": function.text("arguments")},
    }


def _tools(fields: Body) -> ToolSpecs:
    specs = []
    for tool in fields.parts("tools"):
        if tool.text("type") != "function":
            raise tool.wrong("type", '"function"')
        function = tool.part("function")
        if function is None:
            raise tool.wrong("function", "an object with name and parameters")
        specs.append(tool_spec(function, schema_key="parameters"))
    choice = fields.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise fields.wrong("tool_choice", '"auto" or "none"; a call cannot be forced')
    return () if choice == "none" else unique_tools(fields, specs)


def _head(response: ModelResponse, kind: str) -> JsonObject:
    return {
        "id": f"chatcmpl-{response.response_id}",
        "object": kind,
        "created": int(response.created_s),
        "model": response.request.model,
    }


def _choice(response: ModelResponse, index: int) -> JsonObject:
    reply = response.replies[index]
    message = reply.message
    said: JsonObject = {"role": "assistant", "content": message.content or (None if message.tool_calls else "")}
    said["refusal"] = None
    if message.reasoning:
        said["reasoning_content"] = message.reasoning
    if message.tool_calls:
        said["tool_calls"] = [_call(message, position) for position in range(len(message.tool_calls))]
    out: JsonObject = {"index": index, "message": said, "finish_reason": reply.finish}
    out["logprobs"] = _logprobs(response, reply) if response.request.wants_logprobs else None
    if response.request.wants_token_ids:
        out["token_ids"] = list(reply.completion.token_ids)
    return out


def _deltas(response: ModelResponse, reply: Reply) -> Iterator[JsonObject]:
    """Yield the choices of a turn's chunks, without their index."""
    message = reply.message
    first: JsonObject = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    if response.request.wants_logprobs:
        first["logprobs"] = _logprobs(response, reply)
    yield first
    for name, text in (("reasoning_content", message.reasoning), ("content", message.content)):
        for piece in pieces(text):
            yield {"delta": {name: piece}, "finish_reason": None}
    for index in range(len(message.tool_calls)):
        call = _call(message, index)
        function = cast("dict[str, str]", call["function"])
        begun = {**call, "index": index, "function": {**function, "arguments": ""}}
        yield {"delta": {"tool_calls": [begun]}, "finish_reason": None}
        for piece in pieces(function["arguments"]):
            yield {"delta": {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, "finish_reason": None}
    last: JsonObject = {"delta": {}, "finish_reason": reply.finish}
    if response.request.wants_token_ids:
        last["token_ids"] = list(reply.completion.token_ids)
    yield last


def _call(message: Message, index: int) -> JsonObject:
    call = message.tool_calls[index]
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments_text(call)},
    }


def _logprobs(response: ModelResponse, reply: Reply) -> JsonObject:
    return {"content": token_logprobs(reply, response.renderer), "refusal": None}


def _usage(response: ModelResponse) -> JsonObject:
    return {
        "prompt_tokens": response.num_prompt_tokens,
        "completion_tokens": response.num_sampled_tokens,
        "total_tokens": response.num_prompt_tokens + response.num_sampled_tokens,
        "prompt_tokens_details": {"cached_tokens": response.num_cached_tokens},
    }
