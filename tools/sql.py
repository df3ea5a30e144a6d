"""SQL tools over a sqlite database: `Sql` reads, `WritableSql` also changes rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence

from agentenv.errors import UsageError
from agentenv.tool import tool
from agentenv.toolkit import Toolkit
from agentenv.tools.sql_guard import Access, Rows, SqlLimits, Value, rows_as_text, run_statement

Database = sqlite3.Connection | Callable[[], sqlite3.Connection]
"""A connection, or what makes one at the first call."""


class Sql(Toolkit):
    """Reading a database in this process.

    Fast enough to run on the event loop over small tables. A statement is bounded in time, rows and length, not in
    memory: for hostile SQL over large data take `sql_worker.IsolatedSql`.

    Args:
        database: of the episode; a connection that a thread may use other than the one that made it, as
            `memory_database` returns. The toolkit closes it.
        limits: of one statement.
    """

    access: Access = "read"

    def __init__(self, database: Database, *, limits: SqlLimits | None = None) -> None:
        self._database = database
        self.limits = limits or SqlLimits()

    @property
    def connection(self) -> sqlite3.Connection:
        """The database, without any guard: for the environment's own reading and grading."""
        if not isinstance(self._database, sqlite3.Connection):
            self._database = self._database()
        return self._database

    def run(self, sql: str, *, access: Access) -> Rows:
        """Run one statement of the model.

        Raises:
            ToolError: in words for the model.
        """
        return run_statement(self.connection, sql, access=access, limits=self.limits)

    @tool(read_only=True)
    def list_tables(self) -> str:
        """List the tables of the database, with their columns and types."""
        found = self.connection.execute(
            "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND type IN ('table', 'view') "
            "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rootpage, name"
        )
        return "\n\n".join(row[0] for row in found) or "The database has no tables."

    @tool(read_only=True)
    def query_sql(self, sql: str) -> str:
        """Read from the database with one SQL statement (sqlite).

        Args:
            sql: one SELECT statement.
        """
        return rows_as_text(self.run(sql, access="read"), max_cell_chars=self.limits.max_cell_chars)

    def close(self) -> None:
        """Close the database, if it was opened."""
        if isinstance(self._database, sqlite3.Connection):
            self._database.close()


class WritableSql(Sql):
    """Reading and changing a database in this process.

    Args:
        database: as for `Sql`.
        access: `"write"` allows INSERT, UPDATE and DELETE, `"schema"` also tables, views and indexes.
        limits: of one statement.
    """

    def __init__(self, database: Database, *, access: Access = "write", limits: SqlLimits | None = None) -> None:
        super().__init__(database, limits=limits)
        if access not in ("write", "schema"):
            raise UsageError(f'access is {access!r}; allowed are "write" and "schema", and Sql only reads')
        self.access = access

    @tool
    def change_sql(self, sql: str) -> str:
        """Change the database with one SQL statement (sqlite).

        Args:
            sql: one INSERT, UPDATE or DELETE statement.
        """
        return rows_as_text(self.run(sql, access=self.access), max_cell_chars=self.limits.max_cell_chars)


def memory_database(script: str, rows: Mapping[str, Iterable[Sequence[Value]]] | None = None) -> sqlite3.Connection:
    """Return a new database in memory, usable from any one thread at a time.

    Args:
        script: trusted SQL, usually CREATE TABLE statements.
        rows: by table, what to put in; values in the order of the columns.

    Raises:
        UsageError: the script or the rows do not fit; names the table.
    """
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    where = "the script"
    try:
        connection.executescript(script)
        for table, values in (rows or {}).items():
            where = f"table {table!r}"
            quoted = table.replace('"', '""')
            width = len(connection.execute(f'SELECT * FROM "{quoted}" LIMIT 0').description)
            connection.executemany(f'INSERT INTO "{quoted}" VALUES ({", ".join("?" * width)})', values)
        connection.commit()
    except sqlite3.Error as error:
        connection.close()
        raise UsageError(f"{where} cannot be put into the database: {error}") from error
    return connection
