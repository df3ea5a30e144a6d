"""Groups that cannot be scored are played again, and in the end given up without stopping the run."""

import pytest

from agentenv import ToolEnv
from agentenv.engine.protocol import Ack
from agentenv.engine.scripted import ScriptedEngine
from agentenv.errors import EngineError, RolloutsFailed
from agentenv.runner import Runner, RunnerConfig
from agentenv.trainers.config import EnvConfig
from agentenv.trainers.rollouts import MAX_GROUP_ATTEMPTS, Rollouts
from agentenv.trainers.scheduler import Scheduler
from agentenv.trainers.source import GroupSource
from agentenv.trainers.sync.publish import publish

SOURCE = GroupSource(env=EnvConfig(id="agentenv/GuessNumber-v0"), seed=0, group_size=2)


class Flaky(ToolEnv):
    """Cannot be set up as often as it is told."""

    inline = True
    failures_left = 0

    def setup(self, rng, task):
        if Flaky.failures_left > 0:
            Flaky.failures_left -= 1
            raise OSError("no database")
        return "go"


def rollouts_of(renderer, failures):
    Flaky.failures_left = failures
    from agentenv import Message

    engine = ScriptedEngine([renderer.turn_ids(Message(role="assistant", content="done"))])
    runner = Runner(engine=engine, renderer=renderer, config=RunnerConfig(max_retries=0), make_env=lambda spec: Flaky())
    scheduler = Scheduler(max_staleness=0, groups_per_step=1)
    return Rollouts(runner=runner, scheduler=scheduler, source=SOURCE)


async def play(rollouts):
    async with rollouts:
        return rollouts.take(await rollouts.next_batch())


async def test_a_group_in_which_every_member_failed_is_played_again(renderer):
    rollouts = rollouts_of(renderer, failures=2)
    (group,) = await play(rollouts)
    assert group.group_id == "0.1"
    assert rollouts.take_counts()["rollout/abandoned_groups"] == 0


@pytest.mark.fault("a group fails again and again", then="the next group trains", metric="rollout/abandoned_groups")
async def test_a_group_that_never_works_is_given_up_and_the_next_one_trains(renderer):
    rollouts = rollouts_of(renderer, failures=2 * MAX_GROUP_ATTEMPTS)
    (group,) = await play(rollouts)
    assert group.group_id == "1"
    assert [rollouts.take_counts()["rollout/abandoned_groups"] for _ in range(2)] == [1, 0]


async def test_one_failed_member_does_not_cost_the_group(renderer):
    (group,) = await play(rollouts_of(renderer, failures=1))
    assert (len(group.trajectories), len(group.scored)) == (2, 1)


async def test_an_engine_that_acknowledges_other_bytes_is_not_believed():
    class Lying(ScriptedEngine):
        async def update_weights(self, manifest):
            return Ack(version=manifest.version, checksum="0")

    engine = Lying([()])
    with pytest.raises(EngineError, match="acknowledged version 1 with checksum 0"):
        await publish(engine, {}, version=1)
    assert (await engine.health()).is_ready


def test_the_source_is_a_function_of_seed_and_number():
    assert SOURCE.group(7) == SOURCE.group(7)
    assert SOURCE.group(7).seed != SOURCE.group(8).seed
    retry = SOURCE.group(7, attempt=1)
    assert (retry.seed, retry.group_id) == (SOURCE.group(7).seed, "7.1")


async def test_a_set_up_in_which_nothing_can_be_played_ends_with_the_last_error(renderer):
    rollouts = rollouts_of(renderer, failures=10**9)
    with pytest.raises(RolloutsFailed, match="no database"):
        await play(rollouts)
    Flaky.failures_left = 0
