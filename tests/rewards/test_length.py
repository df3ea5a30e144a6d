"""Length shaping, at the points where the formulas can be read off."""

import numpy as np
import pytest

from agentenv import StopReason, Trajectory, Turn
from agentenv.errors import UsageError
from agentenv.rewards.length import cosine_length, shorter_in_group, soft_overlong
from agentenv.trajectory import TokenSequence


def test_the_overlong_penalty_falls_linearly_over_the_buffer():
    values = [soft_overlong(length, max_length=100, buffer=20) for length in (0, 80, 85, 90, 100, 101)]
    assert values == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def test_the_cosine_moves_from_its_first_to_its_last_value():
    assert cosine_length(0, is_right=True, max_length=100) == pytest.approx(2.0)
    assert cosine_length(50, is_right=True, max_length=100) == pytest.approx(1.5)
    assert cosine_length(0, is_right=False, max_length=100) == pytest.approx(-10.0)
    assert cosine_length(50, is_right=False, max_length=100) == pytest.approx(-5.0)
    assert cosine_length(100, is_right=True, max_length=100) == -10.0


def member(length, reward):
    sequence = TokenSequence(
        token_ids=np.zeros(length, np.int32), logprobs=np.zeros(length, np.float32), is_sampled=np.ones(length, bool)
    )
    return Trajectory(
        env_id="x",
        task_id="",
        group_id="",
        member=0,
        seed=0,
        stop_reason=StopReason.COMPLETED,
        turns=(Turn(sequence=0, start=0, end=length, finish_reason="stop"),),
        sequences=(sequence,),
        reward_components={"right": reward},
        messages=(),
    )


def test_in_a_group_the_short_are_preferred_and_wrong_ones_never_gain():
    group = [member(10, 1.0), member(20, 1.0), member(30, 1.0), member(10, 0.0), member(30, 0.0)]
    assert shorter_in_group(group) == [0.5, 0.0, -0.5, 0.0, -0.5]
    assert shorter_in_group([member(5, 1.0), member(5, 0.0)]) == [0.0, 0.0]


def test_lengths_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="buffer is 0"):
        soft_overlong(1, max_length=10, buffer=0)
    with pytest.raises(UsageError, match="max_length is 0"):
        cosine_length(1, is_right=True, max_length=0)
