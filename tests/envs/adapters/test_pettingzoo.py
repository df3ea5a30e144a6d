"""The adapter for turn games of PettingZoo, over a game written against the real package."""

import pytest

pytest.importorskip("pettingzoo", reason="pettingzoo is not installed: pip install 'agentenv[pettingzoo]'")

from pettingzoo.test import api_test

from agentenv import check_env, tool_turn
from agentenv.errors import EpisodeError, UsageError
from tests.envs.adapters import stones
from tests.envs.adapters.policies import at_random, cheating, make_bare, mean_return, play

ID = "adapter/PettingZoo-v0"
HERE = "tests.envs.adapters.stones"
NAMES = ["one", "two", "three"]


def game(**kwargs):
    return make_bare(ID, **{"env": HERE, "action_names": NAMES, **kwargs})


def best(env, rng):
    """Leave a multiple of four."""
    left = env.game.unwrapped.left
    return env.act_turn((left % 4 or 1) - 1)


def test_the_game_of_these_tests_keeps_pettingzoos_own_contract():
    api_test(stones.env(), num_cycles=50)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("seat", [0, 1])
def test_best_play_beats_players_without_skill_from_either_seat(seat, split):
    assert mean_return(game(seat=seat, split=split), best, num_seeds=100) > 0.9
    assert mean_return(game(seat=seat, split=split), at_random, num_seeds=200) < 0.7
    assert mean_return(game(seat=seat, split=split), cheating, num_seeds=20) == 0.0


def test_the_gymnasium_contract_holds_and_only_the_oracle_is_missing():
    kwargs = {"env": HERE, "game": {"in_info": True}}
    report = check_env(ID, num_seeds=5, env_kwargs=kwargs, raise_on_failure=False)
    status = {name: told for name, told, _ in report.rows}
    assert status.pop("the oracle solves it") == "skipped"
    assert status.pop("the random policy does not") in ("ok", "FAILED")  # half of such games are won by chance
    assert set(status.values()) == {"ok"}


def test_an_illegal_action_is_refused_and_the_game_goes_on():
    env = game(describe=f"{HERE}:told", opponent=f"{HERE}:greedy")
    assert "as first. Actions: 0 one, 1 two, 2 three." in env.reset(seed=1)[0]
    left = env.game.unwrapped.left
    assert "is not legal now; choose one of one, two, three" in env.step(tool_turn("act", {"action": "4"}).to_dict())[0]
    assert env.step("two")[0] == f"{left - 2 - 3} stones are left, first."
    assert env.step("the second")[0].startswith("That is no legal action. Say one of: one, two, three.")


@pytest.mark.parametrize("in_info", [False, True])
def test_masks_are_read_from_observations_and_from_infos(in_info):
    env = game(game={"in_info": in_info}, opponent=f"{HERE}:greedy")
    env.reset(seed=1)
    while env.game.unwrapped.left > 2:
        env.step("one")
        if env._state == "done":
            env.reset(seed=2)
    assert env.allowed_calls() == {"act": NAMES[: env.game.unwrapped.left]}


def test_own_rewards_of_the_game_are_paid_on_request():
    env = game(paid="return")
    totals = {play(env, at_random, seed=seed)[0] for seed in range(20)}
    assert totals == {-1.0, 1.0}


def test_action_masking_takes_the_legal_actions_of_the_game():
    env = game(wrap=["action_masking"], describe=f"{HERE}:told")
    assert env.reset(seed=1)[0].endswith("Allowed now: act with one, two, three")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"env": "pettingzoo.classic.no_such_game"}, "cannot import"),
        ({"env": "json"}, "cannot import"),
        ({"game": {"stones": 3}}, "cannot be made with"),
        ({"seat": 2}, "has seats 0 to 1"),
        ({"opponent": f"{HERE}:cheater"}, "the opponent chose 7; legal were"),
        ({"env": "json:loads", "game": {"s": "1"}}, "a turn game"),
    ],
)
def test_what_cannot_be_played_says_why(kwargs, message):
    with pytest.raises((EpisodeError, UsageError), match=message):
        play(game(**kwargs), at_random, seed=1)


def test_a_game_that_ships_with_pettingzoo_is_played_where_its_packages_are_there():
    pytest.importorskip("pygame", reason="the classic games import pygame: pip install 'pettingzoo[classic]'")
    env = make_bare(ID, split="test")
    total, seen = play(env, at_random, seed=0)
    assert total in (0.0, 1.0)
    assert len(seen) <= 6
