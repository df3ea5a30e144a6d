"""LangChain sees a chat model; every token of its turns is recorded as the engine sampled it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool as langchain_tool
from pydantic import BaseModel

from agentenv import make_bare
from agentenv.agent.chat_model import EpisodeChatModel
from agentenv.agent.episode_tool import EpisodeTool
from agentenv.agent.graph_session import GraphSession
from agentenv.agent.langchain_messages import from_langchain, to_langchain
from agentenv.agent.session import Session
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import ScriptedEngine
from agentenv.env import tool_turn
from agentenv.episode import Episode, EpisodeSpec, Limits, Sampling
from agentenv.errors import EpisodeEnded, UsageError
from agentenv.messages import Message, ToolCall
from agentenv.renderer import Renderer

ROOT = Path(__file__).resolve().parent.parent.parent
RENDERER = Renderer(byte_tokenizer(), family="qwen3")
HELLO = HumanMessage("Hello.")
WIDE = Limits(max_turn_tokens=512, max_episode_tokens=10**6, max_context_tokens=10**6)


def said(text):
    return RENDERER.turn_ids(Message(role="assistant", content=text))


def written(text):
    return tuple(RENDERER.tokenizer.encode(text + "<|im_end|>"))


def called(*numbers):
    calls = tuple(ToolCall(call_id="?", name="guess", arguments={"number": n}) for n in numbers)
    return RENDERER.turn_ids(Message(role="assistant", content="", tool_calls=calls))


NAMED_BUT_MALFORMED = written('<tool_call>\n{"name": "guess", "arguments": [1]}\n</tool_call>')
UNKNOWN = written('<tool_call>\n{"name": "shout", "arguments": {"n": 1}}\n</tool_call>')
NAMELESS = written('<tool_call>\n{"arguments": {}}\n</tool_call>')


async def model_of(script, *, limits=WIDE, **options):
    engine = ScriptedEngine(script, keep_exchanges=True, **options)
    env = make_bare("agentenv/GuessNumber-v0", max_guesses=8)
    episode = Episode(
        EpisodeSpec(env_id="agentenv/GuessNumber-v0"),
        env=env,
        engine=engine,
        renderer=RENDERER,
        limits=limits,
        sampling=Sampling(temperature=0.7),
    )
    await episode.reset()
    return EpisodeChatModel(GraphSession(Session(episode))), engine


def episode_of(model):
    return model._graph_session.session.episode


def with_tools(model) -> Any:
    session = model._graph_session
    return model.bind_tools([EpisodeTool(spec, graph_session=session) for spec in session.session.episode.tools])


def recorded(model):
    return [sequence.token_ids.tolist() for sequence in episode_of(model).recorder.sequences()]


def seen(engine):
    return [[*e.request.prompt_ids, *e.completion.token_ids] for e in engine.exchanges]


async def test_an_answer_says_how_many_tokens_it_took_and_which_weights_wrote_it():
    model, engine = await model_of([said("Hi.")])

    answer = await model.ainvoke([HELLO])

    prompt, turn = len(engine.exchanges[0].request.prompt_ids), len(said("Hi."))
    assert answer.content == "Hi."
    assert answer.usage_metadata == {
        "input_tokens": prompt,
        "output_tokens": turn,
        "total_tokens": prompt + turn,
        "input_token_details": {"cache_read": 0},
    }
    assert answer.response_metadata["finish_reason"] == "stop"
    assert (answer.response_metadata["turn"], answer.response_metadata["weight_version"]) == (0, 0)
    assert "logprobs" not in answer.response_metadata


async def test_log_probs_come_on_request_one_for_every_sampled_id():
    model, _ = await model_of([said("Hi.")], logprob=-0.25)

    answer = await model.bind(logprobs=True).ainvoke([HELLO])

    content = answer.response_metadata["logprobs"]["content"]
    assert [part["token_id"] for part in content] == list(said("Hi."))
    assert [part["token"] for part in content] == ["H", "i", ".", "<|im_end|>"]
    assert {part["logprob"] for part in content} == {-0.25}


@pytest.mark.parametrize("turn", [called(1), called(1, 2), NAMED_BUT_MALFORMED, UNKNOWN, NAMELESS])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["invoked", "streamed"])
async def test_a_history_that_is_sent_back_extends_the_ids_that_were_sampled(turn, is_streamed):
    odd = written(' <tool_call>{"arguments":{"number" : 3},  "name":"guess"}</tool_call>')  # no template writes it so
    model, engine = await model_of([odd, turn, said("done")])
    speaker = with_tools(model)

    messages = [SystemMessage("Be brief."), HELLO]
    for _ in range(3):
        answer = await whole(speaker, messages) if is_streamed else await speaker.ainvoke(messages)
        calls = [*answer.tool_calls, *answer.invalid_tool_calls] or [{"id": "call_1_0"}]  # nobody saw the nameless one
        messages += [answer, *(ToolMessage("higher", tool_call_id=call["id"]) for call in calls)]

    (sequence,) = recorded(model)
    assert sequence == seen(engine)[-1]
    turns = episode_of(model).recorder.turns()
    assert [tuple(sequence[t.start : t.end]) for t in turns] == [odd, turn, said("done")]


async def whole(model, messages):
    """Add streamed chunks up, as a graph's own code would."""
    chunks = [chunk async for chunk in model.astream(messages)]
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    return total


