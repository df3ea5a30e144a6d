"""The ReAct format: any text is a turn, and what is recorded is what was sampled."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv import Message, StopReason, ToolCall, ToolEnv, tool
from agentenv.agent.policy import PolicyAgent
from agentenv.agent.react import ReActAgent, ReActDialect, parse_react, write_react
from agentenv.engine.scripted import ScriptedEngine
from agentenv.episode import EpisodeSpec
from agentenv.messages import CALL_STATUSES
from agentenv.runner import Runner, RunnerConfig

SPEC = EpisodeSpec(env_id="test/Echo-v0")
LABELS = ("Thought:", "Action:", "Action Input:", "Observation:", "Final Answer:", "**Action:**", "```json", "```")


class Echo(ToolEnv):
    """Repeats what it is told."""

    inline = True

    def setup(self, rng, task):
        self.answered = ""
        return "Say something, twice."

    @tool
    def echo(self, text: str) -> str:
        """Repeat.

        Args:
            text: what to repeat.
        """
        return f"<{text}>"

    def answer(self, text):
        self.answered = text
        self.finish()
        return ""


async def play(renderer, *turns, agent=None, envs=None):
    def make_env(spec):
        env = Echo()
        if envs is not None:
            envs.append(env)
        return env

    script = [[*renderer.tokenizer.encode(turn), renderer.stop_ids[0]] for turn in turns]
    engine = ScriptedEngine(script, keep_exchanges=True)
    runner = Runner(
        engine=engine,
        renderer=renderer,
        agent=agent or ReActAgent(),
        config=RunnerConfig(max_retries=0),
        make_env=make_env,
    )
    return await runner.run_episode(SPEC), engine.exchanges


def only_call(text):
    (call,) = parse_react(text).message.tool_calls
    return call


def test_an_action_becomes_a_call_and_the_thought_its_reasoning():
    turn = parse_react('Thought: I should look.\nAction: echo\nAction Input: {"text": "a"}', turn=4)
    assert turn.message.reasoning == "I should look."
    assert turn.message.content == ""
    (call,) = turn.message.tool_calls
    assert (call.call_id, call.name, call.arguments, call.status) == ("call_4_0", "echo", {"text": "a"}, "ok")


@pytest.mark.parametrize(
    "text",
    [
        'Action: echo\nAction Input: {"text": "a"}',
        '  action :  `echo`\n ACTION  INPUT:{"text": "a"}\n',
        '**Action:** [echo]\n**Action Input:** {\n  "text": "a"\n}',
        'Action: "echo"\nAction Input: ```json\n{"text": "a"}\n```',
        'Action: echo\nAction Input: {"text": "a"}\nObservation: <b>\nFinal Answer: b',
    ],
)
def test_the_usual_ways_to_write_an_action_are_read(text):
    call = only_call(text)
    assert (call.name, call.arguments, call.status) == ("echo", {"text": "a"}, "ok")


@pytest.mark.parametrize(
    ("text", "name", "status"),
    [
        ('Action: echo\nAction Input: {"text": ', "echo", "invalid_json"),
        ("Action: echo\nAction Input: a", "echo", "invalid_json"),
        ("Action: echo\nAction Input: [1]", "echo", "malformed_structure"),
        ("Action:\nAction Input: {}", "", "missing_name"),
        ("Action Input: {}", "", "missing_name"),
        ("I do not know.", "", "malformed_structure"),
        ("Thought: I do not know.", "", "malformed_structure"),
        ("", "", "malformed_structure"),
        ("Observation: <a>", "", "malformed_structure"),
    ],
)
def test_what_cannot_be_read_is_a_malformed_call(text, name, status):
    call = only_call(text)
    assert (call.name, call.status, call.arguments) == (name, status, {})


def test_an_action_without_input_has_no_arguments():
    assert (only_call("Action: stop").arguments, only_call("Action: stop\nAction Input:").status) == ({}, "ok")


def test_what_comes_first_counts_an_action_or_an_answer():
    action = 'Action: echo\nAction Input: {"text": "a"}'
    assert only_call(f"{action}\nFinal Answer: a").name == "echo"
    answer = parse_react(f"Thought: t\nFinal Answer: do this:\n{action}").message
    assert (answer.tool_calls, answer.content, answer.reasoning) == ((), f"do this:\n{action}", "t")


def test_several_actions_become_calls_in_order():
    text = 'Action: echo\nAction Input: {"text": "a"}\nThought: and\nAction: stop\nAction: echo\nAction Input: {}'
    calls = parse_react(text, turn=2).message.tool_calls
    assert [(call.call_id, call.name) for call in calls] == [
        ("call_2_0", "echo"),
        ("call_2_1", "stop"),
        ("call_2_2", "echo"),
    ]


def test_what_follows_an_invented_observation_is_left_out():
    turn = parse_react("Thought: t\nAction: echo\nObservation: yes\nFinal Answer: yes")
    assert turn.is_hallucinating
    assert turn.kept == "Thought: t\nAction: echo"
    assert [call.name for call in turn.message.tool_calls] == ["echo"]
    assert not parse_react("Final Answer: yes").is_hallucinating


def test_without_tools_every_text_is_an_answer():
    assert parse_react("Action: x", has_tools=False).message == Message(role="assistant", content="Action: x")
    assert parse_react("Thought: t\nFinal Answer: 4", has_tools=False).message.content == "4"


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(LABELS), st.sampled_from(["\n", " ", "{", "}", '"a"', "echo"]), st.text())).map(
        "".join
    ),
    st.booleans(),
)
def test_any_text_gives_a_typed_message(text, has_tools):
    turn = parse_react(text, has_tools=has_tools, turn=3)
    message = turn.message
    assert message.role == "assistant"
    assert text.startswith(turn.kept)
    assert has_tools or not message.tool_calls
    assert not (message.tool_calls and message.content)
    for index, call in enumerate(message.tool_calls):
        assert isinstance(call, ToolCall)
        assert call.call_id == f"call_3_{index}"
        assert call.status in CALL_STATUSES
        assert bool(call.name) or call.status != "ok"
        json.dumps(call.to_dict())
    if not turn.is_hallucinating:
        assert parse_react(turn.kept, has_tools=has_tools, turn=3).message == message


WORDS = st.text("abc 12.", max_size=12).map(str.strip)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["echo", "look"]), st.dictionaries(st.text(), JSON)), max_size=3), WORDS, WORDS
)
def test_what_is_written_is_read_back(calls, thought, answer):
    made = tuple(ToolCall(call_id=f"call_0_{i}", name=n, arguments=a) for i, (n, a) in enumerate(calls))
    message = Message(role="assistant", content="" if made else answer, tool_calls=made, reasoning=thought)

    read = parse_react(write_react(message)).message

    assert (read.content, read.reasoning) == (message.content, message.reasoning)
    assert [(c.name, c.arguments, c.status) for c in read.tool_calls] == [(n, a, "ok") for n, a in calls]


def test_a_megabyte_of_label_beginnings_is_read_in_linear_time():
    # a pattern that backtracked would take hours
    for text in ("action" + " " * 1_000_000, " *#\t" * 250_000, "final\t" * 200_000, "Action:\n" * 100_000):
        parse_react(text)


async def test_an_episode_is_recorded_exactly_and_observations_are_text(any_renderer):
    envs = []
    turns = (
        'Thought: begin\nAction: echo\nAction Input: {"text": "é"}',
        'Action: echo\nAction Input: {"text": "b"}\nObservation: <wrong>\nFinal Answer: wrong',
        "Thought: done\nFinal Answer: é and b",
    )

    trajectory, exchanges = await play(any_renderer, *turns, envs=envs)

    assert trajectory.stop_reason is StopReason.COMPLETED
    assert envs[0].answered == "é and b"
    assert [m.content for m in trajectory.messages if m.role == "tool"] == ["<é>", "<b>"]
    assert trajectory.metrics["hallucinated_observations"] == 1
    assert len(trajectory.sequences) == 1
    for turn, exchange in zip(trajectory.turns, exchanges, strict=True):
        ids = trajectory.sequences[0].token_ids
        assert tuple(ids[: turn.start]) == exchange.request.prompt_ids
        assert list(ids[turn.start : turn.end]) == list(exchange.completion.token_ids)
    prompt = any_renderer.decode(exchanges[-1].request.prompt_ids)
    assert "Observation: <é>" in prompt
    assert "wrong" in prompt, "what was sampled stays in the sequence"
    assert "- echo: Repeat. Arguments:" in prompt
    assert "(echo)" in prompt


async def test_malformed_turns_are_answered_in_the_words_of_the_format_and_end_in_a_parse_error(renderer):
    trajectory, exchanges = await play(
        renderer, "Hm.", "Action: echo\nAction Input: {", "Action:\nAction Input: {}", "Final Answer: never"
    )
    assert trajectory.stop_reason is StopReason.PARSE_ERROR
    assert [turn.num_malformed_calls for turn in trajectory.turns] == [1, 1, 1]
    prompt = renderer.decode(exchanges[2].request.prompt_ids)
    assert 'Observation: Error: there is neither an "Action:" nor a "Final Answer:"' in prompt
    assert "Observation: Error: Action Input is not valid JSON." in prompt
    assert "<tool_call>" not in prompt


async def test_an_unknown_tool_and_a_wrong_argument_are_observations(renderer):
    trajectory, _ = await play(
        renderer, "Action: ecko\nAction Input: {}", 'Action: echo\nAction Input: {"x": 1}', "Final Answer: ok"
    )
    said = [m.content for m in trajectory.messages if m.role == "tool"]
    assert 'Did you mean "echo"' in said[0]
    assert "text" in said[1]
    assert trajectory.stop_reason is StopReason.COMPLETED


async def test_observations_come_in_the_role_that_the_template_appends(renderer, llama_renderer):
    turns = ('Action: echo\nAction Input: {"text": "a"}', "Final Answer: a")
    _, exchanges = await play(renderer, *turns)
    assert "<tool_response>\nObservation: <a>" in renderer.decode(exchanges[1].request.prompt_ids)
    _, exchanges = await play(llama_renderer, *turns)
    assert "user<|end_header_id|>\n\nObservation: <a>" in llama_renderer.decode(exchanges[1].request.prompt_ids)
    _, exchanges = await play(llama_renderer, *turns, agent=ReActAgent(observation_role="tool"))
    assert "user<|end_header_id|>\n\nObservation: <a>" not in llama_renderer.decode(exchanges[1].request.prompt_ids)


async def test_a_break_in_history_shows_what_the_model_wrote_up_to_its_invention(renderer):
    turns = (
        '<think>\nSo.\n</think>\n\nAction: echo\nAction Input: {"text": "a"}\nObservation: <wrong>',
        "Final Answer: a",
    )
    # Qwen3's template drops old reasoning at a user's message
    trajectory, exchanges = await play(renderer, *turns, agent=ReActAgent(observation_role="user"))
    assert len(trajectory.sequences) == 2
    prompt = renderer.decode(exchanges[1].request.prompt_ids)
    assert 'Action: echo\nAction Input: {"text": "a"}<|im_end|>' in prompt
    assert "wrong" not in prompt


def test_the_instructions_join_a_system_message_that_is_there():
    tools = Echo().tool_specs
    dialect = ReActDialect(instructions="Use {names}.")
    opening = (Message(role="system", content="Be brief."), Message(role="user", content="Go."))
    assert dialect.opening(opening, tools=tools)[0].content == "Be brief.\n\nUse echo."
    assert [m.role for m in dialect.opening(opening[1:], tools=tools)] == ["system", "user"]
    assert dialect.opening(opening, tools=()) == opening


async def test_demonstrations_are_written_in_the_dialect_of_the_agent_that_learns_from_them(renderer):
    agent = PolicyAgent("oracle", dialect=ReActAgent().dialect)
    runner = Runner(engine=ScriptedEngine([()]), renderer=renderer, agent=agent)
    played = await runner.run_episode(EpisodeSpec(env_id="agentenv/GuessNumber-v0", seed=3))
    assert played.reward == 1.0
    said = renderer.decode(played.sequences[0].token_ids[played.sequences[0].is_sampled])
    assert "Action: guess\nAction Input: {" in said
    assert "<tool_call>" not in said
