"""Equality of SQL result sets."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.errors import UsageError
from agentenv.rewards.rows import orders_rows, same_rows


@pytest.mark.parametrize(
    ("rows", "expected", "is_ordered", "score"),
    [
        ([(1, "a"), (2, "b")], [(2, "b"), (1, "a")], False, 1.0),
        ([(1, "a"), (2, "b")], [(2, "b"), (1, "a")], True, 0.0),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, 0.0),
        ([(1,)], [(1.0,)], False, 0.0),
        ([("1",)], [(1,)], False, 0.0),
        ([(None,)], [(0,)], False, 0.0),
        ([(None,)], [("",)], False, 0.0),
        ([(None, b"x")], [(None, b"x")], False, 1.0),
        ([(b"x",)], [("x",)], False, 0.0),
        ([(0.1 + 0.2,)], [(0.3,)], False, 1.0),
        ([(0.30001,)], [(0.3,)], False, 0.0),
        ([(1, 2)], [(1,)], False, 0.0),
        ([(1, 2)], [(1,)], True, 0.0),
        ([], [], False, 1.0),
        ([], [(1,)], False, 0.0),
        ([(float("nan"),)], [(float("nan"),)], False, 1.0),
        ([("a", 1)], [(1, "a")], False, 0.0),
    ],
)
def test_result_sets_are_compared_by_value_type_and_count(rows, expected, is_ordered, score):
    assert same_rows(rows, expected, is_ordered=is_ordered) == score


def test_rounding_that_sorts_rows_differently_does_not_separate_them():
    # sorted by the first column, the rows of the two sides meet the wrong partners
    mine = [(1.0, 5.0), (1.0 + 1e-8, 2.0)]
    theirs = [(1.0 + 1e-8, 5.0), (1.0, 2.0)]
    assert same_rows(mine, theirs, is_ordered=False) == 1.0
    assert same_rows(mine, [(1.0, 5.0), (1.0, 5.0)], is_ordered=False) == 0.0


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 4e-7, 8e-7, 1.2e-6]), st.sampled_from([0.0, 5.0])), max_size=4),
    st.randoms(),
)
def test_unordered_equality_is_that_some_order_is_equal(expected, random):
    rows = [(a + random.choice([0, 4e-7]), b) for a, b in expected]
    random.shuffle(rows)
    some = max(
        same_rows(list(order), expected, is_ordered=True, absolute=5e-7) for order in itertools.permutations(rows)
    )
    assert same_rows(rows, expected, is_ordered=False, absolute=5e-7) == some


@pytest.mark.parametrize(
    ("sql", "orders"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 3", True),
        ("SELECT a FROM t ORDER /* x */ BY a", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'ORDER BY' FROM t -- ORDER BY a", False),
        ('SELECT "order", by FROM t', False),
        ("SELECT a FROM t", False),
    ],
)
def test_whether_a_query_orders_its_rows_is_read_off_its_outermost_select(sql, orders):
    assert orders_rows(sql) is orders


def test_a_negative_tolerance_is_refused():
    with pytest.raises(UsageError, match="must not be negative"):
        same_rows([], [], is_ordered=False, relative=-1)
