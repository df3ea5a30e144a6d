"""Questions about a table, from a count to a comparison of groups, and the calls that answer them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agentenv.envs.data_table.table import Row, Table, Test, aggregated, grouped
from agentenv.envs.drawing import pick, pick_distinct
from agentenv.envs.question import PlannedCall, Question

_WORDS = {"sum": "total", "min": "smallest", "max": "largest"}


def make_question(rng: np.random.Generator, table: Table, *, difficulty: int) -> Question:
    """Draw a question.

    Args:
        rng: source of all chance.
        table: what it is about.
        difficulty: 1: count with one condition; 2: an aggregate with one; 3: with two; 4: the group with the largest
            total; 5: how far apart two groups are.
    """
    if difficulty <= 3:
        return _aggregate(rng, table, difficulty=difficulty)
    return _largest_group(rng, table) if difficulty == 4 else _difference(rng, table)


def _aggregate(rng: np.random.Generator, table: Table, *, difficulty: int) -> Question:
    tests = [_label_test(rng, table)]
    if difficulty == 3:
        tests.append(_number_test(rng, table))
    rows = _rows(table, tests)
    function = "count" if difficulty == 1 or not rows else pick(rng, ("sum", "min", "max"))
    column = "id" if function == "count" else pick(rng, tuple(table.domain.numbers))
    thing, where = table.domain.thing, _told(tests)
    if function == "count":
        text = f"How many {thing} are there where {where}?"
    else:
        text = f"What is the {_WORDS[function]} value of {column} over the {thing} where {where}?"
    answer = aggregated(rows, function, column)
    calls = (
        PlannedCall(name="describe", arguments={}),
        _select(tests),
        PlannedCall(name="aggregate", arguments={"function": function, "column": column, "view": "view1"}),
    )
    return Question(text=text, answer=answer, calls=calls, candidates=_numbers(rng, table, answer))


def _largest_group(rng: np.random.Generator, table: Table) -> Question:
    test = _number_test(rng, table)
    by, column = pick(rng, tuple(table.domain.labels)), pick(rng, tuple(table.domain.numbers))
    totals = {name: int(aggregated(rows, "sum", column)) for name, rows in grouped(_rows(table, [test]), by).items()}
    best = max(totals, key=lambda name: totals[name], default="")
    if not totals or list(totals.values()).count(totals[best]) > 1:
        return _largest_group(rng, table)
    text = (
        f"Consider the {table.domain.thing} where {_told([test])}. Which {by} has the largest total of {column}, and "
        f"what is that total? Answer with both, like this: {by} 123."
    )
    arguments = {"by": by, "function": "sum", "column": column, "view": "view1"}
    calls = (
        PlannedCall(name="describe", arguments={}),
        _select([test]),
        PlannedCall(name="group", arguments=arguments),
    )
    candidates = tuple(f"{name} {total}" for name in totals for total in _numbers(rng, table, str(totals[best])))
    return Question(text=text, answer=f"{best} {totals[best]}", calls=calls, candidates=candidates)


def _difference(rng: np.random.Generator, table: Table) -> Question:
    test = _number_test(rng, table)
    by, column = pick(rng, tuple(table.domain.labels)), pick(rng, tuple(table.domain.numbers))
    first, second = pick_distinct(rng, table.domain.labels[by], count=2)
    rows = grouped(_rows(table, [test]), by)
    totals = [int(aggregated(rows.get(name, ()), "sum", column)) for name in (first, second)]
    text = (
        f"Consider the {table.domain.thing} where {_told([test])}. Take the total of {column} where {by} is {first}, "
        f"minus the total of {column} where {by} is {second}. What is the result?"
    )
    arguments = {"by": by, "function": "sum", "column": column, "view": "view1"}
    calls = (
        PlannedCall(name="describe", arguments={}),
        _select([test]),
        PlannedCall(name="group", arguments=arguments),
    )
    answer = str(totals[0] - totals[1])
    return Question(text=text, answer=answer, calls=calls, candidates=_numbers(rng, table, answer))


def _label_test(rng: np.random.Generator, table: Table) -> Test:
    column = pick(rng, tuple(table.domain.labels))
    return Test(column=column, operator="=", value=pick(rng, table.domain.labels[column]))


def _number_test(rng: np.random.Generator, table: Table) -> Test:
    column = pick(rng, tuple(table.domain.numbers))
    low, high = table.domain.numbers[column]
    quarter = (high - low) // 4
    value = int(rng.integers(low + quarter, high - quarter + 1))
    return Test(column=column, operator=pick(rng, ("<", "<=", ">", ">=")), value=value)


def _rows(table: Table, tests: Sequence[Test]) -> list[Row]:
    return [row for row in table.rows if all(test.holds(row) for test in tests)]


def _told(tests: Sequence[Test]) -> str:
    return " and ".join(f"{test.column} {test.operator} {test.value}" for test in tests)


def _select(tests: Sequence[Test]) -> PlannedCall:
    conditions = [{"column": test.column, "operator": test.operator, "value": test.value} for test in tests]
    return PlannedCall(name="select", arguments={"conditions": conditions})


def _numbers(rng: np.random.Generator, table: Table, answer: str) -> tuple[str, ...]:
    """Return plausible numbers, the answer among them."""
    widest = max(2 * abs(int(answer)), len(table.rows))
    return (answer, *map(str, rng.integers(0, widest, size=30).tolist()))
