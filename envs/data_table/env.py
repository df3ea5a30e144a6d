"""DataTable: questions about a table that is seen through tools only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from agentenv.envs.data_table.questions import make_question
from agentenv.envs.data_table.table import (
    DOMAINS,
    Function,
    Operator,
    Row,
    Table,
    Test,
    aggregated,
    grouped,
    make_table,
)
from agentenv.envs.drawing import world_generator
from agentenv.envs.question import QuestionEnv
from agentenv.errors import ToolError, did_you_mean
from agentenv.tasks import Task
from agentenv.tool import tool

MAX_SHOWN_ROWS = 20
MAX_VIEWS = 50
MAX_CONDITIONS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition on a column; `<` and its like compare numbers only."""

    column: str
    operator: Operator
    value: int | str


class DataTable(QuestionEnv):
    """Answer a question about a table of 40 to 200 rows with tools that select, aggregate, group and show rows.

    Reward: 1.0 if the text after the last `####` is the answer, else 0.0.

    Args:
        difficulty: 1: count with one condition; 2: a total, smallest or largest value; 3: with two conditions; 4: the
            group with the largest total; 5: the difference of two groups.
        **options: of `AgentEnv`.
    """

    random_threshold: ClassVar[float] = 0.1

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.table = Table(domain=DOMAINS[0], rows=())
        self.views: dict[str, tuple[Row, ...]] = {}
        super().__init__(difficulty=difficulty, **{"max_turns": 12, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw a table and a question about it."""
        world = world_generator(rng, split=self.split)
        self.table = make_table(world, num_rows=40 * self.difficulty)
        self.views = {"all": self.table.rows}
        return self.ask(make_question(world, self.table, difficulty=self.difficulty))

    def fingerprint(self) -> str:
        """Return the question and the whole table."""
        return f"{self.question.text} {self.table.rows}"

    @tool(read_only=True)
    def describe(self) -> dict[str, object]:
        """Describe the table: what its rows are, how many there are, and its columns."""
        labels = {name: ", ".join(values) for name, values in self.table.domain.labels.items()}
        numbers = dict.fromkeys(self.table.number_columns, "whole number")
        return {"rows_are": self.table.domain.thing, "num_rows": len(self.table.rows), "columns": labels | numbers}

    @tool(read_only=True)
    def select(self, conditions: list[Condition], view: str = "all") -> dict[str, object]:
        """Select the rows that meet all conditions, as a new view for the other tools.

        Args:
            conditions: each with column, operator and value.
            view: where to select from: "all" or the name of an earlier view.
        """
        if len(conditions) > MAX_CONDITIONS or len(self.views) > MAX_VIEWS:
            raise ToolError(f"at most {MAX_CONDITIONS} conditions and {MAX_VIEWS} views are allowed")
        tests = [self._test(condition) for condition in conditions]
        rows = tuple(row for row in self._view(view) if all(test.holds(row) for test in tests))
        name = f"view{len(self.views)}"
        self.views[name] = rows
        return {"view": name, "num_rows": len(rows)}

    @tool(read_only=True)
    def aggregate(self, function: Function, column: str, view: str = "all") -> str:
        """Compute one number from a column of a view.

        Args:
            function: of the column's values; a mean has two decimals.
            column: which one.
            view: "all" or the name of a view.
        """
        return aggregated(self._view(view), function, self._column(column, for_numbers=function != "count"))

    @tool(read_only=True)
    def group(self, by: str, function: Function, column: str, view: str = "all") -> dict[str, str]:
        """Compute one number for every value of a column that holds words.

        Args:
            by: the column whose values make the groups.
            function: of the values of the other column.
            column: what is computed.
            view: "all" or the name of a view.
        """
        if by not in self.table.domain.labels:
            raise ToolError(f"groups are made by {', '.join(self.table.domain.labels)}; not by {by[:80]!r}")
        column = self._column(column, for_numbers=function != "count")
        groups = grouped(self._view(view), by)
        return {name: aggregated(rows, function, column) for name, rows in groups.items()}

    @tool(read_only=True)
    def show(self, view: str = "all", start: int = 1, count: int = 10) -> list[dict[str, object]]:
        """Show rows of a view.

        Args:
            view: "all" or the name of a view.
            start: number of the first row to show, from 1.
            count: how many, up to 20.
        """
        if start < 1 or not 1 <= count <= MAX_SHOWN_ROWS:
            raise ToolError(f"start is {start} and count {count}; start at 1 or later, 1 to {MAX_SHOWN_ROWS} rows")
        return [dict(row) for row in self._view(view)[start - 1 : start - 1 + count]]

    def _view(self, name: str) -> tuple[Row, ...]:
        if name not in self.views:
            raise ToolError(f"there is no view {name[:80]!r}; there are {', '.join(self.views)}")
        return self.views[name]

    def _column(self, name: str, *, for_numbers: bool) -> str:
        allowed = self.table.number_columns if for_numbers else self.table.columns
        if name not in allowed:
            hint = did_you_mean(name[:80], allowed)
            raise ToolError(f"column {name[:80]!r} does not fit here; allowed are {', '.join(allowed)}.{hint}")
        return name

    def _test(self, condition: Condition) -> Test:
        is_ordered = condition.operator not in ("=", "!=")
        column = self._column(condition.column, for_numbers=is_ordered)
        value = condition.value
        if column in self.table.number_columns:
            try:
                value = int(str(value)[:20])
            except ValueError:
                raise ToolError(f"column {column} holds whole numbers; the value is {str(value)[:80]!r}") from None
        return Test(column=column, operator=condition.operator, value=value if isinstance(value, int) else str(value))
