"""Metrics over HTTP: scraped for real, read by Prometheus' own parser, and gone when the run is."""

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentenv import ToolEnv, tool, tool_turn
from agentenv.engine.protocol import SamplingParams, WeightManifest
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.errors import UsageError
from agentenv.gauges import FAMILIES
from agentenv.messages import Message
from agentenv.metrics_log import read_metrics
from agentenv.metrics_server import serve_metrics
from agentenv.runner import GroupSpec, Runner, RunnerConfig
from agentenv.trace import TracingConfig, open_tracing
from agentenv.track import TrackingConfig, open_trackers

ROOT = Path(__file__).resolve().parent.parent


class Waits(ToolEnv):
    """Waits for a gate, then ends with the answer."""

    inline = True
    gate: asyncio.Event

    def setup(self, rng, task):
        return "go"

    @tool
    async def wait(self) -> str:
        """Wait."""
        await self.gate.wait()
        return "ok"


@dataclass(frozen=True, kw_only=True)
class ReplicaState:
    """As a pool reports it."""

    name: str
    state: str
    tokens_in_flight: int
    tokens_limit: int = 65536
    requests_in_flight: int = 3
    num_restarts: int = 0
    cache_use: float = 0.5


class TwoReplicas:
    """A pool of which one replica is being replaced."""

    num_reissued = 4

    def stats(self):
        return (
            ReplicaState(name="a", state="live", tokens_in_flight=900),
            ReplicaState(name="b", state="replacing", tokens_in_flight=0, num_restarts=2),
        )


async def scrape(url):
    """Return (name, *label values in order of their names) -> value, as Prometheus reads the page."""
    async with httpx.AsyncClient() as client:
        response = await client.get(url, timeout=10)
    assert response.status_code == 200
    families = text_string_to_metric_families(response.text)
    return {(s.name, *dict(sorted(s.labels.items())).values()): s.value for family in families for s in family.samples}


def runner_of(renderer, engine, **config):
    gate = asyncio.Event()
    Waits.gate = gate
    runner = Runner(engine=engine, renderer=renderer, config=RunnerConfig(**config), make_env=lambda spec: Waits())
    return runner, gate


def turns_of(renderer):
    return [renderer.turn_ids(tool_turn("wait", {})), renderer.turn_ids(Message(role="assistant", content="done"))]


async def test_a_running_and_then_a_finished_run_is_seen_by_a_scrape(renderer):
    with serve_metrics(0) as served:
        assert served is not None
        engine = served.gauges.watch_engine(ScriptedEngine(turns_of(renderer)), name="scripted")
        runner, gate = runner_of(renderer, engine, max_episodes=3)
        served.gauges.watch_runner(runner, name="train")
        await engine.update_weights(WeightManifest(version=6))
        playing = asyncio.create_task(runner.run_all([GroupSpec(group_id="g", env_id="x/Waits-v0", size=5)]))
        await asyncio.sleep(0.05)

        during = await scrape(served.url)
        assert during["agentenv_episodes_running", "train"] == 3
        assert during["agentenv_episodes_waiting", "train"] == 2
        assert during["agentenv_admission_waits_total", "train"] == 2
        held = sum(len(episode.recorder.token_ids) for episode in runner.running)
        assert during["agentenv_tokens_in_flight", "train"] == held > 0
        assert during["agentenv_episodes_total", "train", "completed"] == 0
        assert during["agentenv_engine_weight_version", "scripted"] == 6

        gate.set()
        (group,) = await playing
        after = await scrape(served.url)

    sampled = sum(t.num_sampled_tokens for t in group.trajectories)
    assert after["agentenv_episodes_running", "train"] == 0
    assert after["agentenv_tokens_in_flight", "train"] == 0
    assert after["agentenv_episodes_total", "train", "completed"] == 5
    assert after["agentenv_episodes_total", "train", "engine_error"] == 0
    assert after["agentenv_sampled_tokens_total", "train"] == sampled
    assert after["agentenv_episode_turns_bucket", "1.0", "train"] == 0
    assert after["agentenv_episode_turns_bucket", "2.0", "train"] == 5
    assert after["agentenv_episode_turns_sum", "train"] == 10
    assert after["agentenv_episode_seconds_count", "train"] == 5
    assert after["agentenv_admission_wait_seconds_total", "train"] >= 0.09  # two waited for 0.05 s or more
    assert after["agentenv_engine_output_tokens_total", "scripted"] == sampled
    assert after["agentenv_engine_generate_seconds_count", "scripted"] == 10
    assert after["agentenv_engine_update_seconds_count", "scripted"] == 1
    assert after["agentenv_engine_requests_open", "scripted"] == 0
    assert after["agentenv_engine_ready", "scripted"] == 1


