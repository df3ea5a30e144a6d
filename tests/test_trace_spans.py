"""The spans of episodes: nesting, attributes, isolation of what plays at the same time, failures, and texts."""

import asyncio
import json
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from agentenv import StopReason, tool, tool_turn
from agentenv.agent.policy import PolicyAgent
from agentenv.engine.protocol import WeightManifest
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.messages import Message
from agentenv.reward import Reward, best_of_group, score_group
from agentenv.runner import GroupSpec, Runner
from agentenv.trace import TracingConfig, open_tracing
from tests.traced_desk import GUESS, Desk, named, one, parent_of, runner_of, say, traced_run

# What is in a trace.


async def test_an_episode_holds_turns_and_a_turn_its_generation_tools_and_rewards(renderer):
    runner = runner_of(renderer, tool_turn("in_thread", {"key": 3}), "done")

    spans, _ = await traced_run(runner, [GroupSpec(group_id="g", env_id=GUESS)])

    family = [(span.name, getattr(parent_of(span, spans), "name", None)) for span in spans]
    assert sorted(family, key=str) == [
        ("episode", None),
        ("generate", "turn"),
        ("generate", "turn"),
        ("reward manners", "turn"),
        ("reward manners", "turn"),
        ("reward score", "turn"),
        ("tool in_thread", "turn"),
        ("turn", "episode"),
        ("turn", "episode"),
    ]
    first, second = named(spans, "turn")
    assert first.end_time <= second.start_time
    assert [parent_of(span, spans) for span in named(spans, "generate")] == [first, second]
    assert len({span.context.trace_id for span in spans}) == 1


async def test_attributes_say_what_was_played_by_which_weights_at_what_cost(renderer):
    runner = runner_of(renderer, tool_turn("in_thread", {"key": 3}), "done")
    await runner.engine.update_weights(WeightManifest(version=4))
    spec = GroupSpec(group_id="train-7", env_id=GUESS, seed=11, run_seed=5, size=1)

    kept = InMemorySpanExporter()
    with open_tracing(TracingConfig(), run_name="monday", model="tiny-qwen", exporter=kept) as tracing:
        group = await runner.run_group(spec)
        assert tracing is not None
        assert tracing.flush()
        spans = kept.get_finished_spans()

    (trajectory,) = group.trajectories
    episode = one(spans, "episode")
    said = dict(episode.attributes)
    assert episode.resource.attributes["agentenv.run"] == "monday"
    assert episode.resource.attributes["service.name"] == "agentenv"
    assert said.pop("gen_ai.conversation.id") == spec.members()[0].session_id()
    assert said == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "ChatAgent",
        "agentenv.episode": "train-7/0",
        "agentenv.env_id": GUESS,
        "agentenv.task_id": "",
        "agentenv.group_id": "train-7",
        "agentenv.member": 0,
        "agentenv.attempt": 0,
        "agentenv.seed": 11,
        "agentenv.run_seed": 5,
        "agentenv.stop_reason": "completed",
        "agentenv.is_scored": True,
        "agentenv.reward": 1.0,  # 0.25 for each of two turns, and 0.5 at the end
        "agentenv.reward_component.score": 0.5,
        "agentenv.num_turns": 2,
        "agentenv.num_tokens": trajectory.num_tokens,
        "agentenv.num_sampled_tokens": trajectory.num_sampled_tokens,
        "agentenv.num_cached_tokens": 0,
        "agentenv.history_breaks": 0,
        "agentenv.weight_version.first": 4,
        "agentenv.weight_version.last": 4,
        "agentenv.staleness": 0,
    }
    generate = named(spans, "generate")[1]
    assert generate.attributes["gen_ai.request.model"] == "tiny-qwen"
    assert generate.attributes["gen_ai.request.max_tokens"] == 512
    assert generate.attributes["gen_ai.usage.input_tokens"] == trajectory.turns[1].start
    assert generate.attributes["gen_ai.usage.output_tokens"] == trajectory.turns[1].num_tokens
    assert generate.attributes["gen_ai.usage.cache_read.input_tokens"] == 0
    assert generate.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    call = one(spans, "tool in_thread")
    assert call.attributes["gen_ai.tool.name"] == "in_thread"
    assert call.attributes["agentenv.tool.is_refused"] is False
    assert one(spans, "reward score").attributes["gen_ai.evaluation.score.value"] == 0.5
    assert [span.attributes["agentenv.reward"] for span in named(spans, "turn")] == [0.25, 0.25]


async def test_staleness_counts_the_versions_that_came_while_an_episode_was_played(renderer):
    runner = runner_of(renderer, tool_turn("awaited", {"key": 1}), "done", latency_s=0.05)
    kept = InMemorySpanExporter()

    with open_tracing(TracingConfig(), exporter=kept) as tracing:
        old = asyncio.create_task(runner.run_group(GroupSpec(group_id="old", env_id=GUESS)))
        await asyncio.sleep(0.08)  # its first turn is sampled by version 0, its second by version 3
        await runner.engine.update_weights(WeightManifest(version=3))
        await old
        assert tracing is not None
        assert tracing.flush()

    said = one(kept.get_finished_spans(), "episode").attributes
    assert (said["agentenv.weight_version.first"], said["agentenv.weight_version.last"]) == (0, 3)
    assert said["agentenv.staleness"] == 3


