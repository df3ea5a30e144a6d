"""Mixes of environments: shares that hold from the beginning, and an order that needs a number only."""

import numpy as np
import pytest

from agentenv.errors import UsageError
from agentenv.trainers.config import EnvConfig, EnvPart
from agentenv.trainers.mixture import Mixture, chosen
from agentenv.trainers.source import group_source


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.5, 0.25, 0.25), (1.0, 2.0, 3.0, 4.0)])
@pytest.mark.parametrize("seed", range(5))
def test_after_any_number_of_groups_every_count_is_within_three_of_its_share(weights, seed):
    mixture = Mixture(weights=weights, seed=seed)
    counts = [0] * len(weights)
    for number in range(500):
        counts[mixture.at(number)] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - (number + 1) * weight / sum(weights)) <= 3


def test_points_of_the_golden_sequence_fall_to_who_owns_their_place():
    # from 0 the points are 0, .618, .236, .854, .472, .090; the first environment owns [0, .75)
    assert chosen(np.arange(6), offset=0.0, weights=(3.0, 1.0)).tolist() == [0, 0, 0, 1, 0, 0]
    # from .2 they are .2, .818, .436, .054, .672, .290
    assert chosen(np.arange(6), offset=0.2, weights=(3.0, 1.0)).tolist() == [0, 1, 0, 0, 0, 0]


def test_the_position_counts_earlier_groups_of_the_same_environment():
    mixture = Mixture(weights=(2.0, 1.0), seed=4)
    seen = [0, 0]
    for number in range(60):
        part = mixture.at(number)
        assert mixture.position(number) == seen[part]
        seen[part] += 1


def test_other_seeds_begin_elsewhere():
    orders = {tuple(Mixture(weights=(1.0, 1.0), seed=seed).at(n) for n in range(12)) for seed in range(20)}
    assert len(orders) > 3


@pytest.mark.parametrize("weights", [(), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (float("inf"),)])
def test_weights_that_are_not_positive_numbers_are_refused(weights):
    with pytest.raises(UsageError, match="positive numbers are needed"):
        Mixture(weights=weights, seed=0)


def test_a_source_plays_all_environments_and_each_walks_its_own_tasks(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "p{i}", "task_id": "t{i}"}}\n' for i in range(5)))
    also = (EnvPart(id="agentenv/Calculator-v0", tasks=str(rows), weight=0.5, kwargs={"difficulty": 1}),)
    source = group_source(EnvConfig(id="agentenv/GuessNumber-v0", also=also), seed=7, group_size=2)
    specs = [source.group(number) for number in range(30)]
    calculators = [spec for spec in specs if spec.env_id == "agentenv/Calculator-v0"]
    assert len(calculators) == pytest.approx(10, abs=1)
    # an epoch is a permutation of the five rows, whatever is played between them
    assert {spec.task.task_id for spec in calculators[:5] if spec.task} == {f"t{i}" for i in range(5)}
    assert all(spec.task is None for spec in specs if spec.env_id == "agentenv/GuessNumber-v0")
    assert [source.group(number) for number in range(30)] == specs


def test_one_environment_is_played_as_before_there_were_mixes():
    source = group_source(EnvConfig(id="agentenv/GuessNumber-v0", kwargs={"high": 9}), seed=3, group_size=2)
    spec = source.group(5)
    assert (spec.env_id, spec.env_kwargs, spec.group_id, spec.task) == (
        "agentenv/GuessNumber-v0",
        {"high": 9},
        "5",
        None,
    )
    assert source.mixture.position(5) == 5