async def test_retries_failures_and_engine_errors_are_counted(renderer):
    with serve_metrics(0) as served:
        assert served is not None
        inner = ScriptedEngine(turns_of(renderer)[1:], faults=Faults(fail_every=2))
        engine = served.gauges.watch_engine(inner, name="e")
        runner, _ = runner_of(renderer, engine, max_retries=1)
        served.gauges.watch_runner(runner, name="r")
        await runner.run_all([GroupSpec(group_id=str(i), env_id="x/Waits-v0") for i in range(3)])
        await engine.close()
        seen = await scrape(served.url)
    # requests 1 and 3 fail: the first attempts of the second and third episode, whose retries are requests 2 and 4
    assert seen["agentenv_engine_errors_total", "e", "EngineError"] == 2
    assert seen["agentenv_episode_retries_total", "r"] == 2
    assert seen["agentenv_episodes_total", "r", "engine_error"] == 2
    assert seen["agentenv_episodes_total", "r", "completed"] == 3
    assert seen["agentenv_engine_ready", "e"] == 0


async def test_every_replica_of_a_pool_is_shown():
    with serve_metrics(0) as served:
        assert served is not None
        served.gauges.watch_pool(TwoReplicas(), name="p")
        seen = await scrape(served.url)
    assert seen["agentenv_pool_replicas", "p", "live"] == seen["agentenv_pool_replicas", "p", "replacing"] == 1
    assert seen["agentenv_pool_tokens_in_flight", "p", "a"] == 900
    assert seen["agentenv_pool_restarts_total", "p", "b"] == 2
    assert seen["agentenv_pool_reissued_requests_total", "p"] == 4


async def test_a_real_pool_has_what_is_shown():
    pool_module = pytest.importorskip("agentenv.engine.pool")
    pool = await pool_module.Pool.open([ScriptedEngine([(7,)]), ScriptedEngine([(7,)])], names=("a", "b"))
    with serve_metrics(0) as served:
        assert served is not None
        served.gauges.watch_pool(pool, name="p")
        engine = served.gauges.watch_engine(pool, name="pool")
        sampling = SamplingParams(max_tokens=4)
        asked = [engine.generate([1, 2], sampling, session_id=str(i), deadline_s=5) for i in range(6)]
        await asyncio.gather(*asked)
        seen = await scrape(served.url)
        await pool.close()
    assert seen["agentenv_pool_replicas", "p", "live"] == 2
    assert seen["agentenv_pool_tokens_in_flight", "p", "a"] == 0
    assert seen["agentenv_pool_tokens_limit", "p", "b"] > 0
    assert seen["agentenv_engine_output_tokens_total", "pool"] == 6


async def test_training_metrics_and_delivered_spans_are_shown(renderer, tmp_path):
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    with serve_metrics(0) as served, open_tracing(TracingConfig(), exporter=InMemorySpanExporter()) as tracing:
        assert served is not None
        assert tracing is not None
        served.gauges.watch_tracing(tracing)
        more = {"prometheus": served.gauges.training}
        trackers = open_trackers(
            TrackingConfig(), folder=tmp_path, run_name="r", run_config=TrackingConfig(), others=more
        )
        trackers.log({"rollout/success": 0.25, "rollout/reward/Fund \u00e9": 1.5}, step=6)
        trackers.log({"rollout/success": 0.5}, step=7)
        runner, _ = runner_of(renderer, ScriptedEngine(turns_of(renderer)[1:]))
        await runner.run_group(GroupSpec(group_id="g", env_id="x/Waits-v0"))
        assert tracing.flush()
        seen = await scrape(served.url)
        trackers.close()

    assert seen["agentenv_training_step",] == 7
    assert seen["agentenv_training_metric", "rollout/success"] == 0.5
    assert seen["agentenv_training_metric", "rollout/reward/Fund \u00e9"] == 1.5  # of an earlier step
    assert seen["agentenv_trace_spans_total", "exported"] == 3  # episode, turn, generate
    assert [line.step for line in read_metrics(tmp_path / "metrics.jsonl")] == [6, 7]


