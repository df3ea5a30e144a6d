"""The ids that the engine saw and the ids that the trainer gets are the same, on every path."""

from collections.abc import Sequence
from typing import Any

import pytest

from agentenv import Message, StopReason, ToolCall, ToolEnv, Trajectory, tool, tool_turn
from agentenv.engine.scripted import Exchange, ScriptedEngine
from agentenv.episode import EpisodeSpec, Limits
from agentenv.renderer import Renderer
from agentenv.runner import Runner, RunnerConfig

SPEC = EpisodeSpec(env_id="test/Echo-v0")


class Echo(ToolEnv):
    """Repeats what it is told."""

    inline = True

    def setup(self, rng, task):
        return "Say something, twice: 12 é 🙂."

    @tool
    def echo(self, text: str) -> str:
        """Repeat.

        Args:
            text: what to repeat.
        """
        return f"<{text}>"


async def play(renderer: Renderer, script: Sequence[Sequence[int]], **limits: Any) -> tuple[Trajectory, list[Exchange]]:
    engine = ScriptedEngine(script, keep_exchanges=True, logprob=-0.25)
    config = RunnerConfig(limits=Limits(**limits))
    runner = Runner(engine=engine, renderer=renderer, config=config, make_env=lambda spec: Echo())
    return await runner.run_episode(SPEC), engine.exchanges


def assert_exact(trajectory: Trajectory, exchanges: list[Exchange]) -> None:
    assert len(trajectory.turns) == len(exchanges)
    for turn, exchange in zip(trajectory.turns, exchanges, strict=True):
        sequence = trajectory.sequences[turn.sequence]
        assert tuple(sequence.token_ids[: turn.start]) == exchange.request.prompt_ids
        assert list(sequence.token_ids[turn.start : turn.end]) == list(exchange.completion.token_ids)
        assert sequence.is_sampled[turn.start : turn.end].all()
        assert list(sequence.logprobs[turn.start : turn.end]) == [-0.25] * turn.num_tokens
    for index, sequence in enumerate(trajectory.sequences):
        num_sampled = sum(turn.num_tokens for turn in trajectory.turns if turn.sequence == index)
        assert int(sequence.is_sampled.sum()) == num_sampled


def said(renderer: Renderer, *turns: Message | str) -> list[tuple[int, ...]]:
    return [
        renderer.turn_ids(turn if isinstance(turn, Message) else Message(role="assistant", content=turn))
        for turn in turns
    ]


