"""SQL tools: what a statement may do, and how it ends when it does not end by itself."""

import time

import pytest

from agentenv.errors import ToolError, UsageError
from agentenv.tools.sql import Sql, WritableSql, memory_database
from agentenv.tools.sql_guard import SqlLimits, run_statement
from tests.tools.desks import box, told

LIMITS = SqlLimits(timeout_s=0.3, max_rows=3)
FOREVER = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"


@pytest.fixture
def connection():
    made = memory_database(
        "CREATE TABLE pets (name TEXT, age INTEGER, note)",
        {"pets": [("Rex", 3, None), ("Tom", 7, b"\x01"), ("a|b\nc", 1, 0.5), ("Ida", 2, "x")]},
    )
    yield made
    made.close()


async def test_rows_are_shown_with_names_types_and_count(connection):
    tools = box(Sql(connection, limits=LIMITS))
    assert await told(tools, "query_sql", sql="SELECT * FROM pets ORDER BY age") == (
        "name | age | note\na\\|b\\nc | 1 | 0.5\nIda | 2 | x\nRex | 3 | NULL\n(3 rows shown, there are more)"
    )
    assert (await told(tools, "query_sql", sql="SELECT note FROM pets WHERE age = 7")) == "note\nx'01'\n(1 row)"
    assert await told(tools, "list_tables") == "CREATE TABLE pets (name TEXT, age INTEGER, note)"


async def test_a_long_value_is_cut(connection):
    tools = box(Sql(connection, limits=SqlLimits(max_cell_chars=4)))
    assert "\naaaa...\n" in await told(tools, "query_sql", sql="SELECT 'aaaaaaaa'")


NOT_READING = [
    "INSERT INTO pets VALUES ('x', 1, 1)",
    "UPDATE pets SET age = 0",
    "DELETE FROM pets",
    "WITH x AS (SELECT 1) DELETE FROM pets",
    "EXPLAIN DELETE FROM pets",
    "CREATE TABLE other (a)",
    "CREATE TEMP TABLE other (a)",
    "DROP TABLE pets",
]
NEVER = [
    "ATTACH DATABASE '{file}' AS other",
    "VACUUM INTO '{file}'",
    "VACUUM",
    "PRAGMA writable_schema = 1",
    "SELECT * FROM pragma_table_info('pets')",
    "BEGIN",
    "SAVEPOINT x",
    "DETACH main",
    "SELECT 1; DELETE FROM pets",
    "SELECT 1; ATTACH DATABASE '{file}' AS other",
    "/* SELECT */ ATTACH DATABASE '{file}' AS other",
    "SELECT load_extension('{file}')",
    "SELECT writefile('{file}', 'x')",
    "SELECT printf('%.*c', 2000000000, 'x')",
    "SELECT format('%2000000000d', 1)",
    "SELECT random()",
    "SELECT hex(zeroblob(100000000))",
    "CREATE TRIGGER t AFTER INSERT ON pets BEGIN DELETE FROM pets; END",
    "CREATE VIRTUAL TABLE f USING fts5(x)",
    "CREATE TEMP VIEW v AS SELECT 1",
    "UPDATE sqlite_schema SET sql = ''",
    "SELECT * FROM nowhere",
    "SELECT 'a\0b'",
    "SELECT '\ud800'",
    "-- nothing",
    "",
    "SELECT " + "(" * 5_000 + "1" + ")" * 5_000,
    "SELECT " + " UNION SELECT ".join(["1"] * 1_000),
    "x" * 1_000_000,
]


@pytest.mark.parametrize("sql", [*NOT_READING, *NEVER])
def test_a_reader_refuses_whatever_does_not_only_read(connection, tmp_path, sql):
    before = list(connection.iterdump())
    with pytest.raises(ToolError):
        run_statement(connection, sql.replace("{file}", str(tmp_path / "out")), access="read", limits=LIMITS)
    assert list(connection.iterdump()) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("access", ["write", "schema"])
@pytest.mark.parametrize("sql", NEVER)
def test_no_access_allows_other_files_pragmas_code_or_transactions(connection, tmp_path, sql, access):
    before = list(connection.iterdump())
    with pytest.raises(ToolError):
        run_statement(connection, sql.replace("{file}", str(tmp_path / "out")), access=access, limits=LIMITS)
    assert list(connection.iterdump()) == before
    assert list(tmp_path.iterdir()) == []


async def test_a_writer_changes_rows_and_a_schema_writer_tables(connection):
    tools = box(WritableSql(connection))
    assert await told(tools, "change_sql", sql="UPDATE pets SET age = age + 1 WHERE age > 2") == "Done. 2 rows changed."
    assert "changed)" in await told(tools, "change_sql", sql="DELETE FROM pets WHERE age < 3 RETURNING name")
    assert "Error: a statement begins" in await told(tools, "change_sql", sql="CREATE TABLE other (a)")
    assert "Error: a statement begins" in await told(tools, "query_sql", sql="DELETE FROM pets")

    owner = box(WritableSql(connection, access="schema"))
    assert (await told(owner, "change_sql", sql="CREATE TABLE other (a)")).startswith("Done.")
    assert (await told(owner, "change_sql", sql="ALTER TABLE other RENAME TO another")).startswith("Done.")
    assert 'CREATE TABLE "another"' in await told(owner, "list_tables")


@pytest.mark.parametrize(
    "sql",
    [
        FOREVER,
        "SELECT count(*) FROM " + ", ".join(f"pets p{number}" for number in range(20)),
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c ORDER BY -x",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
        "SELECT sum(instr(zeroblob(49000), zeroblob(25000) || x'01')) FROM c",
    ],
)
def test_a_statement_that_never_ends_is_stopped(connection, sql):
    started = time.process_time()
    with pytest.raises(ToolError, match=r"stopped after 0\.3 s"):
        run_statement(connection, sql, access="read", limits=LIMITS)
    assert time.process_time() - started < 2


def test_a_change_that_is_stopped_is_undone(connection):
    sql = f"INSERT INTO pets SELECT 'x', 1, ({FOREVER}) FROM pets"
    with pytest.raises(ToolError, match="stopped"):
        run_statement(connection, sql, access="write", limits=LIMITS)
    assert connection.execute("SELECT count(*) FROM pets").fetchone() == (4,)
    assert not connection.in_transaction


def test_an_endless_result_ends_at_the_cap_of_rows(connection):
    sql = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
    rows = run_statement(connection, sql, access="read", limits=LIMITS)
    assert (rows.rows, rows.has_more) == (((1,), (2,), (3,)), True)


def test_the_owner_of_the_connection_is_not_guarded_afterwards(connection):
    run_statement(connection, "SELECT 1", access="read", limits=LIMITS)
    connection.execute("CREATE TABLE mine (a)")
    connection.execute("PRAGMA table_info(mine)")
    assert connection.execute("SELECT length(printf('%.*c', 100000, 'x'))").fetchone() == (100_000,)


def test_a_database_that_cannot_be_built_names_the_table():
    with pytest.raises(UsageError, match="table 'pets' cannot"):
        memory_database("CREATE TABLE pets (a)", {"pets": [(1, 2)]})
    with pytest.raises(UsageError, match="the script cannot"):
        memory_database("CREATE TABLE")
    with pytest.raises(UsageError, match='allowed are "write" and "schema"'):
        WritableSql(memory_database(""), access="read")
