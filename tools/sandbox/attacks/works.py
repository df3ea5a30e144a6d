"""No attacks: what honest programs need and a sandbox must not break."""

from __future__ import annotations

from dataclasses import replace

from agentenv.tools.sandbox.attacks.attack import (
    SMALL,
    Arena,
    Attack,
    Broken,
    Kind,
    Need,
    cells,
    ended,
    prints,
    program,
    shell,
)
from agentenv.tools.sandbox.sandbox import Limits

_KIND: Kind = "still works"
_USUAL = Limits()


def _does(name: str, code: str, *, limits: Limits = _USUAL, stdin: str = "", needs: Need | None = None) -> Attack:
    return program(name, _KIND, code, ended("exited"), limits=limits, stdin=stdin, needs=needs)


async def _keeps_state(arena: Arena) -> None:
    async with arena.episode(limits=_USUAL) as sandbox:
        cell = await sandbox.python("""
import math
x = [1, 2]
x.append(3)
print('said')
sum(x)
""")
        if (cell.value, cell.output.strip(), cell.is_fresh) != ("6", "said", True):
            raise Broken(f"the first cell gave {cell}")
        cell = await sandbox.python("""
def f(y):
    return y + len(x)
f(math.floor(1.5))
""")
        if (cell.value, cell.is_fresh) != ("4", False):
            raise Broken(f"the second cell gave {cell}")
        cell = await sandbox.python("x.nothing")
        if "AttributeError" not in cell.error or cell.ending != "exited":
            raise Broken(f"an error gave {cell}")


async def _keeps_files(arena: Arena) -> None:
    data = bytes(range(256)) * 100
    async with arena.episode(limits=_USUAL) as sandbox:
        await sandbox.write_file("a/b/näme with space.bin", data)
        done = await sandbox.run(
            ["sh", "-c", "wc -c < 'a/b/näme with space.bin'; echo made > made.txt; ln -s made.txt link"]
        )
        if done.stdout.strip() != str(len(data)):
            raise Broken(f"a program sees {done.stdout!r} bytes")
        if (
            await sandbox.read_file("made.txt") != b"made\n"
            or await sandbox.read_file("a/b/näme with space.bin") != data
        ):
            raise Broken("files do not come back as they were written")
        if await sandbox.read_file("made.txt", max_bytes=2) != b"ma":
            raise Broken("max_bytes is not kept")
        kinds = {info.path: info.kind for info in await sandbox.list_files()}
        wanted = {"a": "folder", "a/b": "folder", "a/b/näme with space.bin": "file", "link": "link", "made.txt": "file"}
        if kinds != wanted:
            raise Broken(f"list_files gave {kinds}")


async def _shares_its_folder(arena: Arena) -> None:
    async with arena.episode(limits=_USUAL) as sandbox:
        await sandbox.python("open('from_python.txt', 'w').write('hello')")
        done = await sandbox.run(["cat", "from_python.txt"])
        if done.stdout != "hello":
            raise Broken(f"a command reads {done.stdout!r} of a cell's file")