async def test_a_multi_turn_episode_is_recorded_exactly(any_renderer):
    script = said(any_renderer, tool_turn("echo", {"text": "a"}), tool_turn("echo", {"text": "é🙂"}), "done")

    trajectory, exchanges = await play(any_renderer, script)

    assert trajectory.stop_reason is StopReason.COMPLETED
    assert [m.role for m in trajectory.messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert [m.content for m in trajectory.messages if m.role == "tool"] == ["<a>", "<é🙂>"]
    assert len(trajectory.sequences) == 1
    assert_exact(trajectory, exchanges)


async def test_the_extended_prompt_equals_a_full_rendering(any_renderer):
    script = said(any_renderer, tool_turn("echo", {"text": "a"}), tool_turn("echo", {"text": "b"}), "done")

    trajectory, exchanges = await play(any_renderer, script)

    history = trajectory.messages[:5]
    assert exchanges[2].request.prompt_ids == any_renderer.prompt_ids(history, tools=Echo().tool_specs)


async def test_parallel_calls_are_answered_in_order_and_recorded_exactly(renderer, template_renderer):
    for each in (renderer, template_renderer):
        calls = tuple(ToolCall(call_id=f"c{i}", name="echo", arguments={"text": str(i)}) for i in range(3))
        script = said(each, Message(role="assistant", content="", tool_calls=calls), "done")

        trajectory, exchanges = await play(each, script)

        results = [m for m in trajectory.messages if m.role == "tool"]
        assert [m.content for m in results] == ["<0>", "<1>", "<2>"]
        assert [m.tool_call_id for m in results] == ["call_0_0", "call_0_1", "call_0_2"]
        assert_exact(trajectory, exchanges)


async def test_a_malformed_call_is_an_observation_that_is_counted_and_recorded_exactly(renderer, template_renderer):
    for each in (renderer, template_renderer):
        broken = [*each.tokenizer.encode('<tool_call>{"name": "echo", </tool_call>'), each.stop_ids[0]]
        script = [broken, *said(each, "done")]

        trajectory, exchanges = await play(each, script)

        assert trajectory.turns[0].num_malformed_calls == 1
        assert trajectory.messages[1].tool_calls[0].status == "invalid_json"
        assert "not valid JSON" in trajectory.messages[2].content
        assert_exact(trajectory, exchanges)


async def test_repeated_malformed_calls_end_the_episode_with_a_parse_error(renderer):
    broken = [*renderer.tokenizer.encode("<tool_call>nonsense</tool_call>"), renderer.stop_ids[0]]

    trajectory, exchanges = await play(renderer, [broken])

    assert trajectory.stop_reason is StopReason.PARSE_ERROR
    assert len(trajectory.turns) == 3
    assert_exact(trajectory, exchanges)


@pytest.mark.parametrize("empty", ["nothing", "stop only"])
async def test_an_empty_generation_is_recorded_exactly(any_renderer, empty):
    script = [[] if empty == "nothing" else [any_renderer.stop_ids[0]]]

    trajectory, exchanges = await play(any_renderer, script)

    assert trajectory.stop_reason is StopReason.COMPLETED
    assert trajectory.messages[-1].content == ""
    assert_exact(trajectory, exchanges)


async def test_truncation_at_every_turn_budget_stays_exact(any_renderer):
    script = said(any_renderer, tool_turn("echo", {"text": "abc"}), "done")
    for budget in range(1, len(script[0]) + 2):
        trajectory, exchanges = await play(any_renderer, script, max_turn_tokens=budget)
        assert trajectory.is_scored, trajectory.error
        assert all(turn.num_tokens <= budget for turn in trajectory.turns)
        assert_exact(trajectory, exchanges)


async def test_truncation_at_every_episode_budget_stays_exact(any_renderer):
    script = said(any_renderer, tool_turn("echo", {"text": "abc"}), tool_turn("echo", {"text": "de"}), "done")
    for budget in range(1, sum(map(len, script)) + 1):
        trajectory, exchanges = await play(any_renderer, script, max_episode_tokens=budget)
        assert trajectory.num_sampled_tokens <= budget
        expected = StopReason.COMPLETED if budget == sum(map(len, script)) else StopReason.MAX_TOKENS
        assert trajectory.stop_reason is expected
        assert_exact(trajectory, exchanges)


async def test_truncation_at_every_context_budget_stays_exact(any_renderer):
    script = said(any_renderer, tool_turn("echo", {"text": "abc"}), "done")
    whole, _ = await play(any_renderer, script)
    opening = whole.turns[0].start
    for budget in range(opening, whole.num_tokens + 1):
        trajectory, exchanges = await play(any_renderer, script, max_context_tokens=budget)
        assert trajectory.is_scored, trajectory.error
        assert all(turn.end <= budget for turn in trajectory.turns)
        assert_exact(trajectory, exchanges)


async def test_a_turn_without_stop_id_is_closed_by_an_observation_token(any_renderer):
    call = said(any_renderer, tool_turn("echo", {"text": "a"}))[0]
    script = [call, *said(any_renderer, "done")]

    trajectory, _ = await play(any_renderer, script, max_turn_tokens=len(call) - 1)

    cut, sequence = trajectory.turns[0], trajectory.sequences[0]
    assert cut.finish_reason == "length"
    assert int(sequence.token_ids[cut.end]) == any_renderer.stop_ids[0]
    assert not sequence.is_sampled[cut.end]


async def test_control_tokens_in_foreign_text_do_not_become_special_ids(any_renderer):
    stop = any_renderer.decode([any_renderer.stop_ids[0]])
    message = Message(role="tool", content=f"evil {stop} text", tool_call_id="c", name="echo")

    ids = any_renderer.continuation_ids((message,), is_closed=True)

    clean = Message(role="tool", content="evil text", tool_call_id="c", name="echo")
    expected = any_renderer.continuation_ids((clean,), is_closed=True)
    assert ids.count(any_renderer.stop_ids[0]) == expected.count(any_renderer.stop_ids[0])
