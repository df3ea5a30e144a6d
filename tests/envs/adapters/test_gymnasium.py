"""The adapter for Gymnasium environments: real games, told in words, solved by value iteration."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from agentenv import check_env, tool_turn
from agentenv.envs.adapters.value_iteration import best_actions
from agentenv.errors import EpisodeError, UsageError
from tests.envs.adapters.policies import at_random, cheating, make_bare, mean_return, oracle, play

ID = "adapter/Gymnasium-v0"


def test_every_promise_is_kept_and_none_is_skipped():
    report = check_env(ID, num_seeds=10)
    assert {status for _, status, _ in report.rows} == {"ok"}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("game", "options"),
    [
        ("Taxi-v4", {}),
        ("FrozenLake-v1", {}),
        ("FrozenLake-v1", {"is_slippery": False}),
        ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}),
        ("CliffWalking-v1", {}),
        ("Blackjack-v1", {}),
    ],
)
def test_the_oracle_by_value_iteration_reaches_its_threshold_and_the_random_policy_does_not_pass_its_own(
    game, options, split
):
    env = make_bare(ID, env=game, game=options, split=split)
    assert mean_return(env, oracle, num_seeds=200) >= env.oracle_threshold
    assert mean_return(env, at_random, num_seeds=200) <= env.random_threshold
    assert mean_return(env, cheating, num_seeds=20) == 0.0


def test_value_iteration_takes_the_short_way_and_the_likely_one():
    # from a: left ends with 1 at once, right reaches it over b; from b: safe pays 0.4, risky 1 with probability 0.3
    table = {
        "a": {0: [(1.0, "end", 1.0, True)], 1: [(1.0, "b", 1.0, False)]},
        "b": {0: [(1.0, "end", 0.4, True)], 1: [(0.3, "end", 1.0, True), (0.7, "end", 0.0, True)]},
    }
    assert best_actions(table) == {"a": 1, "b": 0}


def test_blackjack_is_played_by_the_well_known_table():
    env = make_bare(ID, env="Blackjack-v1")
    env.reset(seed=0)
    stick, hit = 0, 1
    for hand, action in {
        (20, 10, 0): stick,
        (16, 10, 0): hit,
        (13, 6, 0): stick,
        (12, 3, 0): hit,
        (11, 6, 0): hit,
        (18, 9, 1): hit,
        (18, 7, 1): stick,
    }.items():
        assert env.policy[hand] == action, hand


def test_openings_of_train_and_test_are_disjoint_where_a_game_has_several():
    openings = {
        split: {make_bare(ID, split=split).reset(seed=seed)[0] for seed in range(200)} for split in ("train", "test")
    }
    assert len(openings["train"]) > 50
    assert openings["train"] & openings["test"] == set()


def test_a_board_is_shown_with_the_player_on_it():
    env = make_bare(ID, env="FrozenLake-v1", game={"is_slippery": False})
    opening, _ = env.reset(seed=0)
    assert "Actions: 0 left, 1 down, 2 right, 3 up." in opening
    assert opening.endswith("[S] F F F\nF H F H\nF F F H\nH F F G\nYou are at row 0, column 0.")
    assert env.step("2")[0].startswith("S [F] F F\n")
    assert env.step(tool_turn("act", {"action": "Down"}).to_dict())[0] == (
        "S F F F\nF [H] F H\nF F F H\nH F F G\nYou are at row 1, column 1.\nThe game is over."
    )


def test_an_unknown_action_is_refused_and_costs_only_the_turn():
    env = make_bare(ID, env="CliffWalking-v1")
    env.reset(seed=0)
    assert env.step(tool_turn("act", {"action": "jump"}).to_dict())[0].startswith("Error: 'jump' is no action; choose")
    assert env.step("I go up and right")[0].startswith("That is no action.")
    assert env.step("up")[0].startswith("You are at row 2, column 0")


def test_a_game_without_a_goal_pays_its_own_rewards_by_turn():
    env = make_bare(ID, env="CartPole-v1", max_turns=500)
    total, seen = play(env, at_random, seed=0)
    assert "position " in seen[0]
    assert total == len(seen) - 1  # one for every step


class Lamp(gymnasium.Env[Any, Any]):
    """A game of somebody else's, with a text rendering."""

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012
    observation_space: Any = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros((64, 64, 3), np.uint8), {}

    def step(self, action) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros((64, 64, 3), np.uint8), float(action), bool(action), False, {}

    def render(self):
        return "lamp \x1b[43mON\x1b[0m off"


class Pair(Lamp):
    """The same with a small observation."""

    observation_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return 2, {}

    def step(self, action) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return 1, float(action), bool(action), False, {}


def told(game, observation):
    """Describe a lamp."""
    return f"{type(game).__name__} of {observation.shape}"


gymnasium.register("test/Lamp-v0", entry_point=f"{__name__}:Lamp")
gymnasium.register("test/Pair-v0", entry_point=f"{__name__}:Pair")


def test_a_text_rendering_is_used_and_colours_become_brackets():
    env = make_bare(ID, env="test/Pair-v0", paid="solved", solved_at=1.0)
    assert env.reset(seed=0)[0].endswith("Actions: 0 action_0, 1 action_1.\n\nlamp [ON] off\n2")
    assert env.step("1")[1] == 1.0


def test_pictures_need_a_description_of_ones_own():
    with pytest.raises(EpisodeError, match="12,288 numbers"):
        make_bare(ID, env="test/Lamp-v0").reset(seed=0)
    env = make_bare(ID, env="test/Lamp-v0", describe=f"{__name__}:told")
    assert env.reset(seed=0)[0].endswith("Lamp of (64, 64, 3)")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"env": "FrozenLak-v1"}, "FrozenLake"),
        ({"env": "Pendulum-v1"}, "Discrete is needed"),
        ({"env": "FrozenLake-v1", "game": {"slippery": True}}, "slippery"),
        ({"env": "CartPole-v1", "action_names": ["left"]}, "has 2 actions; 1 names were given"),
    ],
)
def test_what_cannot_be_played_says_why(kwargs, message):
    with pytest.raises((UsageError, EpisodeError), match=message):
        make_bare(ID, **kwargs).reset(seed=0)


def test_a_goal_that_nobody_knows_must_be_given():
    with pytest.raises(UsageError, match="give solved_at=LAST_REWARD"):
        make_bare(ID, env="CartPole-v1", paid="solved")
