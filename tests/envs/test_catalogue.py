"""Every shipped environment keeps every promise, on both splits, with honest thresholds, and cannot be cheated."""

import runpy
from pathlib import Path

import pytest

from agentenv import AgentEnv, check_env, make_bare, registered
from agentenv.catalogue import families
from agentenv.check_policies import play
from agentenv.check_replay import check_processes
from agentenv.listing import scores

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = {entry.env_id: entry for entry in registered() if entry.env_id.startswith("agentenv/")}
IDS = list(ENTRIES)
ELSEWHERE = "same seed, same episode in other processes"


def require(env_id: str) -> type[AgentEnv]:
    """Return the class, or skip and say why it cannot be played here."""
    env_class = ENTRIES[env_id].load()
    why = env_class.unavailable()
    if why:
        pytest.skip(why)
    return env_class


def test_the_catalogue_holds_the_first_environments():
    names = {"agentenv/GuessNumber-v0", "agentenv/Calculator-v0", "agentenv/GSM8K-v0", "agentenv/Wordle-v0"}
    assert names <= set(IDS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("env_id", IDS)
def test_every_promise_is_kept_and_none_is_skipped(env_id):
    env_class = require(env_id)
    report = check_env(env_id, num_seeds=env_class.check_seeds, leave_out=[ELSEWHERE])
    assert [row for row in report.rows if row[1] != "ok"] == []
    stored = scores()[env_id]
    measured = {name: round(report.means[name], 4) for name in ("oracle", "random")}
    assert measured == {"oracle": stored.oracle, "random": stored.random}, "run `python docs/make_catalogue.py`"


def test_the_catalogue_page_is_up_to_date_and_a_stale_one_is_noticed(tmp_path, capsys):
    script = runpy.run_path(str(ROOT / "docs" / "make_catalogue.py"))
    page = tmp_path / "catalogue.md"

    assert script["main"](["--check"]) == 0, "run `python docs/make_catalogue.py`"
    assert script["main"](["--page"], page=page) == 0
    assert script["main"](["--check"], page=page) == 0
    assert [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("### ")] == [
        f"### {env_id.removeprefix('agentenv/').removesuffix('-v0')}" for ids in families().values() for env_id in ids
    ]

    page.write_text(page.read_text(encoding="utf-8").replace("oracle 1.00", "oracle 0.50", 1), encoding="utf-8")
    assert script["main"](["--check"], page=page) == 1
    assert "run `python docs/make_catalogue.py`" in capsys.readouterr().err


@pytest.mark.parametrize("env_id", IDS)
def test_the_sample_of_the_catalogue_is_what_the_oracle_plays(env_id):
    require(env_id)
    if env_id == "agentenv/GSM8K-v0":
        pytest.skip("its rows may come from the user's cache")
    sample = runpy.run_path(str(ROOT / "docs" / "make_catalogue.py"))["sample"]
    assert scores()[env_id].sample == sample(ENTRIES[env_id]), "run `python docs/make_catalogue.py`"


@pytest.mark.timeout(300)
def test_fresh_interpreters_with_other_hash_seeds_play_the_same_episodes():
    # all environments in one pair of interpreters, which costs less than a pair for each
    playable = [env_id for env_id in IDS if not ENTRIES[env_id].load().unavailable()]
    assert {env_id: found for env_id, found in check_processes(playable).items() if found} == {}


@pytest.mark.parametrize("env_id", IDS)
def test_thresholds_leave_room_to_learn(env_id):
    env_class = ENTRIES[env_id].load()
    assert env_class.random_threshold < 0.5 < 0.9 < env_class.oracle_threshold <= 1.0


@pytest.mark.parametrize("env_id", IDS)
def test_demonstrations_earn_something(env_id):
    env_class = require(env_id)
    env = make_bare(env_id)
    episodes = [play(env, "demonstrate", seed=seed) for seed in range(min(20, env_class.check_seeds))]
    env.close()
    assert sum(step.reward for episode in episodes for step in episode) > 0


@pytest.mark.parametrize("env_id", IDS)
def test_the_class_says_what_the_reward_is(env_id):
    assert "Reward: 1.0" in (ENTRIES[env_id].load().__doc__ or "")
