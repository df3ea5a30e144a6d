"""SqlQuery: answer a question with a query, which must be right on a second database as well."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import Any, ClassVar

import numpy as np

from agentenv.answer_env import checked_difficulty
from agentenv.env import ToolEnv, tool_turn
from agentenv.envs.drawing import pick, world_generator
from agentenv.envs.sql_query.database import Rows, SqlQuestion, draw_question, draw_rows, draw_schema
from agentenv.errors import ToolError, UsageError
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.tasks import Task
from agentenv.tool import tool
from agentenv.tools.sql import Sql, memory_database
from agentenv.tools.sql_guard import SqlLimits, Value, run_statement

_LIMITS = SqlLimits(timeout_s=0.5, max_rows=100)
_MAX_DRAWS = 100


class SqlQuery(ToolEnv):
    """Answer a question with one SQL query. Tables can be listed and read; `submit_query` hands the answer in.

    The query is run on the database of the episode and on a hidden one with the same tables and other rows.

    Reward: 1.0 if on both it returns the same rows as the reference query, in any order, with the columns in the order
    of the question, else 0.0. So naming the result of the visible database earns nothing.

    Args:
        difficulty: 1: one table; 2: a join; 3: totals; 4: totals with a condition; 5: a query within a query.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.02

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty)
        self.question = SqlQuestion(text="", query="")
        self.rows: Rows = {}
        self.visible: sqlite3.Connection | None = None
        self.hidden: sqlite3.Connection | None = None
        self.submitted = ""
        super().__init__(**{"max_turns": 12, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw the tables, a question with a result on both databases, and the databases."""
        world = world_generator(rng, split=self.split)
        schema = draw_schema(world)
        self.rows, self.submitted = draw_rows(world, schema), ""
        self.visible = memory_database(schema.script, self.rows)
        self.hidden = memory_database(schema.script, draw_rows(world, schema))
        self.attach(Sql(self.visible, limits=_LIMITS))
        for _ in range(_MAX_DRAWS):
            self.question = draw_question(world, schema, difficulty=self.difficulty)
            results = [self._result(database, self.question.query) for database in (self.visible, self.hidden)]
            if results[0] and results[1] and results[0] != results[1]:
                break
        else:
            raise UsageError(f"no question has a result on both databases in {_MAX_DRAWS} draws")
        return f"{self.question.text}\nLook at the database, then hand in one query with submit_query."

    def teardown(self) -> None:
        """Close the hidden database; the visible one belongs to its tools."""
        if self.hidden is not None:
            self.hidden.close()

    @tool
    def submit_query(self, sql: str) -> str:
        """Hand in the query that answers the question; this ends the episode.

        Args:
            sql: one SELECT statement (sqlite).
        """
        self.submitted = sql
        self.finish()
        return "handed in"

    @reward(low=0.0, high=1.0)
    def same_rows(self) -> float:
        """1.0 if the query returns what the reference returns, on both databases."""
        if not self.submitted or self.visible is None or self.hidden is None:
            return 0.0
        pairs = (
            (self._result(database, self.submitted), self._result(database, self.question.query))
            for database in (self.visible, self.hidden)
        )
        return float(all(given is not None and given == wanted for given, wanted in pairs))

    def fingerprint(self) -> str:
        """Return the question and the rows."""
        return f"{self.question} {self.rows}"

    def oracle(self) -> Message:
        """List the tables, try the reference query, hand it in."""
        turns = (("list_tables", {}), ("query_sql", {"sql": self.question.query}))
        name, arguments = turns[self.num_turns] if self.num_turns < len(turns) else ("submit_query", turns[1][1])
        return tool_turn(name, arguments, call_id=f"call_{self.num_turns}_0")

    def random_action(self, rng: np.random.Generator) -> Message:
        """Hand in a query for any column of any table."""
        table = pick(rng, sorted(self.rows))
        sql = f"SELECT {pick(rng, ('*', 'id', 'name', 'year', 'COUNT(*)'))} FROM {table}"
        return tool_turn(pick(rng, ("query_sql", "submit_query")), {"sql": sql}, call_id=f"call_{self.num_turns}_0")

    def cheat(self, rng: np.random.Generator) -> Message:
        """Hand in the result of the visible database as constants, all rows, or a query that is no answer."""
        assert self.visible is not None
        found = run_statement(self.visible, self.question.query, access="read", limits=_LIMITS)
        constants = ", ".join(f"({', '.join(map(_quoted, row))})" for row in found.rows)
        queries = (
            f"VALUES {constants}",
            f"SELECT * FROM {pick(rng, sorted(self.rows))}",
            f"{self.question.query}; SELECT 1",
            "SELECT 'same_rows', 1.0",
            "ATTACH ':memory:' AS other",
            "",
        )
        return tool_turn("submit_query", {"sql": pick(rng, queries)}, call_id=f"call_{self.num_turns}_0")

    def _result(self, database: sqlite3.Connection, sql: str) -> Counter[tuple[Value, ...]] | None:
        """Return the rows and how often each occurs, None where there is no complete result."""
        try:
            found = run_statement(database, sql, access="read", limits=_LIMITS)
        except ToolError:
            return None
        return None if found.has_more else Counter(found.rows)


def _quoted(value: Value) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)
