"""Whether two SQL result sets are equal: values and types exact, floats within a tolerance, order where it matters."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from agentenv.errors import UsageError

Cell = str | bytes | int | float | None
Rows = Sequence[Sequence[Cell]]

_Close = Callable[[Sequence[Cell], Sequence[Cell]], bool]

_MAX_MATCHED = 400
"""Rows with equal texts and whole numbers among which partners are sought if sorting finds none."""

_TOKEN = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|$)|[()]|\w+", re.DOTALL
)


def same_rows(rows: Rows, expected: Rows, *, is_ordered: bool, relative: float = 1e-6, absolute: float = 1e-9) -> float:
    """Return 1.0 when two result sets are equal, else 0.0.

    Columns are compared by position, not by name. A whole number is not equal to a float, nor to its text; NULL is
    equal to NULL only. Repeated rows count as often as they occur.

    Args:
        rows: of the answer.
        expected: of the reference.
        is_ordered: True compares row by row; `orders_rows` reads this off a reference query.
        relative: tolerance of floats, times the larger of two.
        absolute: tolerance of floats near 0.
    """
    if relative < 0 or absolute < 0:
        raise UsageError(f"tolerances are {relative} and {absolute}; they must not be negative")
    if len(rows) != len(expected):
        return 0.0

    def close(first: Sequence[Cell], second: Sequence[Cell]) -> bool:
        return _same_row(first, second, relative=relative, absolute=absolute)

    if is_ordered:
        return float(all(close(got, wanted) for got, wanted in zip(rows, expected, strict=True)))
    mine, theirs = _by_exact_part(rows), _by_exact_part(expected)
    if mine.keys() != theirs.keys():
        return 0.0
    return float(all(_same_bag(mine[key], theirs[key], close) for key in mine))


def orders_rows(sql: str) -> bool:
    """Return whether a query's outermost SELECT has an ORDER BY; those of subqueries and windows do not count."""
    depth, previous = 0, ""
    for match in _TOKEN.finditer(sql):
        token = match.group().upper()
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
        elif depth == 0 and token == "BY" and previous == "ORDER":
            return True
        if not token.startswith(("--", "/*")):
            previous = token
    return False


def _same_row(first: Sequence[Cell], second: Sequence[Cell], *, relative: float, absolute: float) -> bool:
    return len(first) == len(second) and all(
        math.isclose(a, b, rel_tol=relative, abs_tol=absolute) or (math.isnan(a) and math.isnan(b))
        if isinstance(a, float) and isinstance(b, float)
        else type(a) is type(b) and a == b
        for a, b in zip(first, second, strict=True)
    )


def _by_exact_part(rows: Rows) -> dict[tuple[object, ...], list[Sequence[Cell]]]:
    """Group rows by everything but their floats."""
    found: dict[tuple[object, ...], list[Sequence[Cell]]] = defaultdict(list)
    for row in rows:
        found[tuple((float,) if isinstance(cell, float) else (type(cell), cell) for cell in row)].append(row)
    return found


def _same_bag(mine: list[Sequence[Cell]], theirs: list[Sequence[Cell]], close: _Close) -> bool:
    if len(mine) != len(theirs):
        return False

    def floats(row: Sequence[Cell]) -> tuple[float, ...]:
        return tuple(-math.inf if math.isnan(cell) else cell for cell in row if isinstance(cell, float))

    mine, theirs = sorted(mine, key=floats), sorted(theirs, key=floats)
    if all(close(a, b) for a, b in zip(mine, theirs, strict=True)):
        return True
    # rounding may have sorted rows differently that still have partners
    return len(mine) <= _MAX_MATCHED and _all_matched([[close(a, b) for b in theirs] for a in mine])


def _all_matched(is_close: list[list[bool]]) -> bool:
    """Return whether every row of a square table can have a column of its own (augmenting paths, Kuhn 1955)."""
    size = len(is_close)
    owner: list[int | None] = [None] * size
    for start in range(size):
        came_from: dict[int, int] = {}
        waiting, seen, end = [start], set[int](), None
        while waiting and end is None:
            row = waiting.pop()
            for column in range(size):
                if is_close[row][column] and column not in seen:
                    seen.add(column)
                    came_from[column] = row
                    if owner[column] is None:
                        end = column
                        break
                    waiting.append(owner[column])  # type: ignore[arg-type] - just compared
        if end is None:
            return False
        held = {row: column for column, row in enumerate(owner) if row is not None}
        column: int | None = end
        while column is not None:
            row = came_from[column]
            owner[column], column = row, held.get(row)
    return True
