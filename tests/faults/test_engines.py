"""An engine that dies, hangs, is busy or answers nonsense costs attempts, never a hang and never a padded log-prob."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiohttp import web

from agentenv.engine.http import JsonClient
from agentenv.engine.measured import MeasuredEngine
from agentenv.engine.open import open_engine, pool_config
from agentenv.engine.pool import Pool
from agentenv.engine.protocol import Completion, SamplingParams
from agentenv.engine.server_config import ServerConfig
from agentenv.episode import Limits
from agentenv.messages import Message
from agentenv.runner import Runner
from agentenv.trajectory import StopReason, VersionSpan
from tests.engine.http_engine import drawn, make_adapter, make_model
from tests.engine.http_engine_client import HttpEngine
from tests.engine.processes import processes, until
from tests.faults.desk import Inline, Told, runner_of, spec, tally_of

CONFIG = ServerConfig(name="vllm")


class Server:
    """A server over real HTTP. The next requests meet `faults`, one each; those after them are answered."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.faults: list[str] = []
        self.num_asked = 0
        self.url = ""

    async def generate(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.num_asked += 1
        fault = self.faults.pop(0) if self.faults else ""
        if fault.isdigit():
            return web.Response(status=int(fault), text="try later")
        if fault == "hang":
            await asyncio.sleep(3600)
        body = json.dumps({"ids": self.ids, "version": 0, "logprobs": self.logprobs(fault)}).encode()
        if fault == "half":
            response = web.StreamResponse(headers={"Content-Length": str(len(body))})
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
            assert request.transport is not None
            request.transport.close()
            return response
        if fault == "html":
            body = b"<html>bad gateway</html>"
        return web.Response(body=body, content_type="application/json")

    def logprobs(self, fault: str) -> list[float | None]:
        first = {"null": None, "nan": float("nan"), "-inf": float("-inf"), "positive": 0.5}.get(fault, -0.5)
        return [] if fault == "none" else [first, *[-0.5] * (len(self.ids) - 1 - (fault == "short"))]


class Believing(HttpEngine):
    """Passes the server's log-probs on as they came."""

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams, **options: Any) -> Completion:
        body: dict[str, object] = {"prompt": list(prompt_ids), "seed": sampling.seed}
        answer = await self.client.post("/generate", body, deadline_s=options["deadline_s"])
        spans = (VersionSpan(version=0, start=0, end=len(answer["ids"])),)
        return Completion(
            token_ids=answer["ids"], logprobs=answer["logprobs"], finish_reason="stop", weight_versions=spans
        )


@pytest.fixture
async def server(renderer) -> AsyncIterator[Server]:
    server = Server(renderer.turn_ids(Message(role="assistant", content="done")))

    async def healthy(request: web.Request) -> web.Response:
        return web.json_response({"version": 0, "running": 0, "checksum": ""})

    app = web.Application()
    app.router.add_post("/generate", server.generate)
    app.router.add_get("/health", healthy)
    app.router.add_post("/status", healthy)
    running = web.AppRunner(app, shutdown_timeout=0.1)
    await running.setup()
    site = web.TCPSite(running, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{running.addresses[0][1]}"
    yield server
    await running.cleanup()


def playing(renderer, server: Server, *, busy_s: float = 20.0, **options: Any) -> tuple[Runner, MeasuredEngine]:
    engine = MeasuredEngine(Believing(JsonClient(server.url, busy_s=busy_s), config=CONFIG))
    return runner_of(renderer, lambda which: Inline(Told()), engine=engine, **options), engine


async def play(runner: Runner, index: int):
    async with asyncio.timeout(10):
        return await runner.run_episode(spec(index))


@pytest.mark.fault(
    "engine answers half bodies, HTML, null, NaN or missing log-probs",
    then="next episode is scored",
    metric="agentenv_engine_errors_total, agentenv_episodes_total{engine_error}",
)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("half", "failed"),
        ("html", "not JSON"),
        ("null", "log-prob None at position 0; a finite number <= 0 is needed"),
        ("nan", "log-prob nan at position 0"),
        ("-inf", "log-prob -inf at position 0"),
        ("positive", "log-prob 0.5 at position 0"),
        ("short", "log-probs; refusing both"),
        ("none", "but 0 log-probs; refusing both"),
        ("500", "answered 500: try later"),
    ],
)
async def test_an_answer_that_must_not_be_trained_on_is_refused_with_the_reason(renderer, server, fault, said):
    runner, engine = playing(renderer, server)
    server.faults = [fault]
    bad, good = await play(runner, 0), await play(runner, 1)
    assert (bad.stop_reason, bad.is_scored, bad.num_sampled_tokens) == (StopReason.ENGINE_ERROR, False, 0)
    assert said in bad.error
    assert good.reward == 1.0
    assert tally_of(runner).num_ended[StopReason.ENGINE_ERROR] == 1
    # what the engine itself took for an answer is refused one step later, so only the rest is its error
    assert sum(engine.num_errors.values()) == (fault in ("half", "html", "500"))
    await engine.close()