@pytest.mark.parametrize("turn", [said("Hi."), called(1), called(1, 2), NAMED_BUT_MALFORMED, UNKNOWN, NAMELESS, ()])
async def test_streamed_chunks_add_up_to_the_message_that_invoke_gives(turn):
    model, _ = await model_of([turn])
    other, _ = await model_of([turn])

    streamed, invoked = await whole(with_tools(model), [HELLO]), await with_tools(other).ainvoke([HELLO])

    assert (streamed.content, streamed.tool_calls) == (invoked.content, invoked.tool_calls)
    assert _without_error(streamed.invalid_tool_calls) == _without_error(invoked.invalid_tool_calls)
    assert streamed.usage_metadata == invoked.usage_metadata
    assert streamed.response_metadata == invoked.response_metadata
    assert streamed.id == invoked.id


def _without_error(calls):
    return [{**call, "error": None} for call in calls]


async def test_calls_are_streamed_one_by_one_after_the_text():
    text = written('So:<tool_call>\n{"name": "guess", "arguments": {"number": 3}}\n</tool_call>')
    model, engine = await model_of([text])

    chunks: list[Any] = [chunk async for chunk in with_tools(model).astream([HELLO])]

    assert [chunk.content for chunk in chunks] == ["So:", "", ""]
    (part,) = chunks[1].tool_call_chunks
    assert (part["name"], part["args"], part["id"]) == ("guess", '{"number": 3}', "call_0_0")
    assert chunks[-1].chunk_position == "last"
    assert len(engine.exchanges) == 1


@pytest.mark.parametrize(
    ("turn", "name", "error"),
    [(NAMED_BUT_MALFORMED, "guess", "malformed_structure"), (UNKNOWN, "shout", "unknown_tool")],
)
async def test_an_attempt_that_nobody_can_run_is_an_invalid_call_with_its_reason(turn, name, error):
    model, _ = await model_of([turn])

    answer = await with_tools(model).ainvoke([HELLO])

    (attempt,) = answer.invalid_tool_calls
    assert answer.tool_calls == []
    assert (attempt["name"], attempt["id"], attempt["error"]) == (name, "call_0_0", error)
    assert name in attempt["args"]