ATTACKS = (
    _does(
        "imports the standard library",
        "import argparse, array, ast, asyncio, base64, bisect, calendar, collections, concurrent.futures, csv, ctypes,"
        " datetime, decimal, difflib, email, fractions, functools, hashlib, heapq, html, io, itertools, json, logging,"
        " math, multiprocessing, operator, os, pathlib, pickle, queue, random, re, sched, secrets, shutil, socket,"
        " sqlite3, statistics, string, struct, subprocess, sys, tarfile, tempfile, textwrap, threading, time, types,"
        " typing, unicodedata, unittest, urllib.request, uuid, xml.etree.ElementTree, zipfile,"
        " zlib, zoneinfo",
    ),
    _does(
        "starts programs",
        """
import subprocess, sys
def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
assert output('sh', '-c', 'echo $((1 + 1))') == '2\\n'
assert output(sys.executable or 'python3', '-c', 'print(3)') == '3\\n'
""",
    ),
    _does(
        "uses threads",
        """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda x: x * x, range(100))) == [x * x for x in range(100)]
""",
    ),
    _does(
        "uses processes",
        """
import multiprocessing
if __name__ == '__main__':
    context = multiprocessing.get_context('fork')
    with context.Pool(2) as pool:
        assert pool.map(abs, [-1, -2, 3]) == [1, 2, 3]
""",
        needs="own /dev/shm",
    ),
    _does(
        "uses asyncio",
        """
import asyncio
async def main():
    process = await asyncio.create_subprocess_exec('echo', 'hi', stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0] == b'hi\\n'
asyncio.run(main())
""",
    ),
    _does(
        "serves itself on loopback",
        """
import http.server, threading, urllib.request
server = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
assert urllib.request.urlopen(f'http://127.0.0.1:{server.server_port}/', timeout=5).status == 200
server.shutdown()
""",
        needs="own network",
    ),
    _does(
        "talks over unix sockets",
        """
import socket
a, b = socket.socketpair()
a.send(b'x')
assert b.recv(1) == b'x'
server = socket.socket(socket.AF_UNIX)
server.bind('own.sock')
server.listen()
client = socket.socket(socket.AF_UNIX)
client.connect('own.sock')
""",
        needs="own network",
    ),
    _does("uses 300 MB", "kept = bytearray(b'x') * (300 << 20)\nassert len(kept) == 300 << 20"),
    _does(
        "prints Unicode",
        """
import sys
assert sys.stdout.encoding.lower() == 'utf-8'
print('äöü ß Ω 日本語 🎉')
""",
    ),
    _does(
        "reads standard input",
        "import sys\nassert sys.stdin.read() == 'line one\\nzwei ä\\n'",
        stdin="line one\nzwei ä\n",
    ),
    _does("reads an empty standard input", "import sys\nassert sys.stdin.read() == ''"),
    _does(
        "uses temporary files",
        """
import tempfile
with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as file:
    file.write(b'x')
    file.flush()
    open(folder + '/a', 'w').write('b')
""",
    ),
    _does("writes 40 MB of files", "for index in range(10):\n    open(f'{index}.bin', 'wb').write(bytes(4 << 20))"),
    _does(
        "uses a database in its folder",
        """
import sqlite3
database = sqlite3.connect('own.sqlite')
database.execute('create table t (x)')
database.execute('insert into t values (1)')
database.commit()
assert database.execute('select * from t').fetchall() == [(1,)]
""",
    ),
    _does(
        "compiles and imports a module of its own",
        """
import importlib, pathlib, sys
pathlib.Path('own_module.py').write_text('value = 42')
sys.path.insert(0, '.')
assert importlib.import_module('own_module').value == 42
""",
    ),
    _does(
        "knows time zones and dates",
        """
import datetime, zoneinfo
assert datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin')).utcoffset().total_seconds() == 7200
""",
    ),
    _does(
        "sees its own processes",
        """
import os
assert os.path.isdir(f'/proc/{os.getpid()}')
assert os.cpu_count() >= 1
open('/proc/self/status').read()
open('/dev/urandom', 'rb').read(8)
open('/dev/null', 'w').write('x')
open('/dev/zero', 'rb').read(8)
""",
        needs="process table",
    ),
    _does(
        "handles signals",
        """
import os, signal
hits = []
signal.signal(signal.SIGUSR1, lambda *a: hits.append(1))
os.kill(os.getpid(), signal.SIGUSR1)
signal.signal(signal.SIGALRM, lambda *a: hits.append(2))
signal.setitimer(signal.ITIMER_REAL, 0.01)
import time
time.sleep(0.1)
assert hits == [1, 2]
""",
    ),
    _does(
        "computes with large numbers and recursion",
        """
import math, sys
assert len(str(math.factorial(1000))) == 2568
sys.setrecursionlimit(20_000)
def f(n): return 0 if n == 0 else 1 + f(n - 1)
assert f(10_000) == 10_000
""",
    ),
    _does(
        "starts in an empty folder that it may write",
        """
import os
assert os.listdir('.') == [], os.listdir('.')
open('x', 'w').write('x')
assert os.access('.', os.W_OK)
""",
    ),
    _does(
        "gets through a quick second",
        """
import time
begun = time.monotonic()
while time.monotonic() - begun < 0.3:
    pass
""",
        limits=replace(SMALL, wall_s=10.0),
    ),
    shell(
        "uses the tools of a shell",
        _KIND,
        """set -e
printf 'b\\na\\n' | sort > s
grep -c a s
sed 's/a/z/' s | tail -1
awk '{print NR}' s
head -c 3 /dev/zero | wc -c
find . -name s
tar cf t.tar s
gzip t.tar
date > /dev/null""",
        prints("./s"),
        limits=_USUAL,
    ),
    cells(
        "shows errors with their lines",
        _KIND,
        ["def f():\n    return 1 / 0", "f()"],
        prints("ZeroDivisionError: division by zero"),
        limits=_USUAL,
    ),
    Attack(name="keeps variables from cell to cell", kind=_KIND, play=_keeps_state),
    Attack(name="keeps files as they were written", kind=_KIND, play=_keeps_files),
    Attack(name="shares its folder between cells and commands", kind=_KIND, play=_shares_its_folder),
)
