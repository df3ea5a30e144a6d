"""Room in a full context: what the engine saw is what is recorded, breaks are counted, and every episode ends."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv import AgentEnv, Message, StopReason, ToolEnv, Trajectory, reward, tool, tool_turn
from agentenv.agent.policy import PolicyAgent
from agentenv.agent.react import ReActAgent
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.context import DROPPED, SUMMARY_PROMPT, SUMMARY_TITLE, ContextConfig
from agentenv.engine.scripted import Exchange, ScriptedEngine
from agentenv.episode import EpisodeSpec, Limits
from agentenv.renderer import Renderer
from agentenv.runner import Runner, RunnerConfig

SPEC = EpisodeSpec(env_id="test/Reader-v0")
BYTES = Renderer(byte_tokenizer(), family="qwen3")
PROMPT = SUMMARY_PROMPT


class Reader(ToolEnv):
    """Reads pages of 300 letters."""

    inline = True

    def __init__(self, *, page: int = 300, **options):
        self.page, self.num_read = page, 0
        super().__init__(**{"max_turns": 12, **options})

    def setup(self, rng, task):
        return "Read all."

    @tool
    def read(self) -> str:
        """Read the next page."""
        self.num_read += 1
        return str(self.num_read % 10) * self.page

    @reward
    def pages(self) -> float:
        return float(self.num_read)


class Talk(AgentEnv):
    """Answers with 300 letters."""

    inline = True

    def setup(self, rng, task):
        return "Talk."

    def respond(self, text):
        return "a" * 300


def script_of(renderer, *, summary="pages were read", done_after=99, call=None):
    """Read pages, and answer a request for a summary with one."""
    call = tool_turn("read", {}) if call is None else call

    def script(request):
        text = renderer.decode(request.prompt_ids[-len(renderer.tokenizer.encode(PROMPT)) - 80 :])
        if PROMPT in text:
            return renderer.turn_ids(Message(role="assistant", content=summary))
        said = call if request.index < done_after else Message(role="assistant", content="done")
        return renderer.turn_ids(said)

    return script


async def play(
    renderer: Renderer, script: Any, *, context: ContextConfig, env: Any = Reader, agent: Any = None, **limits: Any
) -> tuple[Trajectory, list[Exchange]]:
    engine = ScriptedEngine(script, keep_exchanges=True, logprob=-0.25)
    config = RunnerConfig(limits=Limits(context=context, **limits), max_retries=0)
    runner = Runner(engine=engine, renderer=renderer, config=config, agent=agent, make_env=lambda spec: env())
    trajectory = await runner.run_episode(SPEC)
    assert trajectory.is_scored, trajectory.error
    return trajectory, engine.exchanges


def assert_exact(trajectory: Trajectory, exchanges: list[Exchange], *, limit: int) -> None:
    """What the engine saw and said is what is recorded, sequence by sequence."""
    assert len(trajectory.turns) == len(exchanges)
    for turn, exchange in zip(trajectory.turns, exchanges, strict=True):
        sequence = trajectory.sequences[turn.sequence]
        assert tuple(sequence.token_ids[: turn.start]) == exchange.request.prompt_ids
        assert list(sequence.token_ids[turn.start : turn.end]) == list(exchange.completion.token_ids)
        assert sequence.is_sampled[turn.start : turn.end].all()
        assert turn.end <= limit
    for index, sequence in enumerate(trajectory.sequences):
        num_sampled = sum(turn.num_tokens for turn in trajectory.turns if turn.sequence == index)
        assert int(sequence.is_sampled.sum()) == num_sampled
    metrics = trajectory.metrics
    assert metrics["history_breaks"] == len(trajectory.sequences) - 1
    num_assistant = sum(message.role == "assistant" for message in trajectory.messages)
    assert num_assistant == len(trajectory.turns)


def drops(**values):
    return ContextConfig(**{"when_full": "drop_tool_outputs", **values})


def summaries(**values):
    return ContextConfig(**{"when_full": "summarise", "max_summary_tokens": 40, "threshold": 0.7, **values})


async def test_by_default_the_episode_stops_where_the_context_is_full(renderer):
    trajectory, exchanges = await play(renderer, script_of(renderer), context=ContextConfig(), max_context_tokens=1500)
    assert trajectory.stop_reason is StopReason.CONTEXT_OVERFLOW
    assert len(trajectory.sequences) == 1
    assert_exact(trajectory, exchanges, limit=1500)


async def test_dropping_old_outputs_lets_the_episode_go_on_in_new_sequences(any_renderer):
    script = script_of(any_renderer, done_after=11)

    trajectory, exchanges = await play(any_renderer, script, context=drops(), max_context_tokens=3000)

    assert trajectory.stop_reason is StopReason.COMPLETED
    assert trajectory.reward == 11
    breaks = len(trajectory.sequences) - 1
    assert breaks >= 1
    assert trajectory.metrics["breaks_by_drop"] == breaks
    assert trajectory.metrics["dropped_outputs"] >= breaks
    assert_exact(trajectory, exchanges, limit=3000)
    # the sequence after a break begins with a fresh rendering: oldest outputs gone, the newest whole
    first_turn = next(turn for turn in trajectory.turns if turn.sequence == 1)
    prompt = any_renderer.decode(trajectory.sequences[1].token_ids[: first_turn.start])
    assert DROPPED in prompt
    assert "2" * 300 not in prompt
    newest = [m.content for m in trajectory.messages if m.role == "tool"]
    index = trajectory.turns.index(first_turn)
    assert newest[index - 1] in prompt
    assert first_turn.start <= 1500, "half of 3000 is the target"
    # the conversation itself is whole
    assert newest == [str(n % 10) * 300 for n in range(1, 12)]


async def test_a_summary_is_a_turn_of_the_policy_and_the_conversation_goes_on_from_it(any_renderer):
    script = script_of(any_renderer, summary="two pages", done_after=8)

    trajectory, exchanges = await play(any_renderer, script, context=summaries(), max_context_tokens=2000)

    assert trajectory.stop_reason is StopReason.COMPLETED
    breaks = trajectory.metrics["breaks_by_summary"]
    assert breaks == len(trajectory.sequences) - 1 >= 1
    assert_exact(trajectory, exchanges, limit=2000)
    # the summary was sampled at the end of the first sequence, after the output that it speaks of
    last = [turn for turn in trajectory.turns if turn.sequence == 0][-1]
    said = any_renderer.decode(trajectory.sequences[0].token_ids[last.start : last.end])
    assert said.startswith("two pages")
    assert last.end == len(trajectory.sequences[0])
    first = next(turn for turn in trajectory.turns if turn.sequence == 1)
    prompt = any_renderer.decode(trajectory.sequences[1].token_ids[: first.start])
    assert f"Read all.\n\n{SUMMARY_TITLE}two pages" in prompt
    assert "1" * 300 not in prompt
    assert PROMPT not in prompt
    # what the model said and was asked stands in the conversation
    asked = [i for i, m in enumerate(trajectory.messages) if m.content == PROMPT]
    assert len(asked) == breaks
    assert trajectory.messages[asked[0] + 1].content == "two pages"


async def test_a_summary_that_does_not_shrink_enough_ends_the_episode(renderer):
    trajectory, exchanges = await play(
        renderer,
        script_of(renderer, summary="x" * 400),
        context=summaries(max_summary_tokens=200, threshold=0.6),
        max_context_tokens=1800,
    )
    assert trajectory.stop_reason is StopReason.CONTEXT_OVERFLOW
    assert trajectory.metrics["breaks_by_summary"] == 1
    assert len(trajectory.sequences) == 1
    assert [turn.num_tokens for turn in trajectory.turns[2:]] == [200], "the summary, cut at its budget, was the last"
    assert trajectory.turns[-1].end < 1790, "there was room, but nothing was gained"
    assert trajectory.reward == 2.0, "terminal rewards are still computed"
    assert_exact(trajectory, exchanges, limit=1800)


async def test_where_no_summary_fits_old_outputs_are_dropped(renderer):
    # the second page leaves no room for request and summary
    trajectory, exchanges = await play(
        renderer,
        script_of(renderer, done_after=2),
        context=summaries(),
        env=lambda: Reader(page=900),
        max_context_tokens=2450,
    )
    assert trajectory.metrics["breaks_by_drop"] == 1
    assert "breaks_by_summary" not in trajectory.metrics
    assert trajectory.stop_reason is StopReason.COMPLETED
    assert_exact(trajectory, exchanges, limit=2450)


async def test_outputs_stay_where_dropping_them_would_not_bring_the_conversation_below_the_threshold(renderer):
    # 508 tokens of opening and 900 of the newest page alone are above 0.5 of 2432
    trajectory, exchanges = await play(
        renderer,
        script_of(renderer),
        context=drops(threshold=0.5, target=0.3),
        env=lambda: Reader(page=900),
        max_context_tokens=2432,
    )
    assert trajectory.stop_reason is StopReason.CONTEXT_OVERFLOW
    assert len(trajectory.turns) == 2
    assert len(trajectory.sequences) == 1
    assert_exact(trajectory, exchanges, limit=2432)


async def test_a_tool_call_in_a_summary_is_not_run_and_the_policy_is_told(renderer):
    def script(request):
        return renderer.turn_ids(tool_turn("read", {}))

    trajectory, exchanges = await play(renderer, script, context=summaries(), max_context_tokens=2000, env=Reader)

    assert trajectory.metrics["breaks_by_summary"] >= 1
    num_results = sum(message.role == "tool" for message in trajectory.messages)
    num_summaries = int(trajectory.metrics["breaks_by_summary"])
    assert num_results == trajectory.reward == len(trajectory.turns) - num_summaries
    first = next(turn for turn in trajectory.turns if turn.sequence == 1)
    prompt = renderer.decode(trajectory.sequences[1].token_ids[: first.start])
    assert "(not run: a call of read)" in prompt
    assert_exact(trajectory, exchanges, limit=2000)


async def test_a_malformed_call_survives_a_fresh_rendering(renderer, template_renderer):
    for each in (renderer, template_renderer):
        broken = (*each.tokenizer.encode('<tool_call>{"name": "read", </tool_call>'), each.stop_ids[0])
        fine = each.turn_ids(tool_turn("read", {}))

        trajectory, exchanges = await play(
            each,
            lambda request, broken=broken, fine=fine: broken if request.index % 3 == 1 else fine,
            context=drops(),
            max_context_tokens=2000,
        )

        assert sum(turn.num_malformed_calls for turn in trajectory.turns) == 4
        assert trajectory.metrics["breaks_by_drop"] >= 1
        assert_exact(trajectory, exchanges, limit=2000)


@pytest.mark.parametrize("context", [drops(), summaries()])
async def test_the_react_format_makes_room_too(any_renderer, context):
    def script(request):
        tail = any_renderer.decode(request.prompt_ids[-120:])
        text = "pages" if PROMPT in tail else "Thought: on\nAction: read\nAction Input: {}\nObservation: invented"
        return (*any_renderer.tokenizer.encode(text), any_renderer.stop_ids[0])

    trajectory, exchanges = await play(
        any_renderer, script, context=context, agent=ReActAgent(), max_context_tokens=2600, max_turn_tokens=200
    )

    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert len(trajectory.sequences) > 1
    assert_exact(trajectory, exchanges, limit=2600)
    first = next(turn for turn in trajectory.turns if turn.sequence == 1)
    prompt = any_renderer.decode(trajectory.sequences[1].token_ids[: first.start])
    assert "Action: read\nAction Input: {}" in prompt
    assert "invented" not in prompt
    if context.when_full == "drop_tool_outputs":
        assert f"Observation: {DROPPED}" in prompt


async def test_an_environment_that_talks_is_summarised(any_renderer):
    script = script_of(any_renderer, call=Message(role="assistant", content="go on"))
    trajectory, exchanges = await play(any_renderer, script, context=summaries(), env=Talk, max_context_tokens=1800)
    assert trajectory.metrics["breaks_by_summary"] >= 1
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert_exact(trajectory, exchanges, limit=1800)


async def test_a_scripted_policy_is_never_asked_for_a_summary(renderer):
    class Reciting(Reader):
        """Its oracle reads to the end."""

        def oracle(self):
            return tool_turn("read", {})

    trajectory, _ = await play(
        renderer, [()], context=summaries(), env=Reciting, agent=PolicyAgent("oracle"), max_context_tokens=1500
    )
    assert trajectory.stop_reason is StopReason.CONTEXT_OVERFLOW
    assert len(trajectory.sequences) == 1


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["drop_tool_outputs", "summarise"]),
    st.integers(450, 4000),
    st.integers(1, 100) | st.just(100),
    st.integers(1, 3000),
    st.floats(0.3, 1.0),
    st.floats(0.05, 0.95),
    st.integers(0, 500),
    st.integers(0, 400),
)
async def test_every_episode_ends_within_its_budgets_and_is_exact(
    when_full, context_tokens, turn_tokens, episode_tokens, threshold, target, page, summary_length
):
    context = ContextConfig(
        when_full=when_full,
        threshold=threshold,
        target=threshold * target,
        max_summary_tokens=max(1, int((1 - threshold) * context_tokens)),
    )
    if when_full == "summarise" and int((1 - threshold) * context_tokens) < 1:
        return
    trajectory, exchanges = await play(
        BYTES,
        script_of(BYTES, summary="s" * summary_length),
        context=context,
        env=lambda: Reader(page=page),
        max_context_tokens=context_tokens,
        max_turn_tokens=turn_tokens,
        max_episode_tokens=episode_tokens,
    )
    num_summaries = int(trajectory.metrics.get("breaks_by_summary", 0))
    assert len(trajectory.turns) <= 12 + num_summaries <= 24
    assert trajectory.num_sampled_tokens <= episode_tokens
    assert_exact(trajectory, exchanges, limit=context_tokens)