async def test_tools_of_every_kind_are_offered_and_those_of_the_environment_keep_their_schema():
    class Note(BaseModel):
        """Write something down."""

        text: str

    @langchain_tool
    def look(n: int) -> str:
        """Look."""
        return str(n)

    def wait(seconds: int) -> None:
        """Wait a while."""

    model, engine = await model_of([said("Hi.")])
    (spec,) = episode_of(model).tools
    own = EpisodeTool(spec, graph_session=model._graph_session)
    schema = {"type": "function", "function": {"name": "plain", "parameters": {"type": "object", "properties": {}}}}

    bound: Any = model.bind_tools([own, Note, look, wait, schema], tool_choice="auto")

    assert [tool["function"]["name"] for tool in bound.kwargs["tools"]] == ["guess", "Note", "look", "wait", "plain"]
    assert bound.kwargs["tools"][0] is spec
    await bound.ainvoke([HELLO])
    prompt = RENDERER.decode(engine.exchanges[0].request.prompt_ids)
    assert all(f'"name": "{name}"' in prompt for name in ("guess", "Note", "look", "wait", "plain"))


async def test_a_model_without_tools_offers_none():
    model, engine = await model_of([said("Hi.")])

    await model.ainvoke([HELLO])

    assert engine.exchanges[0].request.prompt_ids == RENDERER.prompt_ids([Message(role="user", content="Hello.")])


@pytest.mark.parametrize("choice", ["any", "required", "guess", "none", True])
async def test_a_tool_choice_that_forces_the_policy_is_refused(choice):
    model, engine = await model_of([said("Hi.")])

    with pytest.raises(UsageError, match="only 'auto' is possible"):
        model.bind_tools([], tool_choice=choice)
    with pytest.raises(UsageError, match="only 'auto' is possible"):
        await model.bind(tool_choice=choice).ainvoke([HELLO])
    assert engine.exchanges == []


async def test_structured_output_that_forces_a_call_is_refused():
    class Answer(BaseModel):
        """Answer."""

        number: int

    model, _ = await model_of([said("Hi.")])

    with pytest.raises(UsageError, match="only 'auto' is possible"):
        model.with_structured_output(Answer)


async def test_how_tokens_are_drawn_is_the_runs_business():
    model, engine = await model_of([said("A long answer.")])

    await model.bind(temperature=0.0, top_p=0.1, seed=5).ainvoke([HELLO])
    cut = await model.bind(max_tokens=4).ainvoke([HELLO])

    assert engine.exchanges[0].request.sampling.temperature == 0.7
    assert engine.exchanges[0].request.sampling.top_p == 1.0
    assert cut.response_metadata["finish_reason"] == "length"
    assert cut.usage_metadata is not None
    assert cut.usage_metadata["output_tokens"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_token": 4}, "no option 'max_token'. Did you mean \"max_tokens\""),
        ({"response_format": {"type": "json_object"}}, "no option 'response_format'"),
    ],
)
async def test_options_that_would_change_the_policy_are_refused(options, message):
    model, engine = await model_of([said("Hi.")])

    with pytest.raises(UsageError) as found:
        await model.bind(**options).ainvoke([HELLO])

    assert message in str(found.value)
    assert engine.exchanges == []


async def test_stop_words_cut_the_text_and_neither_the_ids_nor_the_history():
    model, engine = await model_of([said("One\nObservation: two"), said("Three.")])

    first = await model.ainvoke([HELLO], stop=["\nObservation:"])
    await model.ainvoke([HELLO, first, HumanMessage("Go on.")])

    assert first.content == "One"
    first_exchange, second_exchange = engine.exchanges
    sampled = [*first_exchange.request.prompt_ids, *first_exchange.completion.token_ids]
    assert list(second_exchange.request.prompt_ids[: len(sampled)]) == sampled


async def test_threads_may_call_the_model_without_await():
    model, engine = await model_of([said("Hi.")], latency_s=0.01)

    invoked, streamed = await asyncio.gather(
        asyncio.to_thread(model.invoke, [HELLO]), asyncio.to_thread(lambda: list(model.stream([HELLO])))
    )

    assert invoked.content == "Hi."
    assert [chunk.content for chunk in streamed] == ["Hi.", ""]
    assert sorted(recorded(model)) == sorted(seen(engine))


