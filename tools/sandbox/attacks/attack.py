"""What an attack is: something tried inside a sandbox, and a judgement from outside on whether the border held."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from agentenv.tools.sandbox.attacks.canaries import Canaries
from agentenv.tools.sandbox.attacks.leftovers import end_leftovers
from agentenv.tools.sandbox.sandbox import Cell, Completed, Isolation, Limits, Sandbox, SandboxBackend

Kind = Literal[
    "host files read",
    "host files written",
    "network",
    "information",
    "processes",
    "privilege",
    "bombs",
    "time",
    "output",
    "crashes",
    "harness",
    "text",
    "shell",
    "sql",
    "reward hacks",
    "between episodes",
    "still works",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

Need = Literal["disk quota", "process table", "own network", "own /dev/shm"]
"""What a back end of isolation `reduced` lacks, so that an attack which needs it may get through there."""

SMALL = Limits(
    wall_s=5.0,
    episode_s=60.0,
    memory_bytes=128 << 20,
    processes=32,
    file_bytes=8 << 20,
    work_bytes=24 << 20,
    work_files=1000,
)
"""Limits of an attack unless it sets its own: small, so that running into them is quick."""

TRIED = "the attack ran to its end"
GOT = "GOT"
_SLACK_S = 8.0


class Broken(Exception):
    """The border gave way, or a call after the attack did not work; says what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an attack left behind.

    Attributes:
        text: everything that it printed, and its traceback.
        ending: how its process ended.
        exit_code: of a process that exited.
        signal: that ended it.
        took_s: seconds, on the clock of whoever called.
    """

    text: str
    ending: str
    exit_code: int | None = None
    signal: int | None = None
    took_s: float = 0.0


Check = Callable[["Arena", Seen], None]
"""Raises `Broken` when what was seen must not be."""


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Where one attack takes place.

    Attributes:
        backend: under attack.
        canaries: on the host, for the attack to find.
        mark: 12 digits in names of this attack's processes and files, by which they are recognised outside.
    """

    backend: SandboxBackend
    canaries: Canaries
    mark: str = field(default_factory=lambda: f"{secrets.randbelow(10**12):012}")

    def fill(self, code: str) -> str:
        """Put canaries and the mark where code says `<<name>>`."""
        for name, value in {**self.canaries.places, "mark": self.mark}.items():
            code = code.replace(f"<<{name}>>", value)
        return code

    async def program(self, code: str, *, stdin: str = "", limits: Limits = SMALL) -> Seen:
        """Run a Python program in a sandbox of its own."""
        begun = time.monotonic()
        completed = await self.backend.execute(self.fill(code), stdin=stdin, limits=limits)
        return seen(completed, took_s=time.monotonic() - begun)

    @asynccontextmanager
    async def episode(self, *, limits: Limits = SMALL) -> AsyncIterator[Sandbox]:
        """Open a sandbox that is closed afterwards."""
        sandbox = await self.backend.open(limits=limits)
        try:
            yield sandbox
        finally:
            await sandbox.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack.

    Attributes:
        name: what it tries, as a phrase that follows "it ...".
        kind: its class.
        play: tries it; raises `Broken` when the border gave way.
        needs: what a `reduced` back end lacks and this attack gets through without.
    """

    name: str
    kind: Kind
    play: Callable[[Arena], Awaitable[None]]
    needs: Need | None = None

    def must_hold(self, isolation: Isolation) -> bool:
        """True when a back end of this isolation promises to hold it."""
        return isolation != "reduced" or self.needs is None


def seen(result: Completed | Cell, *, took_s: float = 0.0) -> Seen:
    """Return what a command or a cell left, in one form."""
    if isinstance(result, Cell):
        text = "\n".join([result.output, result.value, result.error])
        return Seen(text=text, ending=result.ending, took_s=took_s)
    text = f"{result.stdout}\n{result.stderr}"
    return Seen(text=text, ending=result.ending, exit_code=result.exit_code, signal=result.signal, took_s=took_s)


def program(
    name: str,
    kind: Kind,
    code: str,
    *checks: Check,
    needs: Need | None = None,
    limits: Limits = SMALL,
    finishes: bool = True,
    stdin: str = "",
) -> Attack:
    """Return an attack that is one Python program.

    It fails when a check does, when it prints `GOT`, when the secret of the canaries is in its output, when a process
    with its mark outlives it, or when it ends before its end although it `finishes`: such an attack proved nothing.
    """

    async def play(arena: Arena) -> None:
        result = await arena.program(f"{code}\nprint({TRIED!r})" if finishes else code, stdin=stdin, limits=limits)
        judge(arena, result, *checks, finishes=finishes)

    return Attack(name=name, kind=kind, play=play, needs=needs)


def shell(
    name: str,
    kind: Kind,
    script: str,
    *checks: Check,
    needs: Need | None = None,
    limits: Limits = SMALL,
    finishes: bool = True,
) -> Attack:
    """Return an attack that is one shell script in an episode; the next command there must work."""

    async def play(arena: Arena) -> None:
        async with arena.episode(limits=limits) as sandbox:
            begun = time.monotonic()
            text = arena.fill(f"{script}\necho '{TRIED}'" if finishes else script)
            result = seen(await sandbox.run(["sh", "-c", text]), took_s=time.monotonic() - begun)
            judge(arena, result, *checks, finishes=finishes)
            nothing_outlives(arena)
            await next_command_works(sandbox)

    return Attack(name=name, kind=kind, play=play, needs=needs)


def cells(
    name: str,
    kind: Kind,
    codes: Sequence[str],
    *checks: Check,
    needs: Need | None = None,
    limits: Limits = SMALL,
    finishes: bool = True,
) -> Attack:
    """Return an attack that is a series of cells of the persistent interpreter; the next cell there must work."""

    async def play(arena: Arena) -> None:
        async with arena.episode(limits=limits) as sandbox:
            begun, results = time.monotonic(), []
            for code in codes:
                results.append(seen(await sandbox.python(arena.fill(code))))
            text = "\n".join(result.text for result in results)
            result = replace(results[-1], text=text, took_s=time.monotonic() - begun)
            judge(arena, result, *checks, finishes=False)
            if finishes and any(one.ending != "exited" for one in results):
                raise Broken(f"the interpreter was lost: {result.ending}")
            await next_cell_works(sandbox)

    return Attack(name=name, kind=kind, play=play, needs=needs)


def judge(arena: Arena, result: Seen, *checks: Check, finishes: bool) -> None:
    """Raise `Broken` unless what was seen is what a held attack leaves."""
    if arena.canaries.secret in result.text:
        raise Broken("the secret came out")
    got = [line for line in result.text.splitlines() if line.startswith(GOT)]
    if got:
        raise Broken(got[0][:200])
    for check in checks:
        check(arena, result)
    if finishes and TRIED not in result.text:
        raise Broken(f"it did not run to its end ({result.ending}): {result.text.strip()[-200:]}")


def nothing_outlives(arena: Arena) -> None:
    """Raise `Broken` when a process of the attack lives on; it is ended."""
    left = end_leftovers(arena.mark)
    if left:
        raise Broken(f"{left} processes outlived it")


async def next_command_works(sandbox: Sandbox) -> None:
    """Raise `Broken` unless a command in this sandbox works."""
    done = await sandbox.run(["sh", "-c", "echo $((6 * 7))"])
    if done.stdout.strip() != "42":
        raise Broken(f"the next command gave {done}")


async def next_cell_works(sandbox: Sandbox) -> None:
    """Raise `Broken` unless a cell in this sandbox works and answers for itself.

    Code that tampered with its own interpreter may have lost it, which the first cell afterwards may say, once.
    """
    cell = await sandbox.python("6 * 7")
    if cell.ending != "exited" and "FORGED" not in f"{cell.output}{cell.value}":
        cell = await sandbox.python("6 * 7")
        if not cell.is_fresh:
            raise Broken(f"a lost interpreter was not replaced: {cell}")
    if cell.value != "42" or cell.ending != "exited":
        raise Broken(f"the next cell gave {cell}")


def ended(*endings: str, within_s: float | None = None) -> Check:
    """Demand one of some endings, soon after the deadline of the call."""

    def check(_: Arena, result: Seen) -> None:
        if result.ending not in endings:
            raise Broken(
                f"it ended by {result.ending} ({result.exit_code}, {result.signal}), not {' or '.join(endings)}"
            )
        if within_s is not None and result.took_s > within_s + _SLACK_S:
            raise Broken(f"it took {result.took_s:.1f} s of {within_s:g}")

    return check


def prints(text: str) -> Check:
    """Demand a text in the output."""

    def check(_: Arena, result: Seen) -> None:
        if text not in result.text:
            raise Broken(f"{text!r} is not in {result.text.strip()[-200:]!r} ({result.ending})")

    return check


def untouched(arena: Arena, _: Seen) -> None:
    """Demand that nothing was written to the host."""
    changes = arena.canaries.changes()
    if changes:
        raise Broken(changes)


def unheard(arena: Arena, _: Seen) -> None:
    """Demand that nobody reached a socket of the host."""
    heard = arena.canaries.heard()
    if heard:
        raise Broken(f"reached the host by {', '.join(heard)}")
