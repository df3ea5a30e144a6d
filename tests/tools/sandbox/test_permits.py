"""The queue for sandboxes: bounded, in order, across event loops, with a deadline."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agentenv.errors import SandboxError
from agentenv.tools.sandbox.permits import Permits


async def test_who_waits_longest_is_served_first():
    permits = Permits(1, wait_s=5, what="places")
    order: list[int] = []

    async def use(number: int) -> None:
        async with permits.held():
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(use(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]


async def test_a_wait_past_its_deadline_is_an_error_and_costs_no_permit():
    permits = Permits(1, wait_s=0.05, what="places")
    async with permits.held():
        with pytest.raises(SandboxError, match="none of 1 places came free within"):
            await permits.take()
    async with permits.held():
        pass


async def test_whoever_is_cancelled_while_waiting_costs_no_permit():
    permits = Permits(1, wait_s=5, what="places")
    await permits.take()
    waiting = asyncio.create_task(permits.take())
    granted_then_cancelled = asyncio.create_task(permits.take())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    permits.give_back()
    granted_then_cancelled.cancel()
    await asyncio.gather(waiting, granted_then_cancelled, return_exceptions=True)
    async with asyncio.timeout(2):
        await permits.take()


async def test_a_permit_given_back_on_one_loop_serves_another():
    permits = Permits(1, wait_s=5, what="places")
    await permits.take()
    served = threading.Event()

    async def elsewhere() -> None:
        async with permits.held():
            served.set()

    other = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
    await asyncio.sleep(0.05)
    assert not served.is_set()
    permits.give_back()
    async with asyncio.timeout(5):
        await other
    assert served.is_set()
