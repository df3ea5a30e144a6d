"""What is left out of a full context: decisions over entries, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentenv.context import (
    DROPPED,
    SUMMARY_TITLE,
    ContextConfig,
    Entry,
    can_summarise,
    drop_outputs,
    opening_entries,
    shown_messages,
    summarised,
    with_request,
)
from agentenv.episode import Limits
from agentenv.messages import Message

LONG = "x" * 500


def user(text):
    return Message(role="user", content=text)


def turn(text):
    return Entry(message=Message(role="assistant", content=text), part="turn")


def output(text):
    return Entry(message=Message(role="tool", content=text), part="reply", stub=Message(role="tool", content=DROPPED))


def reply(text):
    return Entry(message=user(text), part="reply")


def conversation(*outputs):
    entries = opening_entries([Message(role="system", content="Be brief."), user("Go.")])
    for index, text in enumerate(outputs):
        entries += [turn(f"call {index}"), output(text)]
    return entries


def size(entries):
    return sum(len(message.content) for message in shown_messages(entries))


def texts(entries):
    return [message.content for message in shown_messages(entries)]


def test_the_context_is_full_from_the_threshold_on_and_never_where_it_stops():
    config = ContextConfig(when_full="summarise", threshold=0.8)
    assert [config.is_full(n, limit=100) for n in (79, 80, 200)] == [False, True, True]
    assert not ContextConfig().is_full(200, limit=100)


def test_the_oldest_outputs_are_dropped_as_few_as_suffice():
    entries = conversation(LONG, LONG, LONG, LONG)
    goal = size(entries) - 600

    shorter, count = drop_outputs(entries, fits=lambda some: size(some) <= goal)

    assert count == 2
    assert texts(shorter) == ["Be brief.", "Go.", "call 0", DROPPED, "call 1", DROPPED, "call 2", LONG, "call 3", LONG]


def test_what_the_policy_has_not_read_yet_is_never_dropped():
    shorter, count = drop_outputs(conversation(LONG, LONG), fits=lambda some: False)
    assert count == 1
    assert texts(shorter)[-1] == LONG


def test_replies_short_outputs_and_dropped_ones_stay():
    entries = [*conversation("ok", LONG), turn("t"), reply(LONG), turn("t")]
    shorter, count = drop_outputs(entries, fits=lambda some: False)
    assert count == 1
    assert texts(shorter) == ["Be brief.", "Go.", "call 0", "ok", "call 1", DROPPED, "t", LONG, "t"]
    assert drop_outputs(shorter, fits=lambda some: False) == (shorter, 0)


def test_nothing_is_dropped_before_the_first_turn():
    assert drop_outputs(conversation(), fits=lambda some: False) == (conversation(), 0)


@given(st.lists(st.integers(0, 300), max_size=12), st.integers(0, 4000))
def test_one_output_less_would_not_have_sufficed(lengths, goal):
    entries = conversation(*("x" * length for length in lengths))
    shorter, count = drop_outputs(entries, fits=lambda some: size(some) <= goal)
    dropped = [i for i, entry in enumerate(entries) if entry is not shorter[i]]
    assert len(dropped) == count
    assert len(shorter) == len(entries)
    if count > 1:
        last = dropped[-1]
        assert size([*shorter[:last], entries[last], *shorter[last + 1 :]]) > goal
    droppable = [
        i for i, e in enumerate(entries[:-1]) if e.stub is not None and len(e.message.content) >= 2 * len(DROPPED)
    ]
    assert dropped == droppable[:count]
    assert size(shorter) <= goal or dropped == droppable


def test_a_summary_stands_in_the_task_and_the_last_turns_stay_word_for_word():
    entries = conversation("a", "b", "c")
    assert texts(summarised(entries, "S", keep_turns=1)) == ["Be brief.", f"Go.\n\n{SUMMARY_TITLE}S", "call 2", "c"]
    assert texts(summarised(entries, "S", keep_turns=0)) == ["Be brief.", f"Go.\n\n{SUMMARY_TITLE}S"]
    assert texts(summarised(entries, "S", keep_turns=3))[2:] == ["call 0", "a", "call 1", "b", "call 2", "c"]


def test_a_second_summary_replaces_the_first():
    once = [*summarised(conversation("a", "b"), "S", keep_turns=1), turn("call 2"), output("c")]
    assert texts(summarised(once, "T", keep_turns=1)) == ["Be brief.", f"Go.\n\n{SUMMARY_TITLE}T", "call 2", "c"]


def test_after_an_opening_that_is_not_the_users_a_summary_is_a_message_of_its_own():
    entries = [*opening_entries([Message(role="system", content="Be brief.")]), turn("t"), reply("r")]
    shown = shown_messages(summarised(entries, "S", keep_turns=0))
    assert [m.role for m in shown] == ["system", "user"]


def test_there_is_nothing_to_summarise_where_every_turn_stays():
    assert [can_summarise(conversation(*"ab"), keep_turns=n) for n in (0, 1, 2, 3)] == [True, True, False, False]
    assert not can_summarise(conversation(), keep_turns=0)


def test_a_request_joins_the_users_message_so_that_roles_alternate():
    assert with_request([user("r")], "Sum up.") == (user("r\n\nSum up."),)
    tool = Message(role="tool", content="r")
    assert with_request([tool], "Sum up.") == (tool, user("Sum up."))
    assert with_request([], "Sum up.") == (user("Sum up."),)


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": 0.5, "target": 0.5},
        {"threshold": 0.0},
        {"threshold": 1.1},
        {"target": 0.0},
        {"max_summary_tokens": 0},
        {"when_full": "forget"},
    ],
)
def test_values_that_make_no_sense_are_refused(values):
    with pytest.raises(ValidationError):
        ContextConfig(**values)


def test_a_summary_must_fit_above_the_threshold():
    context = ContextConfig(when_full="summarise", threshold=0.75, max_summary_tokens=250)
    assert Limits(max_context_tokens=1000, context=context).context is context
    with pytest.raises(ValidationError, match=r"there are 249 tokens; context.max_summary_tokens is 250"):
        Limits(max_context_tokens=998, context=context)
