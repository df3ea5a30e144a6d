"""The three translations take any JSON: it is refused with words or understood; and what they say they can read."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv.agent.chat_api import ChatApi
from agentenv.agent.messages_api import MessagesApi
from agentenv.agent.model_request import RequestError
from agentenv.agent.model_response import ModelResponse, is_shown_as, pieces
from agentenv.agent.responses_api import ResponsesApi
from agentenv.agent.session import Reply
from agentenv.engine.protocol import Completion
from agentenv.messages import Message, ToolCall
from agentenv.trajectory import VersionSpan
from tests.agent.gateways import LOOK, RENDERER

APIS: Any = {"chat": ChatApi(), "responses": ResponsesApi(), "messages": MessagesApi()}

SOME_WORDS = """role content type text user assistant tool system function function_call function_call_output tool_use
tool_result message reasoning thinking image image_url input_text output_text source url id call_id tool_use_id name
arguments input output auto none parameters input_schema description call_0_0 {} look"""
SOME_FIELDS = """messages input model tools tool_choice max_tokens max_output_tokens n stop stop_sequences stream system
stream_options instructions previous_response_id response_format text logprobs include store thinking modalities"""

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
WORDS = st.sampled_from(SOME_WORDS.split())
JSON = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)
BODIES = st.dictionaries(st.sampled_from(SOME_FIELDS.split()), JSON, max_size=4)
ITEMS = st.lists(st.dictionaries(WORDS, JSON, max_size=5), max_size=3)
VALID: Any = {
    "chat": {"messages": [{"role": "user", "content": "x"}]},
    "responses": {"input": "x"},
    "messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
}


@pytest.mark.parametrize("name", APIS)
@settings(max_examples=100, deadline=None)
@given(body=BODIES, items=ITEMS)
def test_any_object_is_refused_in_words_or_understood(name, body, items):
    for candidate in (body, {**VALID[name], **body}, {**VALID[name], "messages": items, "input": items}):
        try:
            request = APIS[name].read(candidate)
        except RequestError as refusal:
            is_good = refusal.status == 400 and str(refusal) and json.dumps(APIS[name].fault(refusal))
        else:
            is_good = request.messages and all(isinstance(message, Message) for message in request.messages)
        assert is_good


@pytest.mark.parametrize("name", APIS)
def test_the_smallest_body_is_understood(name):
    request = APIS[name].read(VALID[name])
    assert request.messages == (Message(role="user", content="x"),)
    assert request.tools == ()


def calls(index, name, arguments, written):
    """Return a call, or an attempt whose arguments are no object, as renderers give them."""
    if written is None:
        return ToolCall(call_id=f"call_0_{index}", name=name, arguments=arguments)
    raw = json.dumps({"name": name, "arguments": written})
    return ToolCall(call_id=f"call_0_{index}", name=name, arguments={}, status="malformed_structure", raw=raw)


ARGUMENTS = st.dictionaries(st.text(max_size=5), JSON, max_size=3)
CALLS = st.lists(
    st.tuples(st.sampled_from(["look", "see"]), ARGUMENTS, st.none() | st.lists(st.integers(), min_size=1, max_size=2)),
    max_size=3,
)


def reply_of(message):
    ids = RENDERER.turn_ids(Message(role="assistant", content="x"))
    completion = Completion(
        token_ids=ids,
        logprobs=[-0.5] * len(ids),
        finish_reason="stop",
        weight_versions=(VersionSpan(version=0, start=0, end=len(ids)),),
    )
    return Reply(
        message=message,
        parsed=message,
        completion=completion,
        prompt_ids=(1, 2),
        turn=0,
        finish="tool_calls" if message.tool_calls else "stop",
        has_tools=True,
    )


def sent_back(name, answer):
    """Return what clients send back of an answer, with what follows it."""
    answer = json.loads(json.dumps(answer))
    if name == "chat":
        return {
            "messages": [*VALID[name]["messages"], answer["choices"][0]["message"], {"role": "user", "content": "y"}]
        }
    if name == "messages":
        back = {"role": "assistant", "content": answer["content"]}
        return {**VALID[name], "messages": [*VALID[name]["messages"], back, {"role": "user", "content": "y"}]}
    return {"input": [{"role": "user", "content": "x"}, *answer["output"], {"role": "user", "content": "y"}]}


@pytest.mark.parametrize("name", APIS)
@settings(max_examples=100, deadline=None)
@given(content=st.text(max_size=40), made=CALLS)
def test_what_a_client_sends_back_is_read_as_the_turn_that_it_got(name, content, made):
    turn = Message(role="assistant", content=content, tool_calls=tuple(calls(i, *call) for i, call in enumerate(made)))
    request = APIS[name].read({**VALID[name], "tools": []})
    response = ModelResponse(
        response_id="1", request=request, replies=(reply_of(turn),), renderer=RENDERER, created_s=0.0
    )

    first, back, last = APIS[name].read(sent_back(name, APIS[name].answer(response))).messages

    assert (first.content, last.content) == ("x", "y")
    assert back.content == turn.content
    assert len(back.tool_calls) == len(turn.tool_calls)
    for got, known in zip(back.tool_calls, turn.tool_calls, strict=True):
        assert got.call_id == known.call_id
        if known.status == "ok":
            assert (got.name, got.arguments, got.status) == (known.name, known.arguments, "ok")
        else:
            assert is_shown_as(known, given=got)


def test_another_call_is_not_taken_for_the_attempt_that_was_shown():
    attempt = calls(0, "look", {}, [1])
    repaired = ToolCall(call_id="call_0_0", name="look", arguments={"n": 1})
    assert not is_shown_as(attempt, given=repaired)
    assert not is_shown_as(attempt, given=calls(0, "see", {}, [1]))


@pytest.mark.parametrize("name", APIS)
@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=500))
def test_every_event_of_a_stream_is_json_on_one_line(name, text):
    turn = Message(role="assistant", content=text, tool_calls=(calls(0, "look", {"n": text}, None),))
    request = APIS[name].read(VALID[name])
    response = ModelResponse(
        response_id="1", request=request, replies=(reply_of(turn),), renderer=RENDERER, created_s=0.0
    )

    for event in APIS[name].events(response):
        assert event.endswith("\n\n")
        lines = event.removesuffix("\n\n").split("\n")
        assert [line.split(": ")[0] for line in lines] in (["data"], ["event", "data"])
        data = lines[-1].removeprefix("data: ")
        assert data == "[DONE]" or isinstance(json.loads(data), dict)


@given(text=st.text(max_size=3000))
def test_pieces_are_the_text_and_few(text):
    parts = list(pieces(text))
    assert "".join(parts) == text
    assert len(parts) <= 16
    assert all(parts)


def test_tools_of_all_three_apis_are_the_same_schemas():
    function = {"type": "function", "function": LOOK}
    flat = {"type": "function", "strict": True, **LOOK}
    block = {"name": "look", "description": "Look.", "input_schema": LOOK["parameters"]}
    for name, tool in (("chat", function), ("responses", flat), ("messages", block)):
        assert APIS[name].read({**VALID[name], "tools": [tool]}).tools == (function,)


@pytest.mark.parametrize(("name", "none"), [("chat", "none"), ("responses", "none"), ("messages", {"type": "none"})])
def test_no_tool_is_offered_where_none_may_be_called(name, none):
    tool = {"chat": {"type": "function", "function": LOOK}, "responses": {"type": "function", **LOOK}}.get(
        name, {"name": "look", "input_schema": {}}
    )
    assert APIS[name].read({**VALID[name], "tools": [tool], "tool_choice": none}).tools == ()
