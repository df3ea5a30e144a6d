"""An agent that keeps its own conversation gets turns whose ids are recorded as they were sampled."""

import asyncio
import json
from dataclasses import replace

import pytest

from agentenv import make_bare
from agentenv.agent.session import BudgetExhausted, Session
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.env import tool_turn
from agentenv.episode import Episode, EpisodeSpec, Limits, Sampling
from agentenv.errors import EpisodeError, UsageError
from agentenv.messages import Message, ToolCall
from agentenv.renderer import Renderer
from agentenv.tokenizer import wrap_tokenizer
from agentenv.trajectory import StopReason
from tests.conftest import full_tokenizer

RENDERER = Renderer(byte_tokenizer(), family="qwen3")
HELLO = Message(role="user", content="Hello.")
WIDE = Limits(max_turn_tokens=512, max_episode_tokens=10**6, max_context_tokens=10**6)


def said(text):
    return RENDERER.turn_ids(Message(role="assistant", content=text))


def called(number):
    return RENDERER.turn_ids(tool_turn("guess", {"number": number}))


async def session_of(script, *, limits=WIDE, **options):
    engine = ScriptedEngine(script, keep_exchanges=True, **options)
    env = make_bare("agentenv/GuessNumber-v0", max_guesses=8)
    episode = Episode(
        EpisodeSpec(env_id="agentenv/GuessNumber-v0"),
        env=env,
        engine=engine,
        renderer=RENDERER,
        limits=limits,
        sampling=Sampling(),
    )
    await episode.reset()
    return Session(episode), engine


def recorded(session):
    return [sequence.token_ids.tolist() for sequence in session.episode.recorder.sequences()]


def seen(engine):
    return [[*e.request.prompt_ids, *e.completion.token_ids] for e in engine.exchanges]


async def test_a_call_that_goes_on_from_a_turn_extends_its_sequence_with_the_ids_that_were_sampled():
    odd = (*said("A")[:-1], *said("B"))  # two runs of ids that one encoding of "AB" may not give
    session, engine = await session_of([odd, said("C")])

    first = await session.complete([HELLO])
    again = Message(role="assistant", content=first.message.content)
    await session.complete([HELLO, again, Message(role="user", content="And?")])

    (sequence,) = recorded(session)
    assert sequence == seen(engine)[1]
    assert sequence[: len(seen(engine)[0])] == seen(engine)[0]
    turns = session.episode.recorder.turns()
    assert [tuple(sequence[t.start : t.end]) for t in turns] == [odd, said("C")]


async def test_two_calls_from_one_point_become_a_sequence_each_and_share_their_beginning():
    session, engine = await session_of([said("root"), said("left"), said("right")])
    root = (await session.complete([HELLO])).message

    await session.complete([HELLO, root, Message(role="user", content="left?")])
    await session.complete([HELLO, root, Message(role="user", content="right?")])

    assert recorded(session) == seen(engine)[1:]
    second = session.episode.recorder.sequences()[1]
    # what the first sequence trains is context in the second
    assert second.is_sampled.sum() == len(said("right"))
    assert session.episode.recorder.num_breaks == 1


async def test_calls_that_overlap_do_not_mix():
    session, engine = await session_of(lambda request: said(f"turn {request.index}"), latency_s=0.01)

    replies = await asyncio.gather(*(session.complete([HELLO]) for _ in range(8)))

    assert sorted(recorded(session)) == sorted(seen(engine))
    assert len({reply.turn for reply in replies}) == 8
    assert {reply.message.content for reply in replies} == {f"turn {i}" for i in range(8)}


async def test_a_history_that_was_rewritten_is_rendered_whole():
    session, engine = await session_of([said("one"), said("two")])
    await session.complete([HELLO])

    edited = [HELLO, Message(role="assistant", content="edited"), Message(role="user", content="And?")]
    await session.complete(edited)

    assert tuple(seen(engine)[1][: -len(said("two"))]) == RENDERER.prompt_ids(edited, tools=session.episode.tools)
    assert len(recorded(session)) == 2


async def test_other_tools_begin_a_new_sequence():
    session, _ = await session_of([said("one"), said("two")])
    first = (await session.complete([HELLO])).message

    await session.complete([HELLO, first, Message(role="user", content="And?")], tools=())

    assert len(recorded(session)) == 2


