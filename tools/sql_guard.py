"""One SQL statement of a model, run on a sqlite connection under an authorizer, a deadline and a cap on rows.

What it cannot bound is the memory of the process and the time of a single expression over long values; hostile SQL
belongs into `sql_worker`.
"""

from __future__ import annotations

import functools
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from agentenv.errors import ToolError

Access = Literal["read", "write", "schema"]
"""`read`: SELECT; `write`: also INSERT, UPDATE, DELETE; `schema`: also tables, views and indexes."""

Value = str | bytes | int | float | None

_OPCODES_PER_CHECK = 500
_VERBS: Mapping[Access, tuple[str, ...]] = {
    "read": ("SELECT", "WITH", "VALUES", "EXPLAIN"),
    "write": ("SELECT", "WITH", "VALUES", "EXPLAIN", "INSERT", "REPLACE", "UPDATE", "DELETE"),
    "schema": (
        *("SELECT", "WITH", "VALUES", "EXPLAIN", "INSERT", "REPLACE", "UPDATE", "DELETE"),
        *("CREATE", "DROP", "ALTER"),
    ),
}
_READ_ACTIONS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
_WRITE_ACTIONS = frozenset(
    {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE, sqlite3.SQLITE_TRANSACTION}
)
_SCHEMA_ACTIONS = frozenset(
    {
        *(sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_CREATE_VIEW),
        *(sqlite3.SQLITE_DROP_TABLE, sqlite3.SQLITE_DROP_INDEX, sqlite3.SQLITE_DROP_VIEW),
        *(sqlite3.SQLITE_ALTER_TABLE, sqlite3.SQLITE_REINDEX),
    }
)
# functions that reach files or code, or whose values no seed decides
_DENIED_FUNCTIONS = frozenset(
    {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "random", "randomblob"}
)
SLOW_FUNCTIONS = frozenset({"printf", "format"})
"""A single call of theirs can take minutes, and no deadline reaches into it."""

_LIMITS: Mapping[int, int] = {
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 500,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 50,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 10,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_LEADING = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$))*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlLimits:
    """What one statement may use.

    Attributes:
        timeout_s: seconds, asked for every few thousand steps of the statement.
        max_rows: that are returned; the statement ends there.
        max_sql_chars: longest statement.
        max_value_bytes: of one text, blob or row that the statement handles; a longer one is an error.
        max_cell_chars: of one value as the model sees it; longer ones are cut.
    """

    timeout_s: float = 2.0
    max_rows: int = 200
    max_sql_chars: int = 20_000
    max_value_bytes: int = 50_000
    max_cell_chars: int = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a statement returned.

    Attributes:
        columns: names; empty for a statement that returns no rows.
        rows: at most `max_rows`.
        has_more: True when rows were left out.
        num_changed: rows that an INSERT, UPDATE or DELETE changed, else 0.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    has_more: bool = False
    num_changed: int = 0


def run_statement(
    connection: sqlite3.Connection,
    sql: str,
    *,
    access: Access,
    limits: SqlLimits,
    denied: frozenset[str] = SLOW_FUNCTIONS,
) -> Rows:
    """Run one statement; on any error, what it changed is undone.

    Args:
        connection: without limits of its own; it has none afterwards either.
        sql: of the model.
        access: what it may do.
        limits: what it may use.
        denied: further functions that it may not call, in lower case.

    Raises:
        ToolError: the statement is wrong, not allowed, or ran too long; in words for the model.
    """
    _check_text(sql, access=access, limits=limits)
    before = connection.total_changes
    try:
        with _guarded(connection, access=access, limits=limits, denied=denied):
            cursor = connection.execute(sql)
            columns = tuple(item[0] for item in cursor.description or ())
            rows = cursor.fetchmany(limits.max_rows + 1) if columns else []
            cursor.close()
    except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError) as error:
        if connection.in_transaction:
            connection.rollback()
        raise ToolError(_told(error, limits=limits)) from None
    if connection.in_transaction:
        connection.commit()
    return Rows(
        columns=columns,
        rows=tuple(tuple(row) for row in rows[: limits.max_rows]),
        has_more=len(rows) > limits.max_rows,
        num_changed=connection.total_changes - before,
    )


