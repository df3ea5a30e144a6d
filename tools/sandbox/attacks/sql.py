"""Attacks by SQL, where a program of the model speaks to a database itself."""

from __future__ import annotations

from dataclasses import replace

from agentenv.tools.sandbox.attacks.attack import SMALL, Attack, Kind, ended, program, untouched

_KIND: Kind = "sql"
_QUICK = replace(SMALL, wall_s=0.5)

_CONNECT = """
import sqlite3
database = sqlite3.connect(':memory:', isolation_level=None)
"""


def _tries(name: str, *statements: str) -> Attack:
    code = f"""{_CONNECT}
for statement in {statements!r}:
    try:
        print(database.execute(statement).fetchall())
    except sqlite3.Error:
        pass
"""
    return program(name, _KIND, code, untouched)


def _endless(name: str, statement: str) -> Attack:
    code = f"{_CONNECT}print(database.execute({statement!r}).fetchall())"
    return program(name, _KIND, code, ended("timeout", "memory", within_s=0.5), limits=_QUICK, finishes=False)


_MANY = "with recursive many(n) as (select 1 union all select n + 1 from many limit 20000)"

ATTACKS = (
    _tries(
        "attaches a database of the host",
        "attach '<<database>>' as host",
        "select word from host.kept",
    ),
    _tries(
        "attaches by an address", "attach 'file:<<database>>?mode=ro&immutable=1' as host", "select word from host.kept"
    ),
    _tries(
        "writes to a database of the host",
        "attach '<<database>>' as host",
        "delete from host.kept",
        "create table host.more (x)",
    ),
    _tries("copies itself to the host", "create table t (x)", "vacuum into '<<folder>>/copied.sqlite'"),
    _tries("attaches a text of the host", "attach '<<secret_file>>' as host", "select * from host.sqlite_master"),
    program(
        "loads a library of the host",
        _KIND,
        f"{_CONNECT}try:\n    database.enable_load_extension(True)\n"
        "    database.load_extension('<<folder>>/target.txt')\n    print('GOT a library')\n"
        "except (sqlite3.Error, AttributeError):\n    pass",
    ),
    _endless(
        "counts without end",
        "with recursive many(n) as (select 1 union all select n + 1 from many) select max(n) from many",
    ),
    _endless(
        "joins twenty thousand rows with themselves",
        f"{_MANY} select count(*) from many a, many b where a.n * b.n = -1",
    ),
    _endless(
        "gathers a text without end",
        "with recursive many(n) as (select 1 union all select n + 1 from many) select group_concat(n) from many",
    ),
    program(
        "makes a text of a gigabyte",
        _KIND,
        f"""{_CONNECT}
import time
try:
    text = database.execute("select printf('%.*c', 400000000, 120)").fetchone()[0]
    print("GOT", len(text) >> 20, "MiB", flush=True)
    time.sleep(0.5)
except (sqlite3.Error, MemoryError):
    pass
""",
        ended("exited", "memory", "signal"),
        limits=replace(SMALL, wall_s=10.0),
        finishes=False,
    ),
)