async def test_an_agent_that_never_generates_has_turns_too(renderer):
    runner = Runner(engine=ScriptedEngine([()]), renderer=renderer, agent=PolicyAgent("oracle"))

    spans, (trajectory,) = await traced_run(runner, [GroupSpec(group_id="g", env_id=GUESS, seed=3)])

    turns = named(spans, "turn")
    assert [span.attributes["agentenv.turn"] for span in turns] == list(range(len(trajectory.turns)))
    assert all(parent_of(span, spans).name == "turn" for span in spans if span.name.startswith("tool "))
    assert not named(spans, "generate")


async def test_a_retry_is_a_trace_of_its_own_that_names_the_same_episode(renderer):
    # the second of two requests fails, so the second episode needs a second attempt
    runner = runner_of(renderer, "done", faults=Faults(fail_every=2), max_retries=1)

    spans, _ = await traced_run(runner, [GroupSpec(group_id=str(i), env_id=GUESS) for i in range(2)])

    told = [
        (span.attributes["agentenv.episode"], span.attributes["agentenv.attempt"]) for span in named(spans, "episode")
    ]
    assert told == [("0/0", 0), ("1/0", 0), ("1/0", 1)]
    assert len({span.context.trace_id for span in spans}) == 3
    assert len({span.attributes["gen_ai.conversation.id"] for span in named(spans, "episode")}) == 3


async def test_group_rewards_are_traced_once_their_episodes_are_over(renderer):
    runner = Runner(engine=ScriptedEngine([()]), renderer=renderer, agent=PolicyAgent("oracle"))
    group = await runner.run_group(GroupSpec(group_id="g", env_id=GUESS, seed=3, size=2))
    kept = InMemorySpanExporter()
    with open_tracing(TracingConfig(), exporter=kept) as tracing:
        await score_group([Reward(name="best", function=best_of_group, when="group")], group.trajectories)
        assert tracing is not None
        assert tracing.flush()

    span = one(kept.get_finished_spans(), "group reward best")
    assert span.attributes["agentenv.group_id"] == "g"
    assert span.attributes["agentenv.num_members"] == 2


# Isolation.


async def test_64_episodes_at_once_never_mix_and_threads_keep_their_parent(renderer):
    envs = {}

    def make_env(spec):
        envs[spec.session_id()] = Desk()
        return envs[spec.session_id()]

    calls = tuple(tool_turn("awaited", {"key": key}, call_id=f"c{key}").tool_calls[0] for key in range(3))
    turns = [Message(role="assistant", content="", tool_calls=calls), tool_turn("in_thread", {"key": 9}), say("done")]
    engine = ScriptedEngine([renderer.turn_ids(turn) for turn in turns], latency_s=0.003)
    runner = Runner(engine=engine, renderer=renderer, make_env=make_env)
    kept = InMemorySpanExporter()

    with open_tracing(TracingConfig(), exporter=kept) as tracing:
        await runner.run_all([GroupSpec(group_id=str(i), env_id=GUESS, seed=i, size=8) for i in range(8)])
        assert tracing is not None
        assert tracing.flush()
        spans: Any = kept.get_finished_spans()

    traces: dict[int, Any] = {}
    for span in spans:
        traces.setdefault(span.context.trace_id, []).append(span)
    assert len(traces) == 64
    for own in traces.values():
        names = sorted(span.name for span in own)
        assert names == sorted(
            [*["turn", "generate", "reward manners", "tool awaited"] * 3, "episode", "tool in_thread", "reward score"]
        )
        session = one(own, "episode").attributes["gen_ai.conversation.id"]
        assert {span.attributes["gen_ai.conversation.id"] for span in own if span.name == "generate"} == {session}
        # what the tools saw as the current span, in coroutines and in threads, are the spans of their own calls
        assert sorted(envs[session].seen) == sorted(s.context.span_id for s in own if s.name.startswith("tool "))
        assert all(parent_of(span, own) is not None for span in own if span.name != "episode")


async def test_a_generation_from_a_task_that_the_runner_did_not_start_finds_its_episode(renderer):
    """As behind a gateway, where a server's task asks for the next turn."""
    wanted: asyncio.Queue = asyncio.Queue()

    async def serve():
        while True:
            episode, answer = await wanted.get()
            answer.set_result(await episode.generate())

    class Remote:
        async def play(self, episode):
            opening = await episode.reset()
            episode.recorder.begin(episode.renderer.prompt_ids(opening, tools=episode.tools))
            answer = asyncio.get_running_loop().create_future()
            await wanted.put((episode, answer))
            await episode.step(episode.renderer.parse((await answer).token_ids, tools=episode.tools))

    server = asyncio.create_task(serve())
    runner = runner_of(renderer, "done", agent=Remote())
    spans, _ = await traced_run(runner, [GroupSpec(group_id="g", env_id=GUESS)])
    server.cancel()

    assert parent_of(one(spans, "generate"), spans).name == "turn"
    assert len({span.context.trace_id for span in spans}) == 1


