"""Preference: a taste that decides, a customer who tells it when asked, and one recommendation."""

import random

import pytest

from agentenv import tool_turn
from agentenv.envs.preference.env import MAX_USER_TURNS, Preference
from agentenv.envs.preference.taste import Taste, best_of, draw_choice, rivals

ITEMS = {
    "Alder": {"price": "low", "size": "small", "view": "sea"},
    "Birch": {"price": "high", "size": "large", "view": "sea"},
    "Cedar": {"price": "low", "size": "large", "view": "lake"},
    "Dahlia": {"price": "high", "size": "small", "view": "lake"},
}
TASTE = Taste(likes={"price": "low", "view": "lake", "size": "small"})


def started(**options):
    env = Preference(**options)
    env.reset(seed=0)
    return env


def recommend(env, item):
    return env.step(tool_turn("recommend", {"item": item}).to_dict())


def test_a_more_important_match_beats_all_less_important_ones():
    # price counts 4, view 2, size 1
    assert [TASTE.utility(item) for item in ITEMS.values()] == [5, 0, 6, 3]
    assert best_of(list(ITEMS), ITEMS, TASTE) == "Cedar"


def test_rivals_are_the_items_that_no_other_matches_better_in_everything():
    # Alder matches price and size, Cedar price and view, Dahlia view and size; Birch nothing
    assert rivals(ITEMS, TASTE) == ["Alder", "Cedar", "Dahlia"]


def test_every_drawn_choice_has_a_single_best_item():
    for seed in range(100):
        _, items, taste = draw_choice(random.Random(seed), split="train", num_items=10, num_attributes=4)
        values = sorted(map(taste.utility, items.values()))
        assert values[-1] > values[-2]
        assert best_of(list(items), items, taste) in rivals(items, taste)


def test_the_customer_says_what_it_likes_and_what_matters_most():
    env = started(difficulty=2)
    name, value = next(iter(env.taste.likes.items()))
    assert value in env.step(f"Which {name} do you like?")[0]
    ordered = env.step("What is most important to you?")[0]
    assert name in ordered


def test_from_difficulty_4_on_only_comparisons_tell_what_matters():
    env = started(difficulty=4)
    assert "do not know" in env.step("What is most important to you?")[0]
    best = best_of(list(env.items), env.items, env.taste)
    other = next(name for name in env.items if name != best)
    assert env.step(f"Would you rather take {other} or {best}?")[0] == f"I like {best} better."


def test_the_best_item_after_a_question_earns_the_reward():
    env = started()
    env.step(f"Do you like {' or '.join(list(env.items)[:2])} better?")
    assert recommend(env, best_of(list(env.items), env.items, env.taste).lower())[1:3] == (1.0, True)


def test_the_best_item_without_a_question_earns_nothing():
    env = started()
    assert recommend(env, best_of(list(env.items), env.items, env.taste))[1:3] == (0.0, True)


def test_any_other_item_earns_nothing():
    env = started()
    best = best_of(list(env.items), env.items, env.taste)
    env.step("What is most important to you?")
    assert recommend(env, next(name for name in env.items if name != best))[1:3] == (0.0, True)


@pytest.mark.parametrize("item", ["", "all of them", "Alder Birch"])
def test_an_item_that_does_not_exist_is_refused(item):
    observation, _, terminated, *_ = recommend(started(), item)
    assert observation.startswith("Error: there is no item")
    assert not terminated


def test_the_customer_has_no_time_for_endless_comparisons():
    env = started(difficulty=5)
    one, two, *_ = env.items
    for _ in range(MAX_USER_TURNS - 2):
        assert not env.step(f"Do you like {one} or {two} better?")[2]
    _, value, terminated, truncated, _ = env.step(f"Do you like {one} or {two} better?")
    assert (value, terminated, truncated, env.user_end) == (0.0, False, True, "turn_cap")
