"""Paired comparison: differences by hand, intervals that cover, and episodes that failed."""

import json
import math

import numpy as np
import pytest

from agentenv import StopReason, Trajectory, Turn
from agentenv.compare import METHOD, compare, paired_bootstrap
from agentenv.errors import UsageError


def episode(seed, reward, *, turns=1, failed=False, metrics=None):
    return Trajectory(
        env_id="e",
        task_id="t",
        group_id=str(seed),
        member=0,
        seed=seed,
        stop_reason=StopReason.ENGINE_ERROR if failed else StopReason.COMPLETED,
        turns=tuple(Turn(sequence=0, start=0, end=4, finish_reason="stop") for _ in range(turns)),
        sequences=(),
        reward_components={"end": reward},
        messages=(),
        error="down" if failed else "",
        metrics=metrics or {},
    )


def episodes(*rewards, **options):
    return [episode(seed, reward, **options) for seed, reward in enumerate(rewards)]


def rows_of(result, player):
    return {row.metric: row for row in result.differences if row.player == player}


def test_differences_are_means_over_pairs():
    result = compare(
        {"a": episodes(0.0, 1.0, 0.0, 0.5), "b": episodes(1.0, 1.0, 0.5, 0.25, turns=2)}, env_id="e", seed=0
    )
    rows = rows_of(result, "b")
    assert [row.baseline for row in rows.values()] == ["a"] * 4
    assert rows["success"].difference == 0.25
    assert rows["reward"].difference == (1.0 + 0.0 + 0.5 - 0.25) / 4
    assert (rows["reward"].num_pairs, rows["reward"].num_higher, rows["reward"].num_lower) == (4, 2, 1)
    assert rows["turns"].difference == 1.0
    assert rows["sampled_tokens"].difference == 4.0
    assert rows["turns"].low == rows["turns"].high == 1.0
    assert [s.name for s in result.summaries] == ["a", "b"]
    assert result.method == METHOD


def test_a_pair_in_which_either_failed_does_not_count_and_the_error_is_told():
    first = [episode(0, 1.0), episode(1, 0.0, failed=True), episode(2, 0.0)]
    second = [episode(0, 0.0), episode(1, 1.0), episode(2, 1.0)]
    result = compare({"a": first, "b": second}, env_id="e", seed=0)
    reward = rows_of(result, "b")["reward"]
    assert (reward.num_pairs, reward.difference) == (2, 0.0)
    assert result.errors == {"a": "down"}
    assert [s.num_failed for s in result.summaries] == [1, 0]


def test_a_player_that_never_played_has_no_difference_and_json_has_no_nan():
    dead = [episode(seed, 0.0, failed=True) for seed in range(3)]
    result = compare({"a": episodes(1.0, 1.0, 1.0), "dead": dead}, env_id="e", seed=0)
    reward = rows_of(result, "dead")["reward"]
    assert math.isnan(reward.difference)
    assert reward.num_pairs == 0
    text = json.dumps(result.as_dict(), allow_nan=False)
    assert json.loads(text)["differences"][1]["difference"] is None


def test_tokens_that_an_endpoint_did_not_report_are_left_out_pair_by_pair():
    told = [episode(0, 1.0, metrics={"reported_tokens": 14.0}), episode(1, 1.0, metrics={"unreported_turns": 1.0})]
    tokens = rows_of(compare({"a": episodes(1.0, 1.0), "b": told}, env_id="e", seed=0), "b")["sampled_tokens"]
    assert (tokens.num_pairs, tokens.difference) == (1, 10.0)
    assert math.isnan(tokens.low), "one pair has no interval"


def test_every_later_player_is_compared_with_the_first():
    result = compare({name: episodes(0.0, 1.0) for name in "abc"}, env_id="e", seed=0)
    assert {(row.player, row.baseline) for row in result.differences} == {("b", "a"), ("c", "a")}
    assert compare({"a": episodes(1.0)}, env_id="e", seed=0).differences == ()


def test_players_that_played_other_seeds_are_not_paired():
    with pytest.raises(UsageError, match="did not play the same seeds"):
        compare({"a": [episode(0, 1.0)], "b": [episode(1, 1.0)]}, env_id="e", seed=0)
    with pytest.raises(UsageError, match="nobody"):
        compare({}, env_id="e", seed=0)


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly_the_same():
    difference = np.random.default_rng(0).normal(0.2, 1.0, size=200)
    once, again, other = (paired_bootstrap(difference, seed=seed) for seed in (1, 1, 2))
    assert once == again
    assert once != other
    assert once == pytest.approx(other, abs=0.02)


def test_the_interval_agrees_with_the_normal_one_and_narrows_with_pairing():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 5, size=400)
    first, second = difficulty + rng.normal(0, 1, 400), difficulty + 0.5 + rng.normal(0, 1, 400)
    low, high = paired_bootstrap(second - first, seed=0)
    mean, half = (second - first).mean(), 1.96 * (second - first).std(ddof=1) / math.sqrt(400)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.02)
    unpaired = 1.96 * math.hypot(first.std(), second.std()) / math.sqrt(400)
    assert high - low < unpaired


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = paired_bootstrap(rng.normal(0.3, 1.0, size=60), seed=trial, num_resamples=1000)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_many_episodes_are_resampled_in_blocks_of_bounded_memory():
    low, high = paired_bootstrap(np.repeat([0.0, 1.0], 20_000), seed=0, num_resamples=300)
    assert low < 0.5 < high
    assert high - low < 0.02
