"""Serves the figures of a run to Prometheus, on the loopback interface, for as long as the run lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agentenv.errors import UsageError, describe
from agentenv.gauges import Gauges

HOST = "127.0.0.1"
_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsServer:
    """An endpoint that is served.

    Attributes:
        gauges: what it shows; tell it what to watch.
        url: where Prometheus scrapes.
    """

    gauges: Gauges
    url: str


@contextmanager
def serve_metrics(port: int | None) -> Iterator[MetricsServer | None]:
    """Serve metrics until the context is left.

    Args:
        port: on the loopback interface; 0 takes a free one, None serves nothing.

    Yields:
        What is served; None where nothing is.

    Raises:
        UsageError: prometheus_client is not installed, or the port is taken.
    """
    if port is None:
        yield None
        return
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
    except ImportError as error:
        raise UsageError(
            "metrics_port needs the package prometheus_client, which is not installed; "
            'run `pip install "agentenv[metrics]"`'
        ) from error
    gauges = Gauges()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(gauges)
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, addr=HOST, registry=registry)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"metrics cannot be served on {HOST}:{port} ({describe(error)}); "
            "choose another metrics_port, or 0 for a free one"
        ) from error
    try:
        yield MetricsServer(gauges=gauges, url=f"http://{HOST}:{server.server_port}/metrics")
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_CLOSE_S)