async def test_another_event_loop_may_await_the_model():
    model, engine = await model_of([said("Hi.")], latency_s=0.01)

    answer = await asyncio.to_thread(lambda: asyncio.run(model.ainvoke([HELLO])))

    assert answer.content == "Hi."
    assert len(engine.exchanges) == 1


async def test_a_call_that_would_block_the_event_loop_is_refused():
    model, engine = await model_of([said("Hi.")])

    with pytest.raises(UsageError, match="await ainvoke or astream"):
        model.invoke([HELLO])
    with pytest.raises(UsageError, match="await ainvoke or astream"):
        list(model.stream([HELLO]))
    assert engine.exchanges == []


async def test_a_thread_that_waits_is_let_go_when_the_episode_is_over():
    model, _ = await model_of([said("Hi.")], latency_s=30)
    waiting = asyncio.create_task(asyncio.to_thread(model.invoke, [HELLO]))
    await asyncio.sleep(0.1)

    await model._graph_session.close()

    with pytest.raises(EpisodeEnded):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(EpisodeEnded):
        await asyncio.to_thread(model.invoke, [HELLO])


async def test_a_cache_never_answers_for_the_policy():
    set_llm_cache(InMemoryCache())
    try:
        model, engine = await model_of([said("one"), said("two")])
        answers = [(await model.ainvoke([HELLO])).content for _ in range(2)]
    finally:
        set_llm_cache(None)

    assert answers == ["one", "two"]
    assert len(engine.exchanges) == 2


@pytest.mark.parametrize(
    "message",
    [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hello."),
        Message(role="tool", content="42", tool_call_id="call_0_0", name="look"),
        Message(role="assistant", content="Hi.", reasoning="greet"),
        Message(
            role="assistant",
            content="",
            tool_calls=(ToolCall(call_id="call_0_0", name="look", arguments={"n": [1, {"m": None}]}),),
        ),
    ],
    ids=lambda message: message.role,
)
def test_a_message_is_the_same_after_a_visit_to_langchain(message):
    assert from_langchain(to_langchain(message)) == message


def test_text_parts_of_a_message_are_one_text():
    parts = [{"type": "text", "text": "Hel"}, "lo."]

    assert from_langchain(HumanMessage(parts)).content == "Hello."
    assert from_langchain(AIMessage([*parts, {"type": "reasoning", "reasoning": "?"}])).content == "Hello."


def test_a_message_that_no_model_can_be_given_is_refused():
    with pytest.raises(UsageError, match="RemoveMessage; allowed are human"):
        from_langchain(RemoveMessage(id="1"))


def test_the_core_does_not_import_langchain_and_says_how_to_install_it():
    program = (
        "import sys, agentenv, agentenv.runner, agentenv.agent.langgraph\n"
        "from agentenv.errors import UsageError\n"
        "assert not [name for name in sys.modules if name.startswith(('langchain', 'langgraph'))]\n"
        "sys.modules['langgraph.graph'] = sys.modules['langchain_core'] = None\n"
        "for load in (agentenv.agent.langgraph.LangGraphAgent, lambda: __import__('agentenv.agent.chat_model')):\n"
        "    try:\n"
        "        load()\n"
        "    except UsageError as error:\n"
        "        print(error)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=60)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count('pip install "agentenv[langgraph]"') == 2


async def test_the_turn_of_a_tool_call_is_found_by_name_and_arguments_as_the_model_wrote_them():
    model, _ = await model_of([RENDERER.turn_ids(tool_turn("guess", {"number": 5}))])

    answer = await with_tools(model).ainvoke([HELLO])

    assert answer.tool_calls == [{"name": "guess", "args": {"number": 5}, "id": "call_0_0", "type": "tool_call"}]
    assert answer.response_metadata["finish_reason"] == "tool_calls"
