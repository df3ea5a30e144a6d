"""Every shipped environment keeps every promise, on both splits, with honest thresholds."""

import numpy as np
import pytest

from agentenv import Message, check_env, make_bare, registered

IDS = [entry.env_id for entry in registered() if entry.env_id.startswith("agentenv/")]


def mean_return(env, policy, *, num_seeds):
    total = 0.0
    rng = np.random.default_rng(0)
    for seed in range(num_seeds):
        env.reset(seed=seed)
        is_over = False
        while not is_over:
            turn = policy(env, rng)
            action = turn.to_dict() if isinstance(turn, Message) else turn
            _, value, terminated, truncated, _ = env.step(action)
            total += value
            is_over = terminated or truncated
    return total / num_seeds


def test_the_catalogue_holds_the_first_environments():
    names = {"agentenv/GuessNumber-v0", "agentenv/Calculator-v0", "agentenv/GSM8K-v0", "agentenv/Wordle-v0"}
    assert names <= set(IDS)


@pytest.mark.parametrize("env_id", IDS)
def test_every_promise_is_kept_and_none_is_skipped(env_id):
    report = check_env(env_id, num_seeds=10)
    assert {status for _, status, _ in report.rows} == {"ok"}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("env_id", IDS)
def test_thresholds_hold_over_200_seeds(env_id, split):
    env = make_bare(env_id, split=split)
    assert mean_return(env, lambda env, rng: env.oracle(), num_seeds=200) >= env.oracle_threshold
    assert mean_return(env, lambda env, rng: env.random_action(rng), num_seeds=200) <= env.random_threshold


@pytest.mark.parametrize("env_id", IDS)
def test_thresholds_leave_room_to_learn(env_id):
    env = make_bare(env_id)
    assert env.random_threshold < 0.5 < 0.9 < env.oracle_threshold <= 1.0


@pytest.mark.parametrize("env_id", IDS)
def test_demonstrations_are_playable(env_id):
    env = make_bare(env_id)
    assert mean_return(env, lambda env, rng: env.demonstrate(rng), num_seeds=20) > 0


@pytest.mark.parametrize("env_id", IDS)
def test_the_class_says_what_the_reward_is(env_id):
    assert "Reward: 1.0" in (type(make_bare(env_id)).__doc__ or "")
