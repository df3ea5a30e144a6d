"""From groups of trajectories to samples: who is compared with whom, and what lands in which column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from agentenv.errors import DataError, UsageError
from agentenv.trainers.credit import ADVANTAGES, AdvantageName
from agentenv.trainers.critic import with_advantages
from agentenv.trainers.losses import LossConfig, count_denominators, packed_loss
from agentenv.trainers.packing import pack
from agentenv.trainers.samples_from import assign, cross_entropy_samples
from agentenv.trajectory import Group, StopReason, TokenSequence, Trajectory, Turn, VersionSpan

WITHOUT_CRITIC: list[AdvantageName] = [name for name in ADVANTAGES if name != "gae"]


def sequence(pattern: str) -> TokenSequence:
    """`.` is an observation token, `s` a sampled one; ids count from 10, log-probs are -0.5."""
    is_sampled = np.array([mark == "s" for mark in pattern])
    return TokenSequence(
        token_ids=np.arange(10, 10 + len(pattern), dtype=np.int32),
        logprobs=np.where(is_sampled, -0.5, 0.0).astype(np.float32),
        is_sampled=is_sampled,
    )


def turn(start: int, end: int, *, sequence: int = 0, reward: float = 0.0, version: int = 0) -> Turn:
    return Turn(
        sequence=sequence,
        start=start,
        end=end,
        finish_reason="stop",
        weight_versions=(VersionSpan(version=version, start=0, end=end - start),),
        reward_components={"turn": reward},
    )


def trajectory(
    member: int,
    *,
    reward: float,
    patterns: Sequence[str] = (".ss",),
    turns: Sequence[Turn] = (turn(1, 3),),
    stop_reason: StopReason = StopReason.COMPLETED,
) -> Trajectory:
    return Trajectory(
        env_id="test/Env-v0",
        task_id="task",
        group_id="g",
        member=member,
        seed=0,
        stop_reason=stop_reason,
        turns=tuple(turns),
        sequences=tuple(sequence(pattern) for pattern in patterns),
        reward_components={"goal": reward},
        messages=(),
    )


def group(*trajectories: Trajectory) -> Group:
    return Group(group_id="g", trajectories=trajectories)


def test_the_columns_of_a_sample_follow_from_its_turns():
    played = trajectory(
        0,
        reward=1.0,
        patterns=[".ss..s"],
        turns=[
            Turn(
                sequence=0,
                start=1,
                end=3,
                finish_reason="stop",
                weight_versions=(VersionSpan(version=4, start=0, end=1), VersionSpan(version=5, start=1, end=2)),
            ),
            turn(5, 6, version=6),
        ],
    )

    samples = assign([group(played, trajectory(1, reward=0.0))], advantage="rloo")

    assert [sample.sample_id for sample in samples] == ["g/0/0", "g/1/0"]
    sample = samples[0]
    assert sample.token_ids_T.tolist() == [10, 11, 12, 13, 14, 15]
    assert sample.version_T.tolist() == [-1, 4, 5, -1, -1, 6]
    assert sample.turn_T.tolist() == [-1, 0, 0, -1, -1, 1]
    assert sample.advantage_T.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert sample.policy_weight_T.tolist() == sample.kl_weight_T.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert not sample.cross_entropy_weight_T.any()


def test_a_token_at_position_zero_carries_no_weight_because_nothing_predicts_it():
    played = trajectory(0, reward=1.0, patterns=["ss"], turns=[turn(0, 2)])

    (sample,) = assign([group(played)], advantage="rloo")

    assert sample.is_sampled_T.tolist() == [True, True]
    assert sample.policy_weight_T.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_group_statistics_count_trajectories_and_not_their_sequences(name: AdvantageName):
    # Three sequences with reward 0 against one with reward 1; counted by sequence the mean would be 0.25.
    broken = trajectory(
        0,
        reward=0.0,
        patterns=[".s", ".ss", ".sss"],
        turns=[turn(1, 2), turn(1, 3, sequence=1), turn(1, 4, sequence=2)],
    )
    whole = trajectory(1, reward=1.0)

    samples = assign([group(broken, whole)], advantage=name, divide_by_std=False)

    size = {"grpo": 0.5, "rloo": 1.0}[name]
    assert [sample.advantage_T[1] for sample in samples] == [-size, -size, -size, size]


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_a_failed_member_leaves_the_baseline_and_the_loss(name: AdvantageName):
    failed = trajectory(1, reward=math.nan, stop_reason=StopReason.ENGINE_ERROR)
    others = [trajectory(0, reward=1.0), trajectory(2, reward=0.0)]

    with_failure = assign([group(others[0], failed, others[1])], advantage=name)
    without = assign([group(*others)], advantage=name)

    assert [sample.sample_id for sample in with_failure] == ["g/0/0", "g/2/0"]
    assert [s.advantage_T.tolist() for s in with_failure] == [s.advantage_T.tolist() for s in without]


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_a_turn_reward_reaches_the_gradient(name: AdvantageName):
    def gradient(turn_reward: float) -> torch.Tensor:
        rewarded = trajectory(0, reward=0.0, turns=[turn(1, 3, reward=turn_reward)])
        batch = pack(assign([group(rewarded, trajectory(1, reward=0.5))], advantage=name))
        logprob_T = batch.behaviour_logprob_T.clone().requires_grad_()
        loss, _ = packed_loss(
            batch, logprob_T=logprob_T, denominators=count_denominators(batch), config=LossConfig(policy="ppo_clip")
        )
        return torch.autograd.grad(loss, logprob_T)[0]

    # above 0.5 the tokens of the first trajectory are pushed up, below it down
    assert gradient(1.0)[1] < 0 < gradient(0.0)[1]


def test_turn_advantages_differ_between_turns_of_one_sequence():
    two_turns = trajectory(0, reward=2.0, patterns=[".s.s"], turns=[turn(1, 2, reward=1.0), turn(3, 4)])

    first, second = assign([group(two_turns, trajectory(1, reward=5.0))], advantage="turn_rtg_loo")

    # returns-to-go 1 + 2 and 2 against 5 and, ended, 0
    assert first.advantage_T.tolist() == [0.0, -2.0, 0.0, 2.0]
    assert second.advantage_T.tolist() == [0.0, 2.0, 2.0]


def test_groups_without_variance_stay_with_advantage_zero_unless_dropped():
    silent = group(trajectory(0, reward=0.3), trajectory(1, reward=0.3))
    loud = group(trajectory(0, reward=0.0), trajectory(1, reward=1.0))

    kept = assign([silent, loud], advantage="grpo")
    dropped = assign([silent, loud], advantage="grpo", drop_zero_variance=True)

    assert [sample.advantage_T.any() for sample in kept] == [False, False, True, True]
    assert len(dropped) == 2
    assert all(sample.advantage_T.any() for sample in dropped)


def test_the_seats_of_a_game_are_compared_each_with_its_own():
    seats = [("X", 1.0), ("O", 0.0), ("X", 0.0), ("O", 0.0), ("X", 1.0), ("O", 0.5)]
    members = [replace(trajectory(i, reward=value), task_id=seat) for i, (seat, value) in enumerate(seats)]
    samples = assign([group(*members)], advantage="rloo")
    # X earned 1, 0, 1: against the others' mean 0.5, 1, 0.5. O earned 0, 0, 0.5: against 0.25, 0.25, 0
    expected = [0.5, -0.25, -1.0, -0.25, 0.5, 0.5]
    assert [float(sample.advantage_T[1]) for sample in samples] == pytest.approx(expected)


def test_a_seat_without_variance_is_dropped_and_the_other_one_stays():
    seats = [("X", 1.0), ("O", 0.5), ("X", 0.0), ("O", 0.5)]
    members = [replace(trajectory(i, reward=value), task_id=seat) for i, (seat, value) in enumerate(seats)]
    samples = assign([group(*members)], advantage="grpo", drop_zero_variance=True)
    assert [sample.sample_id for sample in samples] == ["g/0/0", "g/2/0"]


def test_gae_credits_an_empty_turn_to_the_token_before_it_and_carries_across_sequences():
    # turn 1 wrote nothing but earned 2; history was rewritten before turn 2, which is played in a second sequence
    played = trajectory(
        0,
        reward=4.0,
        patterns=[".s", "..s"],
        turns=[turn(1, 2, reward=1.0), turn(2, 2, reward=2.0), turn(2, 3, sequence=1)],
    )
    values = {"g/0/0": torch.tensor([9.0, 1.0]), "g/0/1": torch.tensor([9.0, 9.0, 3.0])}

    samples = assign([group(played)], advantage="gae")
    (first, second), _ = with_advantages(samples, values, whiten=False, gamma=1.0, lam=0.5)

    assert [sample.reward_T.tolist() for sample in samples] == [[0.0, 3.0], [0.0, 0.0, 4.0]]
    # last token: 4 - 3 = 1; first: (1 + 2) + 3 - 1 = 5, plus 0.5 * 1
    assert second.advantage_T.tolist() == [0.0, 0.0, 1.0]
    assert first.advantage_T.tolist() == [0.0, 5.5]
    # advantage + value
    assert second.return_T.tolist() == [0.0, 0.0, 4.0]
    assert first.return_T.tolist() == [0.0, 6.5]
    assert first.value_T.tolist() == [0.0, 1.0]


def test_a_reward_on_tokens_that_nobody_sampled_falls_to_the_last_sampled_one_before():
    # the turn covers tokens 1 to 3, and its last one was forced
    forced_end = trajectory(0, reward=2.0, patterns=[".ss."], turns=[turn(1, 4)])

    (sample,) = assign([group(forced_end)], advantage="gae")

    assert sample.reward_T.tolist() == [0.0, 0.0, 2.0, 0.0]


def test_a_reward_before_the_first_action_is_not_paid_to_the_neighbour():
    neighbour = trajectory(0, reward=0.0, patterns=[".s"], turns=[turn(1, 2)])
    rewarded_for_nothing = trajectory(
        1, reward=0.0, patterns=[".s"], turns=[turn(1, 1, reward=7.0), turn(1, 2, reward=1.0)]
    )
    values = {name: torch.zeros(2) for name in ("g/0/0", "g/1/0")}

    samples, _ = with_advantages(
        assign([group(neighbour, rewarded_for_nothing)], advantage="gae"), values, whiten=False
    )

    assert [sample.advantage_T.tolist() for sample in samples] == [[0.0, 0.0], [0.0, 1.0]]


def test_an_unknown_advantage_is_answered_with_the_near_miss():
    with pytest.raises(UsageError, match='Did you mean "rloo"'):
        assign([], advantage=cast(AdvantageName, "rlo"))


def test_a_scored_trajectory_without_a_finite_reward_is_refused():
    with pytest.raises(DataError, match="g/0"):
        assign([group(trajectory(0, reward=math.nan))], advantage="rloo")


def test_turns_that_disagree_with_their_sequence_are_refused():
    with pytest.raises(DataError, match=r"\[1, 9\)"):
        assign([group(trajectory(0, reward=1.0, turns=[turn(1, 9)]))], advantage="rloo")
    with pytest.raises(DataError, match="1 sampled tokens outside every turn"):
        assign([group(trajectory(0, reward=1.0, turns=[turn(1, 2)]))], advantage="rloo")


def test_episodes_in_which_nothing_was_sampled_give_no_sample():
    mute = trajectory(0, reward=0.0, patterns=["..."], turns=[])

    samples = assign([group(mute, trajectory(1, reward=1.0))], advantage="turn_rtg_loo")

    # but they are part of the comparison: an ended episode counts 0
    assert [sample.sample_id for sample in samples] == ["g/1/0"]
    assert samples[0].advantage_T.tolist() == [0.0, 1.0, 1.0]
    assert assign([group(mute)], advantage="grpo") == []


def test_supervised_samples_imitate_sampled_tokens_and_nothing_else():
    (sample,) = cross_entropy_samples([trajectory(0, reward=0.0)])

    assert sample.cross_entropy_weight_T.tolist() == [0.0, 1.0, 1.0]
    assert not sample.policy_weight_T.any()
    assert not sample.kl_weight_T.any()
    assert not sample.advantage_T.any()


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_tokens_that_no_weights_of_ours_sampled_are_refused(name: AdvantageName):
    foreign = trajectory(0, reward=1.0, turns=[turn(1, 3, version=-1)])
    with pytest.raises(DataError, match=r"sample g/0/0 has 2 tokens of no weight version: a scripted policy"):
        assign([group(foreign, trajectory(1, reward=0.0))], advantage=name)
    # to imitate them is fine: that needs no log-probs
    assert len(cross_entropy_samples([foreign])) == 1


def shortened(member: int, *, reward: float) -> Trajectory:
    """Three sequences, as two breaks leave them: turns 0 and 1, a summary as turn 2, then turns 3 and 4."""
    return trajectory(
        member,
        reward=reward,
        patterns=[".s.s.s", "..ss", "...s"],
        turns=[
            turn(1, 2, reward=0.25),
            turn(3, 4),
            turn(5, 6),
            turn(2, 4, sequence=1),
            turn(3, 4, sequence=2),
        ],
    )


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_all_sequences_of_a_shortened_history_share_the_credit_of_their_trajectory(name: AdvantageName):
    members = [shortened(0, reward=1.0), trajectory(1, reward=0.25), trajectory(2, reward=0.0)]

    samples = assign([group(*members)], advantage=name, divide_by_std=False)

    # returns 1.25, 0.25 and 0: three members, not five samples
    size = {"grpo": 1.25 - 0.5, "rloo": 1.25 - 0.125}[name]
    assert [sample.sample_id for sample in samples] == ["g/0/0", "g/0/1", "g/0/2", "g/1/0", "g/2/0"]
    for sample in samples[:3]:
        assert set(sample.advantage_T[sample.is_sampled_T].tolist()) == {size}
        assert not sample.advantage_T[~sample.is_sampled_T].any()
        assert sample.policy_weight_T.tolist() == sample.is_sampled_T.astype(float).tolist()
    # the summary's tokens are trained like those of any other turn
    assert samples[0].turn_T.tolist() == [-1, 0, -1, 1, -1, 2]


def test_returns_to_go_run_across_the_sequences_of_a_shortened_history():
    samples = assign([group(shortened(0, reward=1.0), trajectory(1, reward=0.5))], advantage="turn_rtg_loo")

    # returns-to-go 1.25, 1, 1, 1, 1 against 0.5 at the first turn and, ended, 0 at the others
    assert samples[0].advantage_T.tolist() == [0.0, 0.75, 0.0, 1.0, 0.0, 1.0]
    assert samples[1].advantage_T.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert samples[2].advantage_T.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert samples[3].advantage_T.tolist() == [0.0, -0.75, -0.75]


def test_a_break_changes_no_advantage_and_no_gradient_of_a_token():
    whole = trajectory(0, reward=1.0, patterns=[".s.s"], turns=[turn(1, 2), turn(3, 4)])
    broken = trajectory(0, reward=1.0, patterns=[".s", "...s"], turns=[turn(1, 2), turn(3, 4, sequence=1)])
    other = trajectory(1, reward=0.0)

    def gradients(played: Trajectory) -> list[float]:
        batch = pack(assign([group(played, other)], advantage="rloo"))
        logprob_T = batch.behaviour_logprob_T.clone().requires_grad_()
        loss, _ = packed_loss(
            batch, logprob_T=logprob_T, denominators=count_denominators(batch), config=LossConfig(policy="ppo_clip")
        )
        return torch.autograd.grad(loss, logprob_T)[0][batch.is_sampled_T].tolist()

    assert gradients(whole) == gradients(broken)
