"""A part of a run in another process, as the driver sees it; knows nothing of what carries the calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from agentenv.errors import ClusterError, PeerLost

START_TIMEOUT_S = 600.0
"""Seconds to import, load a model, and form a process group."""
VERB_TIMEOUT_S = 600.0
"""Seconds to read or write weights."""
ALIVE_INTERVAL_S, ALIVE_TIMEOUT_S = 10.0, 60.0
"""Seconds between two looks at a part that works for long, and the seconds in which it must answer."""


class Peer(Protocol):
    """An object in another process."""

    @property
    def name(self) -> str:
        """Role, number and node, for people: `rank 1 on 10.0.0.7`."""
        ...

    @property
    def host(self) -> str:
        """Address of its node."""
        ...

    def send(self, verb: str, *args: object) -> Any:
        """Begin a call and return the reference of its result; a reference among the arguments arrives as its value."""
        ...

    async def receive(self, ref: Any, *, verb: str, timeout_s: float | None) -> Any:
        """Wait for a result.

        Raises:
            PeerLost: the process or its node is gone.
            ClusterError: the call failed, with the remote traceback, or took too long.
        """
        ...

    def kill(self) -> None:
        """End the process at once; idempotent."""
        ...


async def call(peer: Peer, verb: str, *args: object, timeout_s: float | None = VERB_TIMEOUT_S) -> Any:
    """Call and wait; see `Peer.receive`."""
    return await peer.receive(peer.send(verb, *args), verb=verb, timeout_s=timeout_s)


async def call_all(
    peers: Sequence[Peer], verb: str, *args: object, timeout_s: float | None = VERB_TIMEOUT_S
) -> list[Any]:
    """Call all at once and return the results in order. The first failure is raised, however long the others wait."""
    return await first_failure([call(peer, verb, *args, timeout_s=timeout_s) for peer in peers])


async def call_all_watched(peers: Sequence[Peer], verb: str, *args: object) -> list[Any]:
    """Call something that may take hours: no deadline, but each peer must answer a look now and then.

    Raises:
        ClusterError: see `Peer.receive`, or a peer hangs.
    """
    work = asyncio.create_task(call_all(peers, verb, *args, timeout_s=None))
    watch = asyncio.create_task(_watch(peers))
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        watch.result()
        raise AssertionError("a watch ends by failing only")
    finally:
        for task in (work, watch):
            task.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


async def first_failure(coroutines: Sequence[Any]) -> list[Any]:
    """Run at once; the first failure cancels the others. Of failures in the same moment, a lost peer is the cause."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except ClusterError as error:
        await asyncio.sleep(0)
        failures = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        raise next((failure for failure in failures if isinstance(failure, PeerLost)), error) from error.__cause__
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(peers: Sequence[Peer]) -> None:
    while True:
        await asyncio.sleep(ALIVE_INTERVAL_S)
        await call_all(peers, "alive", timeout_s=ALIVE_TIMEOUT_S)
