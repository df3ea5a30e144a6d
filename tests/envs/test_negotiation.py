"""Negotiation: offers, deals, and what a fair one is."""

from typing import Any

import numpy as np
import pytest

from agentenv.envs.negotiation.env import Negotiation, NegotiationGame
from agentenv.game import IllegalMove


def table():
    """One book, two hats, one ball; the first side wants the hats, the second book and ball."""
    game = NegotiationGame()
    game.counts, game.worth = (1, 2, 1), ((0, 5, 0), (5, 0, 5))
    return game


def test_an_accepted_offer_pays_what_it_is_worth_over_the_fair_part():
    game = table()
    game.play("first", "offer 0 1 0")
    game.play("second", "Accept")
    # the fair deal gives the hats to the first (10) and the others to the second (10); the first got one hat (5)
    assert game.rewards() == {"first": 0.0, "second": 1.0}
    assert game.result("second") == "You get 1 books, 1 hats, 1 balls."


def test_three_quarters_of_the_fair_part_earn_half_the_reward():
    game = NegotiationGame()
    game.counts, game.worth = (2, 1, 1), ((4, 1, 1), (0, 5, 5))
    game.play("first", "offer 1 1 1")  # worth 6 of the 8 that the fair deal (both books) gives
    game.play("second", "accept")
    assert game.rewards() == {"first": 0.5, "second": 0.0}


def test_without_a_deal_nobody_gets_anything():
    game = table()
    for number in range(10):
        game.play(game.seats[number % 2], "offer 1 2 1")
    assert (game.whose_turn(), game.rewards()) == (None, {"first": 0.0, "second": 0.0})
    assert game.result("first") == "There is no deal."


@pytest.mark.parametrize(
    ("move", "said"),
    [
        ("accept", "no offer to accept"),
        ("offer 9 9 9", "not so many items"),
        ("offer 1 2", "is no move"),
        ("offer 1 2 1 1", "is no move"),
        ("offer -1 0 0", "is no move"),
        ("", "is no move"),
    ],
)
def test_offers_of_what_is_not_there_are_refused(move, said):
    with pytest.raises(IllegalMove, match=said):
        table().play("first", move)


def test_a_new_offer_takes_the_place_of_the_one_before():
    game = table()
    game.play("first", "offer 0 0 0")
    game.play("second", "offer 1 0 1")
    game.play("first", "accept")
    assert game.rewards() == {"first": 1.0, "second": 1.0}


def test_all_items_are_worth_ten_to_each_side():
    env = Negotiation()
    for seed in range(50):
        env.reset(seed=seed)
        game: Any = env.game
        assert [sum(c * w for c, w in zip(game.counts, worth, strict=True)) for worth in game.worth] == [10, 10]


def test_the_scripted_side_never_takes_less_than_its_floor():
    env = Negotiation(difficulty=5)
    for seed in range(30):
        env.reset(seed=seed)
        over, value = False, 1.0
        while not over:
            action = env.cheat(np.random.default_rng(0))
            _, value, terminated, truncated, _ = env.step(action.to_dict())
            over = terminated or truncated
        assert value == 0.0


def test_leaving_gives_nothing_to_anybody():
    game = table()
    game.give_up("first")
    assert (game.reward_of("first"), game.reward_of("second")) == (0.0, 0.0)