async def test_every_exported_name_is_declared_and_every_declared_one_is_exported(renderer):
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    with serve_metrics(0) as served, open_tracing(TracingConfig(), exporter=InMemorySpanExporter()) as tracing:
        assert served is not None
        assert tracing is not None
        served.gauges.watch_tracing(tracing)
        engine = served.gauges.watch_engine(ScriptedEngine([()], faults=Faults(fail_every=1)), name="e")
        runner, _ = runner_of(renderer, engine, max_retries=0)
        served.gauges.watch_runner(runner, name="r")
        served.gauges.watch_pool(TwoReplicas(), name="p")
        served.gauges.training.log({"x": 1.0}, step=1)
        await runner.run_group(GroupSpec(group_id="g", env_id="x/Waits-v0"))
        async with httpx.AsyncClient() as client:
            text = (await client.get(served.url)).text

    declared = {family.name.removesuffix("_total"): family.kind for family in FAMILIES}
    exported = {f.name: f.type for f in text_string_to_metric_families(text) if f.name.startswith("agentenv_")}
    assert exported == declared
    assert all(f.documentation for f in text_string_to_metric_families(text))


async def test_scraping_while_the_event_loop_is_busy_shows_the_last_answer_in_time(renderer):
    with serve_metrics(0) as served:
        assert served is not None
        engine = served.gauges.watch_engine(ScriptedEngine(turns_of(renderer)), name="e")
        await engine.health()
        got = {}

        def scrape_now():
            started = time.perf_counter()
            got["text"] = httpx.get(served.url, timeout=10).text
            got["s"] = time.perf_counter() - started

        thread = threading.Thread(target=scrape_now)
        thread.start()
        time.sleep(1.6)  # noqa: ASYNC251 - the loop is busy, as while a model is trained on it
        thread.join(5)
    assert 'agentenv_engine_ready{engine="e"} 1.0' in got["text"]
    assert got["s"] < 3


async def test_1000_scrapes_beside_a_run_never_fail(renderer):
    """Counters are read on another thread than the one that changes them."""
    with serve_metrics(0) as served:
        assert served is not None
        engine = served.gauges.watch_engine(ScriptedEngine(turns_of(renderer)), name="e")
        runner, gate = runner_of(renderer, engine, max_episodes=16)
        gate.set()
        served.gauges.watch_runner(runner, name="r")
        failures = []
        is_over = threading.Event()

        def read():
            for _ in range(1000):
                try:
                    list(served.gauges.collect())
                except Exception as error:
                    failures.append(error)
                if is_over.is_set():
                    return

        engine.loop = None
        thread = threading.Thread(target=read)
        thread.start()
        await runner.run_all([GroupSpec(group_id=str(i), env_id="x/Waits-v0", size=4) for i in range(50)])
        is_over.set()
        await asyncio.to_thread(thread.join, 20)
    assert failures == []
    assert not thread.is_alive()


async def test_the_endpoint_closes_with_the_run_and_is_not_seen_from_outside():
    with serve_metrics(0) as served:
        assert served is not None
        port = int(served.url.split(":")[2].split("/")[0])
        assert served.url.startswith("http://127.0.0.1:")
        assert ("process_cpu_seconds_total",) in await scrape(served.url)
        with serve_metrics(None) as nothing:
            assert nothing is None
        with pytest.raises(UsageError, match="choose another metrics_port"), serve_metrics(port):
            pass
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    with serve_metrics(port) as again:  # the port is free again
        assert again is not None
    with pytest.raises(UsageError, match="metrics_port"), serve_metrics(70_000):
        pass


def test_a_missing_package_is_a_users_mistake_with_a_remedy():
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from agentenv.metrics_server import serve_metrics; from agentenv.errors import UsageError\n"
        "try:\n"
        "    with serve_metrics(0): pass\n"
        "except UsageError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert 'pip install "agentenv[metrics]"' in out.stdout


def test_a_runner_that_nobody_watches_counts_nothing(renderer, caplog):
    with caplog.at_level(logging.DEBUG):
        runner = Runner(engine=ScriptedEngine([()]), renderer=renderer)
    assert runner.tally is None
    assert runner.running == set()