@pytest.mark.fault(
    "engine answers 429 and 503 in bursts", then="the same episode is scored", metric="JsonClient.num_busy"
)
@pytest.mark.parametrize("status", ["429", "503"])
async def test_a_busy_engine_is_asked_again_until_it_answers(renderer, server, status):
    runner, engine = playing(renderer, server)
    server.faults = [status] * 12
    played = await asyncio.gather(*(play(runner, index) for index in range(8)))
    assert [trajectory.reward for trajectory in played] == [1.0] * 8
    assert runner.num_retries == 0
    assert server.num_asked == 8 + 12
    assert engine.engine.client.num_busy == 12  # type: ignore[attr-defined]
    await engine.close()


@pytest.mark.fault(
    "engine stays busy",
    then="next episode is scored",
    metric="agentenv_engine_errors_total{RefusedRequest}, agentenv_episode_retries_total",
)
async def test_an_engine_that_stays_busy_is_an_engine_error_in_time(renderer, server):
    runner, engine = playing(renderer, server, busy_s=0.2, max_retries=1)
    server.faults = ["503"] * 6  # 0.05 s and 0.1 s after the first: three answers, twice
    bad, good = await play(runner, 0), await play(runner, 1)
    assert (bad.stop_reason, bad.attempt) == (StopReason.ENGINE_ERROR, 1)
    assert "answered 503: try later" in bad.error
    assert good.reward == 1.0
    assert runner.num_retries == 1
    assert engine.num_errors == Counter({"RefusedRequest": 2})
    await engine.close()


@pytest.mark.fault(
    "engine hangs and /health says 200",
    then="next episode is scored",
    metric="agentenv_engine_errors_total, agentenv_episodes_total",
)
async def test_an_engine_that_hangs_though_it_is_healthy_ends_with_the_deadline(renderer, server):
    runner, engine = playing(renderer, server, limits=Limits(episode_timeout_s=0.3))
    server.faults = ["hang"]
    bad = await play(runner, 0)
    assert (await engine.health()).is_ready
    good = await play(runner, 1)
    assert bad.stop_reason in (StopReason.DEADLINE, StopReason.ENGINE_ERROR)
    assert not bad.is_scored
    assert good.reward == 1.0
    assert tally_of(runner).num_ended[bad.stop_reason] == 1
    await engine.close()


@pytest.mark.faults
@pytest.mark.fault(
    "engine process killed, or stopped (SIGSTOP)",
    then="the same request is answered elsewhere, the process is replaced",
    metric="agentenv_pool_restarts_total, agentenv_pool_reissued_requests_total",
)
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
async def test_a_process_that_dies_or_stops_is_replaced_and_its_requests_go_elsewhere(tmp_path, monkeypatch, sign):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = make_model(tmp_path / "model")
    config = ServerConfig(name="vllm", python=sys.executable, replicas=2, options={"latency_s": 0.5})
    quick = {"probe_interval_s": 0.05, "probe_timeout_s": 0.5, "restart_pause_s": 0.05}
    pool = pool_config(config).model_copy(update=quick)
    engine = await open_engine(config, model=model, pool=pool, adapter=make_adapter())
    assert isinstance(engine, Pool)
    try:
        assert await asyncio.to_thread(until, lambda: len(processes("http_engine.py", model)) == 2)
        victim = processes("http_engine.py", model)[0]
        asked = [
            asyncio.create_task(
                engine.generate([7, 8], SamplingParams(max_tokens=8, seed=i), session_id=str(i), deadline_s=30)
            )
            for i in range(6)
        ]
        await asyncio.sleep(0.2)
        os.kill(victim, sign)
        completions = await asyncio.wait_for(asyncio.gather(*asked), 30)
        assert [one.token_ids for one in completions] == [drawn([7, 8], i) for i in range(6)]
        assert engine.num_reissued == 3
        assert await asyncio.to_thread(until, lambda: all(stats.state == "live" for stats in engine.stats()))
        assert sum(stats.num_restarts for stats in engine.stats()) == 1
        late = await engine.generate([7, 8], SamplingParams(max_tokens=8, seed=9), session_id="x", deadline_s=30)
        assert late.token_ids == drawn([7, 8], 9)
    finally:
        await engine.close()
    assert processes("http_engine.py", model) == []
