"""Self-play through the whole trainer: both seats are trained on, and an older version can be the opponent."""

import asyncio
import dataclasses

import pytest

from agentenv.engine.weights import weights_checksum
from agentenv.player import open_player, parse_player
from agentenv.runner import GroupSpec
from agentenv.store import TrajectoryStore
from agentenv.trainers.command import train
from agentenv.trainers.model import load_policy, named_weights

CONFIG = """
num_threads: 1
env: {id: agentenv/Nim-v0, kwargs: {opponent: self}}
model: {tiny: {hidden_size: 32, num_heads: 2}}
engine: {max_slots: 32, max_length: 512}
runner: {limits: {max_turn_tokens: 24, max_context_tokens: 512}}
sft: {num_demonstrations: 1536, batch_size: 16, learning_rate: 8e-3}
algorithm: {advantage: grpo, loss: {policy: ppo_clip}}
trainer: {num_steps: 2, groups_per_step: 2, group_size: 4, optimizer: {learning_rate: 1e-3}}
evaluation: {every: 2, num_validation: 4, num_test: 4}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short self-play run."""
    root = tmp_path_factory.mktemp("self_play")
    (root / "run.yaml").write_text(CONFIG)
    result = train(root / "run.yaml", [f"output_dir={root}"], resume=False, dry_run=False)
    assert result is not None
    return result.folder


def stored(run, phase):
    return [row.trajectory for row in TrajectoryStore(run / "trajectories").scan(phase=phase)]


def test_an_update_learns_from_both_seats_of_every_game(run):
    played = stored(run, "rl")
    games: dict[tuple[str, int], dict[str, float]] = {}
    for trajectory in played:
        assert trajectory.task_id == ("first", "second")[trajectory.member % 2]
        games.setdefault((trajectory.group_id, trajectory.member // 2), {})[trajectory.task_id] = trajectory.reward
    assert len(games) == 2 * 2 * 4  # steps, groups, games
    whole = [rewards for rewards in games.values() if len(rewards) == 2]
    # the others were given up by the first seat before the second had a turn
    assert whole
    assert all(set(rewards) == {"first"} for rewards in games.values() if len(rewards) == 1)
    assert all(sorted(rewards.values()) == [0.0, 1.0] for rewards in whole)
    versions = {span.version for t in played for turn in t.turns for span in turn.weight_versions}
    assert versions == {0, 1}  # the engine sampled every turn of every seat
    assert _checksum(run / "start") != _checksum(run / "model")


def test_demonstrations_and_measurements_are_played_against_the_script(run):
    # one trajectory per seed: the other seat belongs to the environment
    assert len(stored(run, "demonstrations")) == 1536
    assert len(stored(run, "after")) == 4


async def test_a_frozen_copy_takes_the_other_seat_and_gives_no_trajectory(run):
    async with asyncio.timeout(120), open_player(parse_player(f"model:{run / 'model'}")) as runner:
        runner.config = runner.config.model_copy(update={"limits": _limits(runner.config.limits)})
        frozen = {"opponent": f"model:{run / 'start'}"}
        spec = GroupSpec(group_id="0", env_id="agentenv/Nim-v0", env_kwargs=frozen, seed=2, size=3)
        group, again = await runner.run_all([spec, dataclasses.replace(spec, group_id="1")])
    assert [t.member for t in group.trajectories] == [0, 1, 2]
    assert len({t.task_id for t in (*group.trajectories, *again.trajectories)}) == 1  # the seat that the seed draws
    assert all(t.is_scored and t.turns for t in group.trajectories)


def _limits(limits):
    return limits.model_copy(update={"max_turn_tokens": 24, "max_context_tokens": 512})


def _checksum(folder):
    return weights_checksum(named_weights(load_policy(folder).model))
