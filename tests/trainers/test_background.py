"""Work in threads, and steps that cancellation lets end."""

import asyncio
import threading

import pytest

from agentenv.trainers.background import in_thread, is_busy, whole


async def test_the_event_loop_goes_on_while_a_thread_works():
    may_end = threading.Event()

    async def let_it_end():
        may_end.set()

    task = asyncio.create_task(let_it_end())
    assert await asyncio.wait_for(in_thread(lambda: may_end.wait(10)), 20)
    await task


async def test_an_error_in_a_thread_reaches_whoever_waits():
    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await in_thread(fails)


async def test_whoever_gives_up_waiting_leaves_the_thread_behind():
    may_end, threads = threading.Event(), []

    def work():
        threads.append(threading.current_thread())
        may_end.wait(10)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(in_thread(work), 0.05)
    assert is_busy()
    may_end.set()
    threads[0].join(10)
    assert not is_busy()


class Step:
    """Counts how far it came."""

    def __init__(self):
        self.has_begun, self.may_end, self.has_ended = asyncio.Event(), asyncio.Event(), False

    async def run(self):
        self.has_begun.set()
        await self.may_end.wait()
        self.has_ended = True
        return 7


async def begun(step):
    task = asyncio.create_task(whole(step.run()))
    await step.has_begun.wait()
    return task


async def test_a_cancelled_step_ends_first_and_is_cancelled_then():
    step = Step()
    task = await begun(step)
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()

    step.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert step.has_ended


async def test_a_second_cancellation_cuts_the_step():
    step = Step()
    task = await begun(step)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert not step.has_ended


async def test_a_step_that_nobody_cancels_returns_its_value():
    step = Step()
    step.may_end.set()
    assert await whole(step.run()) == 7
