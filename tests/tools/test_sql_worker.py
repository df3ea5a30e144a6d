"""SQL in processes that can be killed."""

import time

import pytest

from agentenv.errors import UsageError
from agentenv.rewards.state import compare_states, sqlite_state
from agentenv.tools.sql import memory_database
from agentenv.tools.sql_guard import SqlLimits
from agentenv.tools.sql_worker import IsolatedSql
from tests.tools.desks import box, told
from tests.tools.test_sql import NEVER, NOT_READING

SCRIPT = "CREATE TABLE pets (name TEXT, age INTEGER, note)"
ROWS = {"pets": [("Rex", 3, None), ("Tom", 7, b"\x01"), ("Ida", 2, float("inf"))]}
LIMITS = SqlLimits(timeout_s=1.0)


@pytest.fixture
def kit():
    made = IsolatedSql(lambda: memory_database(SCRIPT, ROWS), access="write", limits=LIMITS)
    yield made
    made.close()


async def test_statements_read_and_change_the_same_database_as_the_environment(kit):
    tools = box(kit)
    assert await told(tools, "query_sql", sql="SELECT * FROM pets ORDER BY age LIMIT 2") == (
        "name | age | note\nIda | 2 | inf\nRex | 3 | NULL\n(2 rows)"
    )
    before = sqlite_state(kit.connection)
    assert await told(tools, "change_sql", sql="DELETE FROM pets WHERE age = 7") == "Done. 1 row changed."
    after = sqlite_state(kit.connection)
    goal = {"pets": [row for row in before["pets"] if row[1] != 7]}
    assert compare_states(start=before, goal=goal, final=after).is_goal
    assert "CREATE TABLE pets" in await told(tools, "list_tables")


KILLED = [
    "SELECT printf('%.*c', 2000000000, 'x')",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
    "WITH RECURSIVE c(x) AS (SELECT zeroblob(40000) UNION ALL SELECT zeroblob(40000) FROM c) SELECT count(*) FROM "
    "(SELECT DISTINCT x || random FROM (SELECT x, row_number() OVER () AS random FROM c))",
]


@pytest.mark.parametrize("sql", KILLED)
async def test_what_no_deadline_reaches_is_killed_and_the_next_statement_works(kit, sql):
    tools = box(kit)
    await told(tools, "query_sql", sql="SELECT 1")  # the process has started
    started = time.monotonic()
    assert (await told(tools, "query_sql", sql=sql)).startswith("Error: ")
    assert time.monotonic() - started < 8
    assert "(1 row)" in await told(tools, "query_sql", sql="SELECT name FROM pets WHERE age = 3")


async def test_a_change_of_a_killed_process_is_undone(kit):
    tools = box(kit)
    sql = "UPDATE pets SET note = length(printf('%.*c', 2000000000 + age, 'x'))"
    assert "stopped after 1 s" in await told(tools, "change_sql", sql=sql)
    assert "Rex | 3 | NULL" in await told(tools, "query_sql", sql="SELECT * FROM pets")


def test_a_reader_holds_against_all_that_is_refused(tmp_path):
    kit = IsolatedSql(lambda: memory_database(SCRIPT, ROWS), limits=LIMITS)
    tools = box(kit)
    assert sorted(tools.tools) == ["list_tables", "query_sql"]
    before = sqlite_state(kit.connection)
    for sql in [*NOT_READING, *(sql for sql in NEVER if "printf" not in sql and "format" not in sql)]:
        with pytest.raises(Exception, match=r".") as caught:
            kit.run(sql.replace("{file}", str(tmp_path / "out")), access="read")
        assert type(caught.value).__name__ == "ToolError", (sql[:80], caught.value)
    assert sqlite_state(kit.connection) == before
    assert list(tmp_path.iterdir()) == []
    folder = kit.path.parent
    kit.close()
    assert not folder.exists()


def test_an_unknown_access_is_refused():
    with pytest.raises(UsageError, match="access is 'all'"):
        IsolatedSql(lambda: memory_database(""), access="all")  # type: ignore[arg-type]
