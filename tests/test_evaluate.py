"""Evaluation: the numbers, worked out by hand."""

import math

import pytest

from agentenv import StopReason, Trajectory, Turn
from agentenv.agent.policy import PolicyAgent
from agentenv.engine.scripted import ScriptedEngine
from agentenv.evaluate import evaluate, evaluation_groups, group_pass_at_k, pass_at_k, summarise, wilson_interval
from agentenv.runner import Runner
from agentenv.trajectory import Group


def trajectory(reward=1.0, *, stop=StopReason.COMPLETED, calls=1, malformed=0, turns=1, tokens=10):
    return Trajectory(
        env_id="e",
        task_id="t",
        group_id="g",
        member=0,
        seed=0,
        stop_reason=stop,
        turns=tuple(
            Turn(
                sequence=0,
                start=0,
                end=tokens,
                finish_reason="stop",
                num_tool_calls=calls,
                num_malformed_calls=malformed,
                reward_components={"step": 0.25},
            )
            for _ in range(turns)
        ),
        sequences=(),
        reward_components={"end": reward - 0.25 * turns},
        messages=(),
        error="down" if stop is StopReason.TOOL_ERROR else "",
    )


def test_failures_are_counted_apart_and_enter_no_mean():
    summary = summarise([trajectory(1.0), trajectory(0.5, turns=2), trajectory(stop=StopReason.TOOL_ERROR)], name="x")
    assert (summary.num_episodes, summary.num_failed) == (2, 1)
    assert summary.success_rate == 0.5
    assert summary.mean_reward == 0.75
    assert summary.mean_turns == 1.5
    assert summary.mean_sampled_tokens == 15
    assert summary.stop_reasons == {"completed": 2, "tool_error": 1}
    # step: 0.25 and 2 x 0.25; end: 0.75 and 0.0
    assert summary.components == {"end": 0.375, "step": 0.375}


def test_format_compliance_is_the_share_of_parsed_calls():
    assert summarise([trajectory(calls=3, malformed=1), trajectory(calls=1)], name="x").format_compliance == 0.75
    assert summarise([trajectory(calls=0)], name="x").format_compliance == 1.0


def test_nothing_scored_gives_no_rate_and_the_widest_interval():
    summary = summarise([trajectory(stop=StopReason.TOOL_ERROR)], name="x")
    assert math.isnan(summary.success_rate)
    assert (summary.success_low, summary.success_high) == (0.0, 1.0)


def test_the_wilson_interval_of_eight_in_ten():
    # centre (0.8 + 1.9207/10) / (1 + 3.8415/10) = 0.7167; half width 0.2266
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)


def test_pass_at_k_is_one_minus_the_chance_of_drawing_only_failures():
    # 4 samples, 1 correct: pass@1 = 1/4, pass@2 = 1 - C(3,2)/C(4,2) = 1/2, pass@4 = 1
    assert [pass_at_k(4, 1, k=k) for k in (1, 2, 4)] == [0.25, 0.5, 1.0]
    with pytest.raises(ValueError, match="k is 5"):
        pass_at_k(4, 1, k=5)


def test_group_pass_at_k_leaves_out_groups_with_too_few_scored_members():
    good = Group(group_id="a", trajectories=(trajectory(1.0), trajectory(0.0), trajectory(0.0), trajectory(0.0)))
    small = Group(group_id="b", trajectories=(trajectory(1.0), trajectory(stop=StopReason.TOOL_ERROR)))
    assert group_pass_at_k([good, small], k=2) == 0.5


async def test_evaluating_the_oracle_through_the_loop(renderer):
    runner = Runner(engine=ScriptedEngine([()]), renderer=renderer, agent=PolicyAgent("oracle"))
    groups = evaluation_groups("agentenv/GuessNumber-v0", num_episodes=20, seed=0, env_kwargs={})
    summary, trajectories = await evaluate(runner, groups, name="oracle")
    assert summary.success_rate == 1.0
    assert len({t.seed for t in trajectories}) == 20


def test_different_purposes_use_different_seeds():
    one, other = (
        {g.seed for g in evaluation_groups("e", num_episodes=50, seed=0, env_kwargs={}, purpose=purpose)}
        for purpose in ("validation", "test")
    )
    assert one.isdisjoint(other)
