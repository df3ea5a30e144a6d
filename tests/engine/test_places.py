"""A place is never lost, whatever happens in the very moment in which it is given."""

import asyncio

import pytest

from agentenv.engine.places import Places
from agentenv.engine.routing import Routing
from agentenv.errors import DeadlineExceeded, EngineError


async def waiting(places: Places, *names: str) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(places.take(name, tokens=10, deadline_s=5)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def test_a_place_given_to_somebody_who_has_just_been_cancelled_goes_to_the_next():
    places = Places(Routing(1, limit=10))
    await places.take("a", tokens=10, deadline_s=5)
    first, second = await waiting(places, "b", "c")
    first.cancel()
    places.release(0, tokens=10)  # before the one that was cancelled runs
    assert await asyncio.wait_for(second, 1) == 0
    with pytest.raises(asyncio.CancelledError):
        await first
    assert places.routing.requests_in_flight(0) == 1


async def test_somebody_who_is_cancelled_right_after_getting_a_place_gives_it_to_the_next():
    places = Places(Routing(1, limit=10))
    await places.take("a", tokens=10, deadline_s=5)
    first, second = await waiting(places, "b", "c")
    places.release(0, tokens=10)
    first.cancel()
    assert await asyncio.wait_for(second, 1) == 0
    with pytest.raises(asyncio.CancelledError):
        await first
    assert places.routing.requests_in_flight(0) == 1


async def test_whoever_waits_too_long_leaves_the_line():
    places = Places(Routing(1, limit=10))
    await places.take("a", tokens=10, deadline_s=5)
    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s; 0 other requests wait"):
        await places.take("b", tokens=10, deadline_s=0.01)
    assert places.routing.num_waiting == 0


async def test_all_who_wait_can_be_told_that_it_is_over():
    places = Places(Routing(1, limit=10))
    await places.take("a", tokens=10, deadline_s=5)
    tasks = await waiting(places, "b", "c")
    places.fail_waiting(EngineError("over"))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["over", "over"]
    assert (places.routing.num_waiting, places.routing.requests_in_flight(0)) == (0, 1)