async def test_two_generations_without_a_step_between_them_are_two_turns(renderer):
    class Twice:
        async def play(self, episode):
            opening = await episode.reset()
            episode.recorder.begin(episode.renderer.prompt_ids(opening, tools=episode.tools))
            await asyncio.gather(episode.generate(), episode.generate())
            await episode.generate()
            await episode.step(say("done"))

    runner = runner_of(renderer, "done", agent=Twice(), latency_s=0.01)
    spans, _ = await traced_run(runner, [GroupSpec(group_id="g", env_id=GUESS)])

    assert len(named(spans, "turn")) == 3
    parents = [parent_of(span, spans).context.span_id for span in named(spans, "generate")]
    assert len(set(parents)) == 3
    for span in named(spans, "generate"):
        assert parent_of(span, spans).end_time >= span.end_time


# Failures of the episode.


@pytest.mark.parametrize(
    ("turn", "faults", "env", "failed", "status"),
    [
        (tool_turn("broken", {}), None, Desk, "tool broken", StopReason.TOOL_ERROR),
        ("done", Faults(fail_every=1), Desk, "generate", StopReason.ENGINE_ERROR),
        ("done", None, lambda: Desk("reward"), "reward score", StopReason.REWARD_ERROR),
    ],
)
async def test_a_failure_marks_its_span_and_everything_above_it(renderer, turn, faults, env, failed, status):
    runner = runner_of(renderer, turn, faults=faults, env=env, max_retries=0)

    spans, (trajectory,) = await traced_run(runner, [GroupSpec(group_id="g", env_id=GUESS)])

    assert trajectory.stop_reason is status
    span = one(spans, failed)
    while span is not None:
        # the turn of a failed generation has no step, so nothing failed in it but its child
        if not (span.name == "turn" and failed == "generate"):
            assert span.status.status_code is StatusCode.ERROR, span.name
            assert span.status.description
        span = parent_of(span, spans)
    assert one(spans, "episode").attributes["error.type"] == status.value
    assert one(spans, failed).attributes["error.type"] == "EpisodeError"
    assert all(span.end_time for span in spans)


async def test_a_refused_tool_call_is_the_policys_doing_and_no_error(renderer):
    runner = runner_of(renderer, tool_turn("in_thread", {"key": "many"}), tool_turn("invented\ud800", {}), "done")

    spans, (trajectory,) = await traced_run(runner, [GroupSpec(group_id="g", env_id=GUESS)])

    assert trajectory.is_scored
    assert one(spans, "tool in_thread").attributes["agentenv.tool.is_refused"] is True
    # an invented name is not made a span name, of which back ends keep a list
    invented = one(spans, "tool")
    assert (invented.attributes["gen_ai.tool.name"], invented.attributes["agentenv.tool.status"]) == (
        "",
        "unknown_tool",
    )
    assert all(span.status.status_code is StatusCode.UNSET for span in spans)


async def test_a_cancelled_run_ends_its_spans(renderer):
    runner = runner_of(renderer, "done", latency_s=30)
    kept = InMemorySpanExporter()
    with open_tracing(TracingConfig(), exporter=kept) as tracing:
        task = asyncio.create_task(runner.run_group(GroupSpec(group_id="g", env_id=GUESS, size=3)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tracing is not None
        assert tracing.flush()
        spans = kept.get_finished_spans()
    assert [span.attributes["error.type"] for span in named(spans, "episode")] == ["CancelledError"] * 3
    assert len(named(spans, "turn")) == 3


# Content.


async def test_texts_are_sent_only_when_asked_for_and_then_cut(renderer):
    class Long(Desk):
        def setup(self, rng, task) -> str:
            return "the secret prompt " + "x" * 10_000

        @tool
        def read(self) -> str:
            """Read."""
            return "the secret result " + "y" * 10_000 + "\ud83d"

    runner = runner_of(renderer, tool_turn("read", {}), "the secret answer", env=Long)
    specs = [GroupSpec(group_id="g", env_id=GUESS)]

    silent, _ = await traced_run(runner, specs)
    told, _ = await traced_run(runner, specs, tracing=TracingConfig(content=True))

    assert "secret" not in "".join(str(dict(span.attributes)) for span in silent)
    first, second = named(told, "generate")
    prompt = json.loads(first.attributes["gen_ai.input.messages"])
    assert prompt[0]["parts"][0]["content"].startswith("the secret prompt xxx")
    assert prompt[0]["parts"][0]["content"].endswith("[cut]")
    newest = json.loads(second.attributes["gen_ai.input.messages"])[-1]
    assert newest["parts"][0]["type"] == "tool_call_response"
    output = json.loads(second.attributes["gen_ai.output.messages"])[0]
    assert output["parts"][0]["content"].startswith("the secret answer")
    assert output["finish_reason"] == "stop"
    assert one(told, "tool read").attributes["gen_ai.tool.call.result"].startswith("the secret result yyy")
    assert max(len(v) for span in told for v in span.attributes.values() if isinstance(v, str)) < 4500
