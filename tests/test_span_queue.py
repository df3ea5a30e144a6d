"""Delivery of spans: they arrive over OTLP, and a back end that is down, slow or refuses never harms a run."""

import asyncio
import logging
import socket
import threading
import time

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from agentenv import tool_turn
from agentenv.runner import GroupSpec
from agentenv.span_queue import SpanQueue
from agentenv.trace import TracingConfig, open_tracing
from tests.traced_desk import GUESS, runner_of


class Down(SpanExporter):
    """A back end that takes its time and then fails."""

    def __init__(self, delay_s=0.0):
        self.delay_s, self.num_calls = delay_s, 0

    def export(self, spans) -> SpanExportResult:
        self.num_calls += 1
        time.sleep(self.delay_s)
        raise ConnectionRefusedError("nobody listens")

    def shutdown(self):
        pass


async def test_a_back_end_that_is_down_costs_spans_and_nothing_else(renderer, caplog):
    runner = runner_of(renderer, "done")
    specs = [GroupSpec(group_id=str(i), env_id=GUESS) for i in range(50)]
    with caplog.at_level(logging.WARNING), open_tracing(TracingConfig(), exporter=Down()) as tracing:
        groups = await runner.run_all(specs)
        assert tracing is not None
        assert tracing.flush()
    assert all(group.trajectories[0].is_scored for group in groups)
    assert tracing.num_failed == 50 * 5  # episode, turn, generate and two rewards
    assert tracing.num_exported == 0
    warnings = [record.getMessage() for record in caplog.records if record.name == "agentenv.span_queue"]
    assert len(warnings) == 2  # once why, once how many
    assert "nobody listens" in warnings[0]
    assert "250 of 250 spans" in warnings[1]


async def test_a_back_end_that_hangs_is_left_at_the_deadline_and_full_queues_are_counted(renderer, caplog):
    release = threading.Event()

    class Hangs(Down):
        def export(self, spans):
            self.num_calls += 1
            release.wait(30)
            return SpanExportResult.SUCCESS

    queue = SpanQueue(Hangs(), where="here", max_spans=10, batch_size=4, interval_s=0.01)
    started = time.perf_counter()
    for _ in range(100):
        queue.on_end(None)  # type: ignore[arg-type] - spans are not looked into
    assert time.perf_counter() - started < 1, "the one who ends a span never waits"
    assert 100 - 10 - 4 <= queue.num_dropped <= 100 - 10
    started = time.perf_counter()
    queue.close(deadline_s=0.2)
    assert 0.15 < time.perf_counter() - started < 2
    assert queue.num_dropped == 100
    release.set()
    queue.close(deadline_s=0.2)


@pytest.fixture
async def collector():
    """A real OTLP receiver: decodes what comes, and answers as told."""
    got: list[ExportTraceServiceRequest] = []
    headers: list[dict] = []
    status = {"code": 200}

    async def take(request):
        headers.append(dict(request.headers))
        got.append(ExportTraceServiceRequest.FromString(await request.read()))
        body = ExportTraceServiceResponse().SerializeToString()
        return web.Response(status=status["code"], body=body, content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", got, headers, status
    await runner.cleanup()


async def test_spans_arrive_at_an_otlp_receiver_over_http(renderer, collector, monkeypatch):
    url, got, headers, _ = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-mlflow-experiment-id=7")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "wandb.project=desk")
    runner = runner_of(renderer, tool_turn("in_thread", {"key": 3}), tool_turn("broken", {}), max_retries=0)
    config = TracingConfig(exporter="otlp", endpoint=url, content=True)

    with open_tracing(config, run_name="monday") as tracing:
        await runner.run_group(GroupSpec(group_id="g\ud800", env_id=GUESS, seed=2**70))
        assert tracing is not None
        assert await asyncio.to_thread(tracing.flush)

    resource = {a.key: a.value.string_value for a in got[0].resource_spans[0].resource.attributes}
    assert (resource["service.name"], resource["agentenv.run"]) == ("agentenv", "monday")
    assert resource["wandb.project"] == "desk"
    assert headers[0]["x-mlflow-experiment-id"] == "7"
    spans = [s for request in got for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
    assert sorted(span.name for span in spans) == sorted(
        ["episode", "turn", "turn", "generate", "generate", "tool in_thread", "tool broken", "reward manners"]
    )
    by_id = {span.span_id: span for span in spans}
    assert by_id[next(s for s in spans if s.name == "tool in_thread").parent_span_id].name == "turn"
    episode = next(span for span in spans if span.name == "episode")
    assert episode.status.code == 2  # ERROR
    said = {attribute.key: attribute.value for attribute in episode.attributes}
    assert said["agentenv.stop_reason"].string_value == "tool_error"
    assert said["agentenv.seed"].string_value == str(2**70)  # past 64 bits there are only texts
    assert tracing.num_exported == len(spans)


async def test_a_receiver_that_refuses_is_told_once_with_its_reason(renderer, collector, caplog):
    url, _, _, status = collector
    status["code"] = 401
    runner = runner_of(renderer, "done")
    with caplog.at_level(logging.WARNING), open_tracing(TracingConfig(exporter="otlp", endpoint=url)) as tracing:
        group = await runner.run_group(GroupSpec(group_id="g", env_id=GUESS))
        assert tracing is not None
        assert await asyncio.to_thread(tracing.flush)
    assert group.trajectories[0].is_scored
    assert tracing.num_failed == 5
    assert {record.name for record in caplog.records} == {"agentenv.span_queue"}
    assert "401" in caplog.records[0].getMessage()


async def test_a_port_where_nobody_listens_neither_fails_nor_slows_a_run(renderer):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    runner = runner_of(renderer, "done")
    specs = [GroupSpec(group_id=str(i), env_id=GUESS) for i in range(20)]
    await runner.run_all(specs)

    started = time.perf_counter()
    with open_tracing(TracingConfig(exporter="otlp", endpoint=f"http://127.0.0.1:{port}")) as tracing:
        groups = await runner.run_all(specs)
        played_s = time.perf_counter() - started
        closing = time.perf_counter()
    closed_s = time.perf_counter() - closing

    assert all(group.trajectories[0].is_scored for group in groups)
    assert played_s < 5
    assert closed_s < 5  # 2 s for a back end that has failed, and a little for the exporter's own shutdown
    assert tracing is not None
    assert tracing.num_exported == 0
    assert tracing.num_failed + tracing.num_dropped == 100
