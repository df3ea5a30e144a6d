"""Two related tables of random rows, and questions about them with their reference queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agentenv.envs.drawing import pick, pick_distinct, pick_each


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """Names of the tables and columns; each row of `many` belongs to one of `one`.

    Attributes:
        one: table with the columns id, name, `label`, `number`.
        many: table with the columns id, `one_id`, `kind`, `amount`, year.
    """

    one: str
    label: str
    labels: tuple[str, ...]
    number: str
    many: str
    one_id: str
    kind: str
    kinds: tuple[str, ...]
    amount: str

    @property
    def script(self) -> str:
        """Statements that make the tables."""
        return (
            f"CREATE TABLE {self.one} (id INTEGER PRIMARY KEY, name TEXT, {self.label} TEXT, {self.number} INTEGER);"
            f"CREATE TABLE {self.many} (id INTEGER PRIMARY KEY, {self.one_id} INTEGER REFERENCES {self.one}(id), "
            f"{self.kind} TEXT, {self.amount} INTEGER, year INTEGER);"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlQuestion:
    """A question in words and the query that answers it."""

    text: str
    query: str


_SCHEMAS = (
    Schema(
        one="customers",
        label="city",
        labels=("Lund", "Porto", "Graz", "Turku"),
        number="credit",
        many="orders",
        one_id="customer_id",
        kind="product",
        kinds=("tea", "rope", "paint", "glass"),
        amount="quantity",
    ),
    Schema(
        one="authors",
        label="country",
        labels=("Chile", "Norway", "Ghana", "Japan"),
        number="born",
        many="books",
        one_id="author_id",
        kind="genre",
        kinds=("crime", "poetry", "travel", "history"),
        amount="pages",
    ),
    Schema(
        one="ships",
        label="harbour",
        labels=("Oban", "Bergen", "Split", "Cork"),
        number="tonnage",
        many="voyages",
        one_id="ship_id",
        kind="cargo",
        kinds=("grain", "steel", "wool", "salt"),
        amount="days",
    ),
    Schema(
        one="farms",
        label="valley",
        labels=("upper", "lower", "west", "dry"),
        number="acres",
        many="harvests",
        one_id="farm_id",
        kind="crop",
        kinds=("barley", "hops", "plums", "flax"),
        amount="crates",
    ),
)
_FIRST = ("Amber", "Birch", "Cedar", "Dune", "Ember", "Fern", "Garnet", "Heron", "Iris", "Juniper", "Kestrel", "Larch")
_SECOND = ("Hill", "Brook", "Field", "Stone", "Wood", "Gate")
_YEARS = tuple(range(2015, 2025))

Rows = dict[str, list[tuple[int | str, ...]]]


def draw_schema(rng: np.random.Generator) -> Schema:
    """Draw what the tables are about."""
    return pick(rng, _SCHEMAS)


def draw_rows(rng: np.random.Generator, schema: Schema) -> Rows:
    """Draw 14 to 20 rows of the one table and 40 to 70 of the other, by table; some have no related row."""
    num_ones, num_many = int(rng.integers(14, 21)), int(rng.integers(40, 71))
    names = pick_distinct(rng, [f"{first} {second}" for first in _FIRST for second in _SECOND], count=num_ones)
    labels = pick_each(rng, schema.labels, count=num_ones)
    numbers = rng.integers(10, 500, size=num_ones).tolist()
    ones = list(zip(range(1, num_ones + 1), names, labels, numbers, strict=True))
    owners = rng.integers(1, num_ones - 1, size=num_many).tolist()
    kinds, years = pick_each(rng, schema.kinds, count=num_many), pick_each(rng, _YEARS, count=num_many)
    amounts = rng.integers(1, 400, size=num_many).tolist()
    many = list(zip(range(1, num_many + 1), owners, kinds, amounts, years, strict=True))
    return {schema.one: list(ones), schema.many: list(many)}


def draw_question(rng: np.random.Generator, schema: Schema, *, difficulty: int) -> SqlQuestion:
    """Draw a question: 1: one table; 2: a join; 3: totals; 4: totals with a condition; 5: a query within a query."""
    return pick(rng, _QUESTIONS[difficulty - 1])(rng, schema)


def _filter_label(rng: np.random.Generator, schema: Schema) -> SqlQuestion:
    label, limit = pick(rng, schema.labels), int(rng.integers(50, 300))
    return SqlQuestion(
        text=f"Return the name of every row of {schema.one} whose {schema.label} is {label} and whose {schema.number} "
        f"is greater than {limit}.",
        query=f"SELECT name FROM {schema.one} WHERE {schema.label} = '{label}' AND {schema.number} > {limit}",
    )


def _filter_years(rng: np.random.Generator, schema: Schema) -> SqlQuestion:
    kind, year = pick(rng, schema.kinds), pick(rng, _YEARS[:-2])
    return SqlQuestion(
        text=f"Return id and {schema.amount} of every row of {schema.many} whose {schema.kind} is {kind} and whose "
        f"year is later than {year}.",
        query=f"SELECT id, {schema.amount} FROM {schema.many} WHERE {schema.kind} = '{kind}' AND year > {year}",
    )


def _join(rng: np.random.Generator, schema: Schema) -> SqlQuestion:
    kind, label = pick(rng, schema.kinds), pick(rng, schema.labels)
    return SqlQuestion(
        text=f"For every row of {schema.many} whose {schema.kind} is {kind} and that belongs to a row of {schema.one} "
        f"with {schema.label} {label}, return the name of the latter and the {schema.amount}.",
        query=f"SELECT o.name, m.{schema.amount} FROM {schema.many} m JOIN {schema.one} o ON o.id = m.{schema.one_id} "
        f"WHERE m.{schema.kind} = '{kind}' AND o.{schema.label} = '{label}'",
    )


def _totals(rng: np.random.Generator, schema: Schema) -> SqlQuestion:
    year = pick(rng, _YEARS[:-3])
    return SqlQuestion(
        text=f"Count only rows of {schema.many} of the year {year} or later. For every row of {schema.one} that has "
        f"any, return its name and its total {schema.amount}.",
        query=f"SELECT o.name, SUM(m.{schema.amount}) FROM {schema.one} o JOIN {schema.many} m ON m.{schema.one_id} = "
        f"o.id WHERE m.year >= {year} GROUP BY o.id",
    )


def _totals_by_label(rng: np.random.Generator, schema: Schema) -> SqlQuestion:
    kind = pick(rng, schema.kinds)
    return SqlQuestion(
        text=f"For every {schema.label} that has any {schema.many} with {schema.kind} {kind}, return the "
        f"{schema.label}, the number of these {schema.many}, and their largest {schema.amount}.",
        query=f"SELECT o.{schema.label}, COUNT(*), MAX(m.{schema.amount}) FROM {schema.one} o JOIN {schema.many} m ON "
        f"m.{schema.one_id} = o.id WHERE m.{schema.kind} = '{kind}' GROUP BY o.{schema.label}",
    )


def _having(rng: np.random.Generator, schema: Schema) -> SqlQuestion:
    count = int(rng.integers(2, 5))
    return SqlQuestion(
        text=f"Return the name of every row of {schema.one} that has more than {count} {schema.many}, and how many it "
        "has.",
        query=f"SELECT o.name, COUNT(*) FROM {schema.one} o JOIN {schema.many} m ON m.{schema.one_id} = o.id "
        f"GROUP BY o.id HAVING COUNT(*) > {count}",
    )


def _having_kinds(rng: np.random.Generator, schema: Schema) -> SqlQuestion:
    limit = int(rng.integers(100, 390))
    return SqlQuestion(
        text=f"Return every pair of {schema.label} and {schema.kind} for which the total {schema.amount} of the "
        f"{schema.many} is greater than {limit}, with that total.",
        query=f"SELECT o.{schema.label}, m.{schema.kind}, SUM(m.{schema.amount}) FROM {schema.one} o JOIN "
        f"{schema.many} m ON m.{schema.one_id} = o.id GROUP BY 1, 2 HAVING SUM(m.{schema.amount}) > {limit}",
    )


def _without(rng: np.random.Generator, schema: Schema) -> SqlQuestion:
    kind = pick(rng, schema.kinds)
    return SqlQuestion(
        text=f"Return the name of every row of {schema.one} that has no {schema.many} with {schema.kind} {kind}.",
        query=f"SELECT name FROM {schema.one} WHERE id NOT IN (SELECT {schema.one_id} FROM {schema.many} WHERE "
        f"{schema.kind} = '{kind}')",
    )


def _above_average(rng: np.random.Generator, schema: Schema) -> SqlQuestion:
    year = pick(rng, _YEARS[:-3])
    return SqlQuestion(
        text=f"Consider the {schema.many} of the year {year} or later, and their average {schema.amount}. Return id "
        f"and {schema.amount} of those whose {schema.amount} is greater than that average.",
        query=f"SELECT id, {schema.amount} FROM {schema.many} WHERE year >= {year} AND {schema.amount} > (SELECT "
        f"AVG({schema.amount}) FROM {schema.many} WHERE year >= {year})",
    )


_QUESTIONS: Sequence[Sequence[Callable[[np.random.Generator, Schema], SqlQuestion]]] = (
    (_filter_label, _filter_years),
    (_join,),
    (_totals, _totals_by_label),
    (_having, _having_kinds),
    (_without, _above_average),
)
