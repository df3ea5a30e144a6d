"""A tool whose server is down, slow or flapping: an infrastructure failure, which is no reward."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from aiohttp import web

from agentenv import ToolEnv, reward, tool
from agentenv.trajectory import StopReason
from tests.faults.desk import runner_of, spec, tally_of


class Shop:
    """A server whose next answers are `moods`: `"ok"`, `"down"`, `"slow"`, `"500"` or `"cut"`; then `"ok"`."""

    def __init__(self) -> None:
        self.moods: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        mood = self.moods.pop(0) if self.moods else "ok"
        if mood == "slow":
            await asyncio.sleep(3600)
        if mood == "cut":
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"price": 3}, status=500 if mood == "500" else 200)


class Buyer(ToolEnv):
    """Ask the price over HTTP. Reward 1 if it is known."""

    def __init__(self, url: str, **options: Any) -> None:
        self.url, self.price = url, 0
        super().__init__(**options)

    def setup(self, rng, task):
        return "Ask."

    @tool(timeout_s=0.4)
    async def act(self) -> str:
        """Ask the price."""
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(self.url)
        answer.raise_for_status()
        self.price = answer.json()["price"]
        return f"{self.price}"

    @reward
    def knows(self) -> float:
        return float(self.price == 3)


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    shop = Shop()
    app = web.Application()
    app.router.add_get("/", shop.answer)
    running = web.AppRunner(app, shutdown_timeout=0.1)
    await running.setup()
    await web.TCPSite(running, "127.0.0.1", 0).start()
    shop.url = f"http://127.0.0.1:{running.addresses[0][1]}"
    yield shop
    await running.cleanup()


@pytest.mark.fault(
    "tool server down, slow, cut off or failing", then="next episode is scored", metric="agentenv_episodes_total"
)
@pytest.mark.parametrize(
    ("mood", "said"), [("down", "ConnectError"), ("slow", "no answer within 0.4 s"), ("cut", "Remote"), ("500", "500")]
)
async def test_a_tool_server_that_fails_is_no_reward(renderer, shop, mood, said):
    urls = ["http://127.0.0.1:9/" if mood == "down" else shop.url, shop.url]
    shop.moods = [] if mood == "down" else [mood]
    runner = runner_of(renderer, lambda which: Buyer(urls[int(which.group_id)]))
    async with asyncio.timeout(10):
        bad, good = await runner.run_episode(spec(0)), await runner.run_episode(spec(1))
    assert (bad.stop_reason, bad.is_scored, bad.reward_components) == (StopReason.TOOL_ERROR, False, {})
    assert said in bad.error
    assert good.reward_components == {"knows": 1.0}
    assert tally_of(runner).num_ended[StopReason.TOOL_ERROR] == 1


@pytest.mark.fault(
    "tool server flapping", then="every episode is scored on retry", metric="agentenv_episode_retries_total"
)
async def test_a_flapping_tool_server_costs_retries_and_no_reward_is_wrong(renderer, shop):
    runner = runner_of(renderer, lambda which: Buyer(shop.url), max_retries=1)
    shop.moods = ["ok", "500"] * 10  # one after the other: every second request fails, never two in a row
    async with asyncio.timeout(20):
        played = [await runner.run_episode(spec(index)) for index in range(10)]
    assert [trajectory.reward for trajectory in played] == [1.0] * 10
    assert runner.num_retries == 9  # "ok", then nine times "500", "ok"
    assert tally_of(runner).num_ended[StopReason.TOOL_ERROR] == 9
