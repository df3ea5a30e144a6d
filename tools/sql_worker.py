"""`IsolatedSql`: the SQL tools with every statement in a process that can be killed, for hostile SQL."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import tempfile
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from agentenv.errors import EpisodeError, ToolError, UsageError
from agentenv.tools.sql import WritableSql
from agentenv.tools.sql_guard import Access, Rows, SqlLimits, Value, run_statement
from agentenv.worker_process import WorkerDied, WorkerFailed, WorkerPool, WorkerTimeout

MEMORY_BYTES = 512 << 20
"""Address space of one process, Python included."""
FILE_BYTES = 256 << 20
"""Largest file that a process may write: the database, its journal, and what sorting spills."""
MARGIN_S = 2.0
"""A process is killed this long after the statement's own deadline, which ends all but single slow expressions."""

_pool: WorkerPool | None = None
_making = threading.Lock()


class IsolatedSql(WritableSql):
    """Reading and, where `access` says so, changing a database from a pool of processes that all episodes share.

    The database becomes a file; what a killed statement had begun to change is undone.

    Args:
        database: as for `Sql`; its rows are copied into the file at the first call.
        access: `"read"`, `"write"` or `"schema"`.
        limits: of one statement.
    """

    def __init__(self, database: Any, *, access: Access = "read", limits: SqlLimits | None = None) -> None:
        super().__init__(database, access="write", limits=limits)
        if access not in ("read", "write", "schema"):
            raise UsageError(f'access is {access!r}; allowed are "read", "write" and "schema"')
        self.access = access
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._opening = threading.Lock()

    @property
    def tools(self) -> tuple[Any, ...]:
        """The tools; without `change_sql` where the database is only read. None of them runs on the event loop."""
        found = [item for item in super().tools if self.access != "read" or item.name != "change_sql"]
        return tuple(
            replace(item, options=replace(item.options, inline=False, timeout_s=self.limits.timeout_s + 30.0))
            for item in found
        )

    @property
    def connection(self) -> sqlite3.Connection:
        """The database file, without any guard: for the environment's own reading and grading."""
        with self._opening:
            if self._folder is None:
                self._move_to_file()
            return cast(sqlite3.Connection, self._database)

    @property
    def path(self) -> Path:
        """The database file."""
        _ = self.connection
        assert self._folder is not None
        return Path(self._folder.name) / "database.sqlite"

    def run(self, sql: str, *, access: Access) -> Rows:
        """Run one statement of the model in another process.

        Raises:
            ToolError: in words for the model, also where the process had to be killed.
            EpisodeError: no process could be had in time.
        """
        request = {"path": str(self.path), "sql": sql, "access": access, "limits": asdict(self.limits)}
        try:
            answer = _workers().call(request, timeout_s=self.limits.timeout_s + MARGIN_S)
        except WorkerTimeout as error:
            if "no process was free" in str(error):
                raise EpisodeError("tool", "IsolatedSql", str(error)) from error
            raise ToolError(f"the statement was stopped after {self.limits.timeout_s:g} s; ask for less") from None
        except WorkerDied:
            raise ToolError("the statement used too much memory and was stopped; ask for less") from None
        except WorkerFailed as error:
            if "MemoryError" in str(error):
                raise ToolError("the statement used too much memory and was stopped; ask for less") from None
            raise EpisodeError("tool", "IsolatedSql", str(error)) from error
        return _from_plain(cast(dict[str, Any], answer))

    def close(self) -> None:
        """Close the database and delete its file."""
        super().close()
        with self._opening:
            folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    def _move_to_file(self) -> None:
        source = self._database if isinstance(self._database, sqlite3.Connection) else self._database()
        folder = tempfile.TemporaryDirectory(prefix="agentenv-sql-")
        try:
            file = sqlite3.connect(Path(folder.name) / "database.sqlite", check_same_thread=False)
            source.backup(file)
        except BaseException:
            folder.cleanup()
            raise
        finally:
            source.close()
        self._database, self._folder = file, folder


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one statement; runs in a process of its own."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    limits, access = SqlLimits(**request["limits"]), request["access"]
    mode = "ro" if access == "read" else "rw"
    uri = f"{Path(request['path']).as_uri()}?mode={mode}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=limits.timeout_s)) as connection:
        try:
            # a slow function only costs this process, which is killed
            rows = run_statement(connection, request["sql"], access=access, limits=limits, denied=frozenset())
        except ToolError as error:
            return {"told": str(error)}
    return {
        "columns": rows.columns,
        "rows": [[_plain(value) for value in row] for row in rows.rows],
        "has_more": rows.has_more,
        "num_changed": rows.num_changed,
    }


def _workers() -> WorkerPool:
    global _pool
    with _making:
        if _pool is None:
            target = "agentenv.tools.sql_worker:answer"
            _pool = WorkerPool(target, max_workers=4, memory_bytes=MEMORY_BYTES)
        return _pool


def _plain(value: Value) -> object:
    """Return a value as JSON has it; bytes and numbers that JSON does not have become a list of their kind and text."""
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, float) and value - value != 0:
        return ["float", repr(value)]
    return value


def _value(plain: object) -> Value:
    if isinstance(plain, list):
        kind, text = plain
        return bytes.fromhex(text) if kind == "bytes" else float(text)
    return cast(Value, plain)


def _from_plain(answer: dict[str, Any]) -> Rows:
    if "told" in answer:
        raise ToolError(answer["told"])
    return Rows(
        columns=tuple(answer["columns"]),
        rows=tuple(tuple(_value(value) for value in row) for row in answer["rows"]),
        has_more=answer["has_more"],
        num_changed=answer["num_changed"],
    )
