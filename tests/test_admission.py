"""Admission: order, bounds, and no place lost to a cancellation."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv.admission import Admission


async def test_tokens_bound_what_runs_and_one_always_runs():
    admission = Admission(max_episodes=10, max_tokens=100, expected_tokens=60)
    await admission.enter()
    waiting = asyncio.create_task(admission.enter())
    await asyncio.sleep(0)
    assert not waiting.done()  # two of 60 tokens would not fit into 100
    admission.leave(num_tokens=60)
    await waiting
    assert admission.num_running == 1


async def test_places_are_given_in_order():
    admission = Admission(max_episodes=1, max_tokens=10**9)
    order = []

    async def one(name):
        await admission.enter()
        order.append(name)
        admission.leave(num_tokens=1)

    await admission.enter()
    tasks = [asyncio.create_task(one(name)) for name in range(5)]
    await asyncio.sleep(0)
    admission.leave(num_tokens=1)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(cancelled=st.sets(st.integers(0, 9)), limit=st.integers(1, 4))
def test_no_place_is_lost_whoever_is_cancelled(cancelled, limit):
    async def scenario():
        admission = Admission(max_episodes=limit, max_tokens=10**9)

        async def one():
            await admission.enter()
            try:
                await asyncio.sleep(0)
                assert admission.num_running <= limit
            finally:
                admission.leave(num_tokens=10)

        tasks = [asyncio.create_task(one()) for _ in range(10)]
        await asyncio.sleep(0)
        for index in cancelled:
            tasks[index].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert admission.num_running == 0

    asyncio.run(scenario())


async def test_waits_are_counted_and_a_cancelled_one_waits_no_longer():
    admission = Admission(max_episodes=1, max_tokens=10**9)
    await admission.enter()
    first, second = (asyncio.create_task(admission.enter()) for _ in range(2))
    await asyncio.sleep(0.02)
    assert (admission.num_waiting, admission.num_waits) == (2, 2)

    first.cancel()
    await asyncio.sleep(0)
    assert admission.num_waiting == 1
    admission.leave(num_tokens=1)
    await second
    assert (admission.num_waiting, admission.num_waits) == (0, 2)
    assert 0.03 < admission.waited_s < 1  # both waited for 0.02 s
