"""Tables of random records, and what can be computed from their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from agentenv.envs.drawing import pick, pick_each

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
Function = Literal["count", "sum", "min", "max", "mean"]
Row = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What a table is about.

    Attributes:
        thing: one row, in the plural.
        labels: values of the columns that hold words.
        numbers: lowest and highest value of the columns that hold whole numbers.
    """

    thing: str
    labels: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, tuple[int, int]]


DOMAINS = (
    Domain(
        thing="orders",
        labels={
            "region": ("north", "south", "east", "west", "centre"),
            "product": ("tea", "coffee", "cocoa", "juice", "syrup", "water", "milk"),
            "channel": ("shop", "web", "phone"),
        },
        numbers={"units": (1, 60), "price": (2, 300), "days_to_deliver": (1, 30)},
    ),
    Domain(
        thing="readings",
        labels={
            "site": ("harbour", "hill", "tunnel", "bridge", "tower", "quarry"),
            "sensor": ("thermo", "baro", "hygro", "seismo", "photo"),
            "status": ("fine", "noisy", "late"),
        },
        numbers={"level": (1, 500), "battery": (0, 100), "age_in_days": (1, 900)},
    ),
    Domain(
        thing="loans",
        labels={
            "branch": ("main", "station", "park", "college", "island"),
            "genre": ("crime", "poetry", "travel", "science", "history", "comics"),
            "member": ("adult", "child", "student"),
        },
        numbers={"days": (1, 90), "renewals": (0, 9), "pages": (40, 900)},
    ),
    Domain(
        thing="trips",
        labels={
            "city": ("Lund", "Porto", "Graz", "Turku", "Ghent", "Split"),
            "vehicle": ("tram", "bus", "bike", "scooter", "ferry"),
            "ticket": ("single", "day", "month"),
        },
        numbers={"minutes": (2, 120), "kilometres": (1, 60), "riders": (1, 9)},
    ),
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one domain, numbered from 1 in the column `id`."""

    domain: Domain
    rows: tuple[Row, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns."""
        return ("id", *self.domain.labels, *self.domain.numbers)

    @property
    def number_columns(self) -> tuple[str, ...]:
        """Names of the columns that hold whole numbers."""
        return ("id", *self.domain.numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One condition on a row."""

    column: str
    operator: Operator
    value: str | int

    def holds(self, row: Row) -> bool:
        """True where the row meets it; both sides are words, or both are numbers."""
        found, value = row[self.column], self.value
        if self.operator in ("=", "!="):
            return (found == value) == (self.operator == "=")
        assert isinstance(found, int)
        assert isinstance(value, int)
        if self.operator.endswith("=") and found == value:
            return True
        return found < value if self.operator.startswith("<") else found > value


def make_table(rng: np.random.Generator, *, num_rows: int) -> Table:
    """Draw a table."""
    domain = pick(rng, DOMAINS)
    labels = {name: pick_each(rng, values, count=num_rows) for name, values in domain.labels.items()}
    numbers = {
        name: rng.integers(low, high + 1, size=num_rows).tolist() for name, (low, high) in domain.numbers.items()
    }
    names = ("id", *labels, *numbers)
    columns = (range(1, num_rows + 1), *labels.values(), *numbers.values())
    rows = tuple(dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))
    return Table(domain=domain, rows=rows)


def aggregated(rows: Sequence[Row], function: Function, column: str) -> str:
    """Return an aggregate as text: a whole number, a mean with two decimals, or `none` over no rows."""
    if function == "count":
        return str(len(rows))
    values = [int(row[column]) for row in rows]
    if function == "sum":
        return str(sum(values))
    if not values:
        return "none"
    if function == "mean":
        return f"{float(round(Fraction(sum(values), len(values)), 2)):.2f}"
    return str(min(values) if function == "min" else max(values))


def grouped(rows: Sequence[Row], by: str) -> dict[str, list[Row]]:
    """Return the rows of every value of a column, sorted by value."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row[by]), []).append(row)
    return dict(sorted(groups.items()))
