"""The adapter for reasoning-gym, against the real package: every generator runs, and most score their own answer."""

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed: pip install 'agentenv[reasoning-gym]'")

from agentenv import check_env
from agentenv.envs.adapters.reasoning_gym import generators
from agentenv.errors import EpisodeError, UsageError
from tests.envs.adapters.policies import at_random, cheating, global_states, make_bare, mean_return, oracle

ID = "adapter/ReasoningGym-v0"
WITHOUT_ANSWER = ("boxnet", "rush_hour")
NAMES = generators()


def test_there_are_105_generators():
    assert len(NAMES) == 105


@pytest.mark.parametrize("name", NAMES)
def test_every_generator_runs_repeats_itself_and_scores_its_own_answer(name):
    states = global_states()
    env, again = make_bare(ID, dataset=name), make_bare(ID, dataset=name)
    opening, _ = env.reset(seed=0)
    assert again.reset(seed=0)[0] == opening
    assert make_bare(ID, dataset=name, split="test").reset(seed=0)[0] != ""

    if name in WITHOUT_ANSWER:
        with pytest.raises(UsageError, match="stores no answer"):
            env.oracle()
    else:
        assert env.step(env.oracle())[1] == 1.0
    assert global_states() == states


def test_every_promise_is_kept_and_none_is_skipped():
    report = check_env(ID, num_seeds=10)
    assert {status for _, status, _ in report.rows} == {"ok"}


def test_policies_earn_what_they_should():
    for split in ("train", "test"):
        env = make_bare(ID, split=split)
        assert mean_return(env, oracle, num_seeds=200) == 1.0
        assert mean_return(env, at_random, num_seeds=200) <= env.random_threshold
        assert mean_return(env, cheating, num_seeds=50) == 0.0


def test_items_of_train_and_test_come_from_disjoint_seeds():
    train, test = ({_seed_of(split, seed) for seed in range(300)} for split in ("train", "test"))
    assert {seed % 2 for seed in train} == {0}
    assert {seed % 2 for seed in test} == {1}


def _seed_of(split, seed):
    env = make_bare(ID, split=split)
    env.reset(seed=seed)
    return env._generator.config.seed


@pytest.mark.parametrize(
    ("said", "reward"),
    [
        ("<answer>{}</answer>", 1.0),
        ("First I add. <answer>\n {} </answer>", 1.0),
        ("{}", 0.0),
        ("<answer>{}</answer><answer>{}</answer>", 0.0),
        ("<answer>it is {} or so</answer>", 0.0),
        ("<answer></answer>", 0.0),
    ],
)
def test_an_answer_stands_once_between_its_tags(said, reward):
    env = make_bare(ID)
    env.reset(seed=1)
    assert env.step(said.replace("{}", env.entry["answer"]))[1] == reward


def test_partial_scores_are_paid_on_request_only():
    env = make_bare(ID, partial=True)
    env.reset(seed=1)
    assert 0.0 < env.step(f"<answer>it is {env.entry['answer']}</answer>")[1] < 1.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dataset": "basic_arithmetics"}, 'Did you mean "basic_arithmetic"'),
        ({"config": {"max_digit": 3}}, "cannot be made with"),
        ({"config": {"min_digits": 5, "max_digits": 2}}, "cannot be made with"),
    ],
)
def test_a_wrong_generator_or_setting_says_so(kwargs, message):
    with pytest.raises(EpisodeError, match=message):
        make_bare(ID, **kwargs).reset(seed=0)


def test_the_seed_is_not_a_setting():
    with pytest.raises(UsageError, match="config holds seed"):
        make_bare(ID, config={"seed": 3})
