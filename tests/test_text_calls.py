"""Tool calls written as text."""

from hypothesis import given
from hypothesis import strategies as st

from agentenv.messages import CALL_STATUSES, Message
from agentenv.text_calls import CLOSE, OPEN, parse_turn


def status(text):
    (call,) = parse_turn(text).tool_calls
    return call.status


def test_text_without_a_call_is_content():
    assert parse_turn("just words") == Message(role="assistant", content="just words")


def test_a_call_carries_name_arguments_and_an_id():
    turn = parse_turn('I look. <tool_call>{"name": "find", "arguments": {"q": "ü"}}</tool_call>')

    (call,) = turn.tool_calls
    assert turn.content == "I look."
    assert (call.call_id, call.name, call.arguments, call.status) == ("call_0", "find", {"q": "ü"}, "ok")


def test_calls_keep_their_order_and_get_ids_under_the_prefix():
    turn = parse_turn('<tool_call>{"name": "a"}</tool_call>\n<tool_call>{"name": "b"}</tool_call>', id_prefix="call_7")
    assert [(call.call_id, call.name) for call in turn.tool_calls] == [("call_7_0", "a"), ("call_7_1", "b")]


def test_arguments_may_be_a_json_text():
    (call,) = parse_turn('<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>').tool_calls
    assert call.arguments == {"x": 1}


def test_malformed_attempts_are_kept_with_the_reason():
    assert status('<tool_call>{"name": "a"}') == "unclosed_block"
    assert status("<tool_call>{nonsense}</tool_call>") == "invalid_json"
    assert status("<tool_call>[1]</tool_call>") == "malformed_structure"
    assert status('<tool_call>{"arguments": {}}</tool_call>') == "missing_name"
    assert status('<tool_call>{"name": 3}</tool_call>') == "missing_name"
    assert status('<tool_call>{"name": "a", "arguments": 3}</tool_call>') == "malformed_structure"
    assert status('<tool_call>{"name": "a", "arguments": "{"}</tool_call>') == "invalid_json"
    assert status("<tool_call>" + "[" * 100_000 + "</tool_call>") == "invalid_json"


def test_a_malformed_attempt_keeps_its_raw_text():
    (call,) = parse_turn("<tool_call>{oops}</tool_call>").tool_calls
    assert call.raw == "{oops}"


_PIECES = st.lists(
    st.sampled_from([OPEN, CLOSE, '{"name": "a"}', '{"name": ', "{", "}", "[", '"', "\\ud800", "\ud800", " ", "x"]),
    max_size=30,
).map("".join)


@given(st.one_of(st.text(), _PIECES))
def test_any_text_parses_into_known_statuses_and_one_call_per_opening(text):
    turn = parse_turn(text)

    assert all(call.status in CALL_STATUSES for call in turn.tool_calls)
    assert len(turn.tool_calls) <= text.count(OPEN)
    assert bool(turn.tool_calls) == (OPEN in text)
    assert turn.tool_calls or turn.content == text
