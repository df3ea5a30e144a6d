"""Runs the attacks against a back end, one after the other, each followed by a call that must work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from agentenv.errors import UsageError, describe, did_you_mean
from agentenv.tools.sandbox.attacks import (
    between,
    bombs,
    crashes,
    harness,
    host_reads,
    host_writes,
    information,
    network,
    output,
    privilege,
    processes,
    reward_hacks,
    shell_sessions,
    sql,
    text,
    time_limits,
    works,
)
from agentenv.tools.sandbox.attacks.attack import KINDS, SMALL, Arena, Attack, Broken, nothing_outlives
from agentenv.tools.sandbox.attacks.canaries import VARIABLE, Canaries
from agentenv.tools.sandbox.sandbox import SandboxBackend

ATTACKS: tuple[Attack, ...] = (
    *host_reads.ATTACKS,
    *host_writes.ATTACKS,
    *network.ATTACKS,
    *information.ATTACKS,
    *processes.ATTACKS,
    *privilege.ATTACKS,
    *bombs.ATTACKS,
    *time_limits.ATTACKS,
    *output.ATTACKS,
    *crashes.ATTACKS,
    *harness.ATTACKS,
    *text.ATTACKS,
    *shell_sessions.ATTACKS,
    *sql.ATTACKS,
    *reward_hacks.ATTACKS,
    *between.ATTACKS,
    *works.ATTACKS,
)

Status = Literal["held", "FAILED", "allowed", "skipped"]

NEVER_BARE = (
    "The attacks are played against a border only: where nothing stops them they would stop processes, fill disks and "
    "change files of this machine, and show nothing that is not known."
)

_ATTACK_S = 120.0
_LOOK = f"""
import os
print(os.environ.get({VARIABLE!r}))
try:
    print(open("<<secret_file>>").read())
except OSError:
    pass
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one attack went.

    Attributes:
        attack: which.
        status: `held`; `FAILED`; `allowed` where it got through what a `reduced` back end does not promise; `skipped`
            where the back end cannot be asked.
        detail: what was seen, or why it was skipped.
        took_s: seconds.
    """

    attack: Attack
    status: Status
    detail: str
    took_s: float


def attacks_of(kinds: Collection[str]) -> tuple[Attack, ...]:
    """Return the attacks of some classes, all for none.

    Raises:
        UsageError: there is no such class.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"no class of attacks is {kind!r}.{did_you_mean(kind, KINDS)} Allowed: {', '.join(KINDS)}")
    return tuple(attack for attack in ATTACKS if not kinds or attack.kind in kinds)


async def run_suite(
    backend: SandboxBackend, canaries: Canaries, attacks: Sequence[Attack] = ATTACKS
) -> AsyncIterator[Result]:
    """Yield the result of one attack after the other.

    Args:
        backend: under attack; it should have been opened after the canaries were planted.
        canaries: the bait.
        attacks: which.

    Raises:
        UsageError: nothing isolates the code, so that attacks would hit this machine; none is played.
    """
    await _require_border(Arena(backend=backend, canaries=canaries))
    for attack in attacks:
        begun = time.monotonic()
        status, detail = await _played(attack, Arena(backend=backend, canaries=canaries))
        yield Result(attack=attack, status=status, detail=detail, took_s=time.monotonic() - begun)


async def _require_border(arena: Arena) -> None:
    """Look for the bait in a way that does no harm, whatever the back end says of itself, before anything else runs."""
    if arena.backend.isolation == "none":
        raise UsageError(NEVER_BARE)
    found = await arena.program(_LOOK)
    if arena.canaries.secret in found.text:
        raise UsageError(f"code in {arena.backend.name} reads the files or variables of this machine. {NEVER_BARE}")


async def _played(attack: Attack, arena: Arena) -> tuple[Status, str]:
    detail = await _tried(attack, arena)
    if isinstance(detail, UsageError):
        return "skipped", str(detail)
    if not detail:
        return "held", ""
    if attack.must_hold(arena.backend.isolation):
        return "FAILED", detail
    return "allowed", f"{detail} (a reduced back end has no {attack.needs})"


async def _tried(attack: Attack, arena: Arena) -> str | UsageError:
    """Play an attack and the call after it; return what was wrong, or why it cannot be played."""
    arena.canaries.forget()  # what an earlier attack left
    try:
        async with asyncio.timeout(_ATTACK_S):
            await attack.play(arena)
            nothing_outlives(arena)
    except Broken as error:
        found = str(error)
    except UsageError as error:
        return error
    except TimeoutError:
        found = f"the call did not return within {_ATTACK_S:g} s"
    except Exception as error:  # whatever a back end raises is a finding
        found = describe(error)
    else:
        found = ""
    return found or await _next_call(arena)


async def _next_call(arena: Arena) -> str:
    try:
        async with asyncio.timeout(_ATTACK_S):
            completed = await arena.backend.execute("print(6 * 7)", limits=SMALL)
    except Exception as error:
        return f"the next call raised {describe(error)}"
    return "" if completed.stdout.strip() == "42" else f"the next call gave {completed}"
