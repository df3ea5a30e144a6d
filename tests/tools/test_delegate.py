"""Questions to another agent, played through a scripted engine."""

import json

import pytest

from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.episode import Limits
from agentenv.errors import EpisodeError, UsageError
from agentenv.renderer import Renderer
from agentenv.tools.delegate import Delegate, engine_helper
from agentenv.tools.notes import Notes
from tests.tools.desks import box, told

RENDERER = Renderer(byte_tokenizer(), family="qwen3")


def ids(text):
    return [*RENDERER.tokenizer.encode(text), RENDERER.stop_ids[0]]


def helper(*turns, faults=None, **options):
    engine = ScriptedEngine([ids(turn) for turn in turns], faults=faults, keep_exchanges=True)
    return engine_helper(engine, RENDERER, **options), engine


def note(**arguments):
    return f"<tool_call>\n{json.dumps({'name': 'write_note', 'arguments': arguments})}\n</tool_call>"


async def test_the_answer_of_another_agent_comes_back_and_it_sees_only_the_question():
    ask, engine = helper("Because of the tides.")
    kit = Delegate(ask)
    assert await told(box(kit), "ask_agent", question="Why is the sea salty?") == "Because of the tides."
    assert kit.asked == [("Why is the sea salty?", "Because of the tides.")]
    assert "Why is the sea salty?" in RENDERER.decode(engine.exchanges[0].request.prompt_ids)


async def test_the_other_agent_has_tools_of_its_own():
    ask, engine = helper(note(name="a", text="salt"), "It is salt.", kits=[Notes])
    assert await told(box(Delegate(ask)), "ask_agent", question="Why?") == "It is salt."
    assert "There is 1 note" in RENDERER.decode(engine.exchanges[1].request.prompt_ids)


async def test_an_agent_that_uses_up_its_turns_gives_no_answer():
    ask, _ = helper(note(name="a", text="b"), kits=[Notes], max_turns=2)
    assert await told(box(Delegate(ask)), "ask_agent", question="Why?") == (
        "Error: the agent gave no answer (max_turns)"
    )


async def test_an_agent_that_uses_up_its_tokens_gives_no_answer():
    ask, _ = helper("long " * 100, limits=Limits(max_episode_tokens=50, max_turn_tokens=50))
    assert (await told(box(Delegate(ask)), "ask_agent", question="Why?")).startswith("Error: the agent gave no answer")


async def test_an_engine_that_fails_is_a_failure_of_the_tool():
    ask, _ = helper("x", faults=Faults(fail_every=1))
    with pytest.raises(EpisodeError, match="injected failure"):
        await told(box(Delegate(ask)), "ask_agent", question="Why?")


async def test_questions_are_bounded():
    ask, _ = helper("x")
    tools = box(Delegate(ask, max_questions=1))
    assert (await told(tools, "ask_agent", question="")).startswith("Error: a question has")
    await told(tools, "ask_agent", question="a")
    assert "no more are allowed" in await told(tools, "ask_agent", question="b")
    with pytest.raises(UsageError, match="max_questions is 0"):
        Delegate(ask, max_questions=0)