def rows_as_text(result: Rows, *, max_cell_chars: int) -> str:
    """Write rows as a model reads them: names, rows with ` | ` between the values, and how many there are."""
    if not result.columns:
        return f"Done. {_counted(result.num_changed)} changed."
    lines = [" | ".join(result.columns)]
    lines += [" | ".join(_cell(value, max_cell_chars) for value in row) for row in result.rows]
    count = _counted(len(result.rows))
    changed = f"; {_counted(result.num_changed)} changed" if result.num_changed else ""
    lines.append(f"({count} shown, there are more{changed})" if result.has_more else f"({count}{changed})")
    return "\n".join(lines)


@contextmanager
def _guarded(
    connection: sqlite3.Connection, *, access: Access, limits: SqlLimits, denied: frozenset[str]
) -> Iterator[None]:
    """Put limits, authorizer and deadline on a connection, and take them off: its owner has none."""
    ends = time.monotonic() + limits.timeout_s
    before = {limit: connection.setlimit(limit, value) for limit, value in _LIMITS.items()}
    before[sqlite3.SQLITE_LIMIT_LENGTH] = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.max_value_bytes)
    connection.set_authorizer(_authorizer(access, denied))
    connection.set_progress_handler(lambda: time.monotonic() > ends, _OPCODES_PER_CHECK)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)
        connection.set_authorizer(None)
        for limit, value in before.items():
            connection.setlimit(limit, value)


@functools.lru_cache(maxsize=64)
def _authorizer(access: Access, denied: frozenset[str]) -> Callable[..., int]:
    allowed = _READ_ACTIONS
    if access != "read":
        allowed |= _WRITE_ACTIONS
    if access == "schema":
        allowed |= _SCHEMA_ACTIONS
    is_schema = access == "schema"
    functions = _DENIED_FUNCTIONS | denied

    def decide(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION:
            is_denied = (second or "").lower() in functions
            return sqlite3.SQLITE_DENY if is_denied else sqlite3.SQLITE_OK
        if action not in allowed:
            return sqlite3.SQLITE_DENY
        # sqlite itself writes its own tables when the schema changes; a statement never may
        if action in _WRITE_ACTIONS and (first or "").lower().startswith("sqlite_") and not is_schema:
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    return decide


def _check_text(sql: str, *, access: Access, limits: SqlLimits) -> None:
    if len(sql) > limits.max_sql_chars:
        raise ToolError(f"the statement has {len(sql):,} characters; at most {limits.max_sql_chars:,} are allowed")
    start = _LEADING.match(sql)
    verb = re.match(r"[A-Za-z]*", sql[start.end() if start else 0 :])
    word = verb.group().upper() if verb else ""
    if word not in _VERBS[access]:
        allowed = ", ".join(_VERBS[access])
        raise ToolError(f"a statement begins with one of {allowed}; this one begins with {word or 'no word'}")


def _told(error: Exception, *, limits: SqlLimits) -> str:
    text = str(error)
    if text == "interrupted":
        return f"the statement was stopped after {limits.timeout_s:g} s; ask for less"
    if "one statement at a time" in text:
        return "only one statement is allowed in one call"
    if "not authorized" in text or "prohibited" in text:
        return f"{text}; this is not allowed here"
    return text


def _cell(value: Value, max_chars: int) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        text = f"x'{value[: max_chars // 2 + 1].hex()}'"
    else:
        text = str(value).replace("\\", "\\\\").replace("\n", "\\n").replace("|", "\\|")
    return text if len(text) <= max_chars else f"{text[:max_chars]}..."


def _counted(number: int) -> str:
    return f"{number} row" if number == 1 else f"{number} rows"
