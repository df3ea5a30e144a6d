"""Equality of database states, with a penalty for side effects."""

import sqlite3

import pytest

from agentenv.errors import UsageError
from agentenv.rewards.state import compare_states, sqlite_state

START = {"seats": [{"id": 1, "who": None}, {"id": 2, "who": "Bo"}]}
GOAL = {"seats": [{"id": 1, "who": "Ann"}, {"id": 2, "who": "Bo"}]}


def compared(final, *, start=START, goal=GOAL):
    return compare_states(start=start, goal=goal, final=final)


def test_the_goal_is_worth_one_and_the_start_nothing():
    reached, untouched = compared(GOAL), compared(START)
    # one row vanishes and one appears
    assert (reached.num_required, reached.num_done, reached.num_side_effects) == (2, 2, 0)
    assert (reached.is_goal, reached.score(penalty=0.3)) == (True, 1.0)
    assert (untouched.num_done, untouched.num_side_effects, untouched.score(penalty=0.3)) == (0, 0, 0.0)


def test_every_side_effect_costs_its_penalty():
    final = {"seats": GOAL["seats"], "log": [("x",), ("x",)]}
    assert compared(final).num_side_effects == 2
    assert compared(final).score(penalty=0.3) == pytest.approx(0.4)
    assert compared(final).score(penalty=0.6) == 0.0
    assert compared(final).score(penalty=0.0) == 1.0
    assert not compared(final).is_goal


def test_deleting_what_should_stay_is_a_side_effect():
    assert compared({"seats": GOAL["seats"][:1]}).num_side_effects == 1


def test_a_goal_that_is_half_reached_is_worth_nothing():
    both = {"seats": [{"id": 1, "who": "Ann"}, {"id": 2, "who": "Cy"}]}
    assert compared(GOAL, goal=both).score(penalty=0.1) == 0.0
    assert (compared(GOAL, goal=both).num_required, compared(GOAL, goal=both).num_done) == (4, 2)


def test_values_of_different_type_and_repeated_rows_differ():
    assert not compared({"t": [(1,)]}, start={}, goal={"t": [(1.0,)]}).is_goal
    assert not compared({"t": [(1,)]}, start={}, goal={"t": [(True,)]}).is_goal
    assert not compared({"t": [(1,), (1,)]}, start={}, goal={"t": [(1,)]}).is_goal
    nested = {"t": [{"a": [1, {"b": {2, 3}}]}]}
    assert compared(nested, start={}, goal={"t": [{"a": (1, {"b": {3, 2}})}]}).is_goal


def test_a_sqlite_database_is_a_state(tmp_path):
    place = tmp_path / "a.db"
    connection = sqlite3.connect(place)
    connection.executescript(
        'CREATE TABLE "odd ""name" (a, b); INSERT INTO "odd ""name" VALUES (1, NULL); CREATE TABLE e (a)'
    )
    connection.commit()
    assert sqlite_state(connection) == sqlite_state(place) == {'odd "name': [(1, None)], "e": []}
    connection.close()


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "text").write_text("no database, " * 100)
    for name in ("text", "missing"):
        with pytest.raises(UsageError, match=f"{name}: cannot be"):
            sqlite_state(tmp_path / name)
    assert not (tmp_path / "missing").exists()
    with pytest.raises(UsageError, match="penalty is 2"):
        compared(GOAL).score(penalty=2)
