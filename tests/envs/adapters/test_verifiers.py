"""The adapter for verifiers, whose package lives in a venv of its own: AGENTENV_VERIFIERS_PYTHON names its Python."""

import os
import sys
from pathlib import Path

import pytest

from agentenv.envs.adapters.verifiers import _Worker
from agentenv.errors import EpisodeError
from tests.envs.adapters.policies import make_bare, mean_return, oracle

ID = "adapter/Verifiers-v0"
PYTHON = os.environ.get("AGENTENV_VERIFIERS_PYTHON", "")
needs_verifiers = pytest.mark.skipif(
    not PYTHON, reason="set AGENTENV_VERIFIERS_PYTHON to the Python of a venv with verifiers>=0.4,<0.5"
)


@pytest.fixture
def taskset(monkeypatch):
    """Let the other Python find the taskset of these tests."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("tasksets")))


def sums(**kwargs):
    return make_bare(ID, **{"taskset": "add_up", "python": PYTHON, **kwargs})


@needs_verifiers
def test_real_tasks_are_played_and_scored_by_their_own_rewards(taskset):
    env = sums()
    opening, _ = env.reset(seed=0)
    assert opening.startswith("What is ")
    assert env.step(env.oracle())[1] == 1.5
    assert mean_return(env, lambda env, rng: "a long answer that is wrong", num_seeds=5) == 0.0
    assert mean_return(sums(split="test"), oracle, num_seeds=10) == 1.5
    env.close()
    for worker in list(_Worker._all.values()):
        worker.stop()


@needs_verifiers
def test_splits_are_disjoint_and_the_last_environment_ends_the_process(taskset):
    envs = {split: sums(split=split, config={"size": 10}) for split in ("train", "test")}
    seen = {split: {env.reset(seed=seed)[0] for seed in range(60)} for split, env in envs.items()}
    assert (len(seen["train"]), len(seen["test"])) == (8, 2)
    assert seen["train"] & seen["test"] == set()

    process = envs["train"]._worker._process
    envs["train"].close()
    assert process.poll() is None
    envs["test"].close()
    assert process.poll() is not None


@needs_verifiers
def test_a_reward_that_raises_is_a_failure_and_no_score(taskset):
    env = sums()
    env.reset(seed=0)
    with pytest.raises(EpisodeError, match="a broken reward"):
        env.step("break")
    env.close()


@needs_verifiers
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"taskset": "no_such_taskset"}, "no_such_taskset"),
        ({"config": {"sizes": 3}}, "sizes"),
        ({"config": {"size": 0}}, "it has no task"),
    ],
)
def test_a_taskset_that_cannot_be_loaded_says_why(taskset, kwargs, message):
    with pytest.raises(EpisodeError, match=message):
        sums(**kwargs).reset(seed=0)


@pytest.mark.parametrize(
    ("python", "message"),
    [(sys.executable, "the package verifiers is not installed in"), ("/no/such/python", "cannot be started")],
)
def test_a_python_without_verifiers_is_told_how_to_get_it(python, message):
    with pytest.raises(EpisodeError, match=message) as caught:
        make_bare(ID, taskset="add_up", python=python).reset(seed=0)
    assert "verifiers>=0.4" in str(caught.value)