async def test_arguments_in_another_order_and_spacing_are_the_same_history():
    session, _ = await session_of([called(3), said("done")])
    turn = (await session.complete([HELLO])).message
    (call,) = turn.tool_calls
    back = replace(turn, tool_calls=(ToolCall(call_id=call.call_id, name="guess", arguments={"number": 3}),))

    result = Message(role="tool", content="higher", tool_call_id=call.call_id)
    await session.complete([HELLO, back, result])

    assert len(recorded(session)) == 1


async def test_an_attempt_without_a_name_is_shown_as_text_and_counted():
    broken = RENDERER.tokenizer.encode('<tool_call>\n{"arguments": {}}\n</tool_call><|im_end|>')
    session, _ = await session_of([broken])

    reply = await session.complete([HELLO])

    assert reply.message.tool_calls == ()
    assert '{"arguments": {}}' in reply.message.content
    assert session.episode.recorder.turns()[0].num_malformed_calls == 1


async def test_a_call_of_an_agent_that_offers_no_tools_is_text_and_part_of_the_history():
    session, engine = await session_of([called(3), said("done")])

    reply = await session.complete([HELLO], tools=())
    await session.complete([HELLO, reply.message, Message(role="user", content="And?")], tools=())

    assert (reply.message.tool_calls, reply.finish, reply.has_tools) == ((), "stop", False)
    assert json.loads(reply.message.content) == {"name": "guess", "arguments": {"number": 3}}
    assert recorded(session) == [seen(engine)[1]]


async def test_the_first_stop_string_cuts_the_text_and_the_calls_and_leaves_the_ids():
    turn = RENDERER.turn_ids(tool_turn("guess", {"number": 3}, content="one. two. three."))
    session, engine = await session_of([turn, said("done")])

    reply = await session.complete([HELLO], stop=[" three", " two", "four"])
    await session.complete([HELLO, reply.message, Message(role="user", content="And?")])

    assert (reply.message.content, reply.message.tool_calls, reply.stopped_by) == ("one.", (), " two")
    assert reply.finish == "stop"
    assert tuple(reply.completion.token_ids) == turn
    assert recorded(session) == [seen(engine)[1]]


async def test_a_conversation_that_the_template_refuses_is_the_callers_mistake():
    session, _ = await session_of([said("one")])
    session.episode.renderer = Renderer(
        wrap_tokenizer(full_tokenizer("{{ raise_exception('no system message, please') }}")), family="template"
    )

    with pytest.raises(UsageError, match="no system message, please"):
        await session.complete([HELLO])
    assert session.episode.recorder.num_turns == 0


async def test_the_environment_plays_the_calls_of_a_turn_and_rewards_that_turn():
    session, _ = await session_of([called(1), said("stop")])
    reply = await session.complete([HELLO])

    (result,) = await session.act(reply.parsed, reply=reply)

    assert result.role == "tool"
    assert session.episode.recorder.turns()[0].num_tool_calls == 1


async def test_a_failed_call_leaves_its_point_free_for_the_next_try():
    session, engine = await session_of([said("one"), said("two")], faults=Faults(fail_every=2))
    first = (await session.complete([HELLO])).message
    history = [HELLO, first, Message(role="user", content="And?")]

    with pytest.raises(EpisodeError, match="engine"):
        await session.complete(history)
    await session.complete(history)

    assert len(recorded(session)) == 1
    assert recorded(session)[0] == seen(engine)[-1]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_context_tokens": 8}, StopReason.CONTEXT_OVERFLOW),
        ({"max_episode_tokens": 0}, StopReason.MAX_TOKENS),
    ],
)
async def test_a_budget_that_is_used_up_refuses_the_call_and_says_which(limits, reason):
    session, engine = await session_of([said("one")], limits=WIDE.model_copy(update=limits))

    with pytest.raises(BudgetExhausted) as found:
        await session.complete([HELLO])

    assert found.value.reason is reason
    assert engine.exchanges == []


async def test_the_bound_of_a_call_cuts_the_turn():
    session, _ = await session_of([said("a long answer")])

    reply = await session.complete([HELLO], max_tokens=4)

    assert (reply.finish, len(reply.completion.token_ids)) == ("length", 4)


async def test_an_empty_conversation_and_a_bound_below_one_are_the_callers_mistake():
    session, _ = await session_of([said("one")])

    with pytest.raises(UsageError, match="no message"):
        await session.complete([])
    with pytest.raises(UsageError, match="at least 1"):
        await session.complete([HELLO], max_tokens=0)
