"""A reward that is no usable number fails its episode; it is never a 0, and a batch of them is never a step."""

import math

import pytest

from agentenv.errors import EpisodeError, RolloutsFailed
from agentenv.reward import MAX_REWARD, Reward, score_group
from agentenv.runner import GroupSpec, Runner
from agentenv.trainers.config import EnvConfig
from agentenv.trainers.rollouts import MAX_GROUP_ATTEMPTS, Rollouts
from agentenv.trainers.samples_from import assign
from agentenv.trainers.scheduler import Scheduler
from agentenv.trainers.source import GroupSource
from agentenv.trajectory import StopReason
from tests.faults.desk import Inline, Told, bad_then_good, runner_of, tally_of


class Ugly:
    """Has no number and no repr."""

    def __float__(self) -> float:
        raise OSError("no number")

    def __repr__(self) -> str:
        raise OSError("no repr")


VALUES = [
    math.nan, math.inf, -math.inf, None, "1.0", "x" * 10_000_000, [1.0], 1j, 10**400, 1e308, -1e13, Ugly(), object(),
]  # fmt: skip


@pytest.mark.fault(
    "reward NaN, inf, None, str, huge, no number",
    then="next episode is scored",
    metric="agentenv_episodes_total{reward_error}",
)
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
async def test_a_reward_that_cannot_be_trained_on_is_a_failure_and_no_number(renderer, value):
    bad, _ = await bad_then_good(renderer, Inline, Told("value", lambda: value))
    assert bad.stop_reason is StopReason.REWARD_ERROR
    assert bad.reward_components == {}
    assert len(bad.error) < 1000


async def test_the_largest_reward_is_taken_and_its_weight_counts(renderer):
    played, _ = await bad_then_good_free(renderer, MAX_REWARD)
    assert played.reward == MAX_REWARD
    with pytest.raises(EpisodeError, match=r"returned 1e\+12, 2e\+12 with its weight; at most 1e\+12"):
        Reward(name="r", function=len, weight=2.0).check(MAX_REWARD)


async def bad_then_good_free(renderer, value):
    runner = runner_of(renderer, lambda which: Inline(Told("value", lambda: value)))
    group = await runner.run_group(GroupSpec(group_id="g", env_id="test/Harmful-v0"))
    return group.trajectories[0], runner


@pytest.mark.fault(
    "group reward huge or no number", then="the group can be scored again", metric="rollout/stop/reward_error"
)
@pytest.mark.parametrize("value", [math.nan, None, "x", 10**400, 1e308])
async def test_a_group_reward_that_is_no_number_is_a_failure_of_the_reward_side(renderer, value):
    played, _ = await bad_then_good_free(renderer, 1.0)
    component = Reward(name="bonus", function=lambda members: [value], when="group", inline=True)
    with pytest.raises(EpisodeError) as raised:
        await score_group([component], [played])
    assert (raised.value.side, raised.value.where) == ("reward", "bonus")
    (scored,) = await score_group([Reward(name="b", function=lambda m: [0.5], when="group", inline=True)], [played])
    assert scored.reward == 1.5


def rollouts_of(runner: Runner) -> Rollouts:
    source = GroupSource(env=EnvConfig(id="agentenv/GuessNumber-v0"), seed=0, group_size=2)
    return Rollouts(runner=runner, scheduler=Scheduler(max_staleness=0, groups_per_step=1), source=source)


@pytest.mark.fault(
    "a whole batch fails", then="the next batch trains", metric="rollout/abandoned_groups, rollout/retries"
)
async def test_a_batch_in_which_all_fails_is_never_handed_to_the_trainer(renderer):
    bad_attempts = {f"{0}" if n == 0 else f"0.{n}" for n in range(MAX_GROUP_ATTEMPTS)}

    def make(which):
        is_bad = which.group_id in bad_attempts
        return Inline(Told("value", lambda: math.nan) if is_bad else Told())

    runner = runner_of(renderer, make, max_retries=1)
    async with rollouts_of(runner) as rollouts:
        (group,) = rollouts.take(await rollouts.next_batch())
        counts = rollouts.take_counts()
    assert group.group_id == "1"
    assert [t.reward for t in group.trajectories] == [1.0, 1.0]
    assert counts == {"rollout/abandoned_groups": 1.0, "rollout/retries": MAX_GROUP_ATTEMPTS * 2.0}
    assert tally_of(runner).num_ended[StopReason.REWARD_ERROR] == MAX_GROUP_ATTEMPTS * 2 * 2


@pytest.mark.fault("every batch fails", then="the run ends with the cause", metric="the error that ends the run")
async def test_a_run_in_which_nothing_can_be_scored_ends_with_the_reason(renderer):
    runner = runner_of(renderer, lambda which: Inline(Told("value", lambda: None)))
    async with rollouts_of(runner) as rollouts:
        with pytest.raises(RolloutsFailed, match="returned None; a finite number is needed"):
            await rollouts.next_batch()


async def test_a_failed_member_gives_no_sample(renderer):
    def make(which):
        return Inline(Told("value", lambda: math.inf if which.member == 0 else float(which.member)))

    runner = runner_of(renderer, make)
    group = await runner.run_group(GroupSpec(group_id="g", env_id="test/Harmful-v0", size=3))
    samples = assign([group], advantage="grpo", divide_by_std=False, drop_zero_variance=True)
    assert {sample.sample_id.split("/")[1] for sample in samples} == {"1", "2"}
    # the mean of 1 and 2 is 1.5; the failed member enters no baseline
    assert sorted({float(sample.advantage_T[sample.is_sampled_T][0]) for sample in samples}) == [-0.5, 0.5]
