"""Rendering: families, skeletons and quick parsing give the ids that the full path gives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv import Message, ToolCall, tool_turn
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.errors import ModelError, UsageError
from agentenv.hermes import PROBES, HermesReader
from agentenv.renderer import Renderer
from agentenv.tokenizer import load_tokenizer, wrap_tokenizer
from tests.conftest import PLAIN_TEMPLATE, full_tokenizer

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    },
}
CONTENTS = [
    "hello",
    " outer space ",
    "",
    "line\nbreak",
    "7 8",
    '{"a": "b"}',
    "<tool_call>x</tool_call>",
    "🙂é漢",
    "<think>",
]


@pytest.mark.parametrize("content", CONTENTS)
def test_prompts_from_a_skeleton_equal_full_renderings(any_renderer, content):
    messages = (Message(role="system", content="Be brief."), Message(role="user", content=content))
    expected = any_renderer._family.prompt(any_renderer._cleaned(_keys(messages)), (TOOL,))
    assert list(any_renderer.prompt_ids(messages, tools=(TOOL,))) == expected


@pytest.mark.parametrize("content", CONTENTS)
def test_continuations_from_a_skeleton_equal_full_renderings(any_renderer, content):
    messages = (
        Message(role="tool", content=content, tool_call_id="call_0_0", name="look"),
        Message(role="tool", content="two", tool_call_id="call_0_1", name="look"),
    )
    expected = any_renderer._family.continuation(any_renderer._cleaned(_keys(messages)), (TOOL,))
    rendered = any_renderer.continuation_ids(messages, is_closed=False, tools=(TOOL,))
    assert rendered is not None
    assert list(rendered) == expected


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_any_observation_renders_as_the_family_renders_it(text):
    renderer = Renderer(byte_tokenizer(), family="qwen3")
    message = (Message(role="tool", content=text, tool_call_id="c", name="look"),)
    expected = renderer._family.continuation(renderer._cleaned(_keys(message)), ())
    rendered = renderer.continuation_ids(message, is_closed=False)
    assert rendered is not None
    assert list(rendered) == expected


@pytest.mark.parametrize("probe", PROBES)
def test_the_quick_reader_reads_as_the_family_reads(renderer, probe):
    ids = renderer.tokenizer.encode(probe)
    quick = HermesReader(renderer.tokenizer, stop_ids=renderer.stop_ids).read(ids)
    assert quick == _family_parse(renderer, ids)


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "a"}', "{", "text", "\n", " "]
        ),
        max_size=7,
    )
)
def test_whatever_is_sampled_parses_as_the_family_parses_it(parts):
    renderer = Renderer(byte_tokenizer(), family="qwen3")
    ids = renderer.tokenizer.encode("".join(parts))
    parsed = renderer.parse(ids)
    expected = _family_parse(renderer, ids)
    assert parsed.content == expected.content
    assert [(c.name, c.status, c.raw) for c in parsed.tool_calls] == [
        (c.name, c.status, c.raw) for c in expected.tool_calls
    ]


def test_what_a_turn_says_is_what_is_parsed_from_its_ids(any_renderer):
    message = tool_turn("look", {"n": 3}, call_id="call_0_0")
    ids = any_renderer.turn_ids(message, tools=(TOOL,))
    assert ids[-1] in any_renderer.stop_ids
    parsed = any_renderer.parse(ids, tools=(TOOL,))
    assert [(call.call_id, call.name, call.arguments) for call in parsed.tool_calls] == [("call_0_0", "look", {"n": 3})]


def test_a_spoken_turn_round_trips(any_renderer):
    message = Message(role="assistant", content="It is 12 é 🙂.")
    assert any_renderer.parse(any_renderer.turn_ids(message)).content == message.content


def test_a_qwen3_template_is_recognised_by_what_it_renders():
    from agentenv.trainers.tiny import qwen3_template

    assert Renderer(wrap_tokenizer(full_tokenizer(qwen3_template()))).family_name == "qwen3"


def test_an_unknown_template_is_used_as_it_is():
    assert Renderer(wrap_tokenizer(full_tokenizer(PLAIN_TEMPLATE))).family_name == "template"


def test_a_template_that_rewrites_history_gives_no_continuation():
    # shows how long the conversation is in its first line: earlier ids change with every message
    template = "{{ messages | length }}" + PLAIN_TEMPLATE
    renderer = Renderer(wrap_tokenizer(full_tokenizer(template)), family="template")
    message = Message(role="tool", content="x", tool_call_id="c", name="look")
    assert renderer.continuation_ids((message,), is_closed=True) is None


async def test_a_rewritten_history_starts_a_new_sequence_and_is_counted():
    from agentenv.engine.scripted import ScriptedEngine
    from agentenv.episode import EpisodeSpec
    from agentenv.runner import Runner

    # the first line tells how many tool results there are, so it changes with every one
    template = "{{ messages | selectattr('role', 'equalto', 'tool') | list | length }}" + PLAIN_TEMPLATE
    renderer = Renderer(wrap_tokenizer(full_tokenizer(template)), family="template")
    script = [renderer.turn_ids(tool_turn("guess", {"number": n})) for n in (16, 17, 18, 19)]
    engine = ScriptedEngine(script, keep_exchanges=True)

    trajectory = await Runner(engine=engine, renderer=renderer).run_episode(
        EpisodeSpec(env_id="agentenv/GuessNumber-v0", seed=1)
    )

    assert len(trajectory.sequences) == 4
    assert trajectory.metrics["history_breaks"] == 3
    for turn, exchange in zip(trajectory.turns, engine.exchanges, strict=True):
        assert tuple(trajectory.sequences[turn.sequence].token_ids[: turn.start]) == exchange.request.prompt_ids


def test_an_assistant_message_cannot_be_appended(renderer):
    with pytest.raises(UsageError, match="re-encoding"):
        renderer.continuation_ids((Message(role="assistant", content="x"),), is_closed=True)


def test_a_wrong_family_is_answered_with_a_suggestion():
    with pytest.raises(UsageError, match='Did you mean "qwen3"'):
        Renderer(byte_tokenizer(), family="qwen33")


def test_a_family_whose_tokens_are_missing_is_refused():
    with pytest.raises(ModelError, match="cannot be rendered as llama-3"):
        Renderer(byte_tokenizer(), family="llama-3")


def test_a_tokenizer_without_a_template_is_refused_with_the_remedy():
    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        Renderer(byte_tokenizer())


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_file_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="not a usable tokenizer"):
        load_tokenizer(tmp_path)


def test_different_calls_of_the_same_shape_do_not_share_a_cached_rendering(any_renderer):
    def after(call_id):
        call = ToolCall(call_id=call_id, name="look", arguments={"n": 1})
        messages = (
            Message(role="user", content="x"),
            Message(role="assistant", content="", tool_calls=(call,)),
            Message(role="tool", content=f"result of {call_id}", tool_call_id=call_id, name="look"),
        )
        return any_renderer.prompt_ids(messages)

    assert after("call_0_0") != after("call_1_0")


def _family_parse(renderer, ids):
    """What the family's own parser makes of a completion."""
    return renderer._family._parse(ids, ())


def _keys(messages):
    from agentenv.message_key import message_keys

    return message_keys(messages)
