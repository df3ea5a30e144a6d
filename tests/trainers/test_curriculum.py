"""Difficulty that follows a success rate: the rule in numbers, its bounds, and what a restart keeps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv.errors import CheckpointError, UsageError
from agentenv.trainers.checkpoint import CheckpointFolder
from agentenv.trainers.config import EnvConfig, EnvPart
from agentenv.trainers.curriculum import MAX_CHANGE, Course, Curriculum
from agentenv.trainers.loop import train
from agentenv.trainers.source import group_source
from agentenv.trainers.virtual_time import run_virtually
from tests.trainers.test_loop import Bench


def one(*, target=0.5, start=2.0, low=1, high=5, seed=0):
    return Curriculum({0: Course(target=target, start=start, low=low, high=high)}, seed=seed)


@pytest.mark.parametrize(
    ("rates", "level"),
    [
        ([0.5], 2.0),  # on target
        ([0.7], 2.1),  # 0.5 (0.7 - 0.5)
        ([0.2, 0.4], 1.9),  # their mean is 0.3
        ([1.0], 2.25),  # 0.5 (1 - 0.5), the most
        ([0.0], 1.75),
    ],
)
def test_a_step_moves_the_level_by_half_the_distance_from_the_target(rates, level):
    curriculum = one()
    curriculum.observe([(number, 0, rate) for number, rate in enumerate(rates)])
    assert curriculum.levels[0] == pytest.approx(level)


def test_a_far_target_moves_it_by_a_quarter_at_most():
    curriculum = one(target=0.1)
    curriculum.observe([(0, 0, 1.0)])  # 0.5 (1 - 0.1) would be 0.45
    assert curriculum.levels[0] == 2.25


def test_environments_follow_their_own_groups_and_others_stay():
    curriculum = Curriculum({1: Course(target=0.5, start=3.0, low=1, high=5)}, seed=0)
    curriculum.observe([(0, 0, 1.0), (1, 0, 1.0)])
    assert curriculum.levels == {1: 3.0}
    assert curriculum.difficulty(0, part=0) is None


@settings(max_examples=50, deadline=None)
@given(rates=st.lists(st.floats(0, 1), min_size=1, max_size=60), target=st.floats(0.05, 0.95))
def test_levels_stay_in_range_and_move_in_bounded_steps(rates, target):
    curriculum = one(target=target, low=1, high=3)
    before = 2.0
    for number, rate in enumerate(rates):
        curriculum.observe([(number, 0, rate)])
        assert 1 <= curriculum.levels[0] <= 3
        assert abs(curriculum.levels[0] - before) <= MAX_CHANGE + 1e-12
        before = curriculum.levels[0]


def test_a_level_between_two_difficulties_gives_both_in_its_proportion():
    curriculum = one(start=2.25)
    given = [curriculum.difficulty(number, part=0) for number in range(2000)]
    assert set(given) == {2, 3}
    assert given.count(3) / 2000 == pytest.approx(0.25, abs=0.03)


def test_the_hardest_level_gives_the_hardest_difficulty_and_no_harder():
    curriculum = one(start=5.0)
    assert {curriculum.difficulty(number, part=0) for number in range(100)} == {5}


def test_a_group_keeps_the_difficulty_it_was_admitted_with():
    curriculum = one(start=2.0)
    assert curriculum.difficulty(7, part=0) == 2
    for number in range(8, 20):
        curriculum.observe([(number, 0, 1.0)])
    assert curriculum.levels[0] == 5.0
    assert curriculum.difficulty(7, part=0) == 2  # a retry
    other = one()
    other.restore(curriculum.to_json())
    assert other.difficulty(7, part=0) == 2  # a restart
    assert other.levels == curriculum.levels


def test_it_finds_the_level_at_which_the_rate_is_the_target():
    # success falls from 1 at level 1 to 0 at level 5: the target 0.25 is met at level 4
    curriculum = one(target=0.25, start=1.0)
    for number in range(200):
        curriculum.observe([(number, 0, 1 - (curriculum.levels[0] - 1) / 4)])
    assert curriculum.levels[0] == pytest.approx(4.0, abs=0.01)


def test_a_checkpoint_of_other_environments_is_refused():
    with pytest.raises(CheckpointError, match=r"levels for environments \[\], the run for \[0\]"):
        one().restore(Curriculum({}, seed=0).to_json())


def test_an_environment_without_a_difficulty_is_refused():
    with pytest.raises(UsageError, match="GuessNumber-v0 has no option difficulty"):
        group_source(EnvConfig(id="agentenv/GuessNumber-v0", target_success=0.5), seed=0, group_size=2)


def test_a_start_outside_the_range_is_refused():
    env = EnvConfig(id="agentenv/Nim-v0", kwargs={"difficulty": 9}, target_success=0.5)
    with pytest.raises(UsageError, match="difficulty is 9; allowed are 1 to 5"):
        group_source(env, seed=0, group_size=2)


MIX = EnvConfig(
    id="agentenv/Nim-v0",
    target_success=0.6,
    also=(EnvPart(id="agentenv/Kuhn-v0", target_success=0.3, weight=2.0), EnvPart(id="agentenv/GuessNumber-v0")),
)


def bench(folder, **trainer):
    """A simulated run over the mix, which notes what it plays."""
    made = Bench(folder, **trainer)
    config = made.crew.config.model_copy(update={"env": MIX})
    specs = {}
    run_group = made.runner.run_group

    async def noting(spec):
        specs[int(spec.group_id.partition(".")[0])] = (spec.env_id, spec.env_kwargs.get("difficulty"))
        return await run_group(spec)

    made.runner.run_group = noting
    made.crew = type(made.crew)(**{**vars(made.crew), "config": config})
    return made, specs


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_run_that_stopped_and_went_on_plays_what_an_uninterrupted_one_plays(tmp_path, staleness):
    settings = {"max_staleness": staleness, "deterministic": True}
    whole, expected = bench(tmp_path / "whole", num_steps=12, **settings)
    end = whole.train()
    assert {env_id for env_id, _ in expected.values()} == {part.id for part in MIX.parts}
    assert len({difficulty for env_id, difficulty in expected.values() if env_id == "agentenv/Nim-v0"}) > 1

    first, played = bench(tmp_path / "cut", num_steps=5, **settings)
    first.train()
    checkpoint = CheckpointFolder(tmp_path / "cut").newest()
    assert checkpoint is not None
    second, rest = bench(tmp_path / "cut", num_steps=12, **settings)
    second.engine.version = 5
    again = run_virtually(train(second.crew, start=checkpoint.progress, waiting=checkpoint.waiting()))

    assert {**played, **rest} == expected
    assert again.curriculum == end.curriculum
    assert [line.get("curriculum/agentenv/Nim-v0") for line in (*first.lines, *second.lines)] == [
        line.get("curriculum/agentenv/Nim-v0") for line in whole.lines
    ]
