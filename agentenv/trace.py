"""Rollout tracing: OpenTelemetry spans episode > turn > generate, tool, reward; off by default and free when off."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from agentenv.config import Config
from agentenv.errors import UsageError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from agentenv.trace_spans import Tracing

F = TypeVar("F", bound=Callable[..., object])

ExporterName = Literal["off", "otlp", "console"]
SpanKind = Literal["episode", "generate", "step", "tool", "reward", "group reward"]


class TracingConfig(Config):
    """Spans of episodes, turns, generations, tools and rewards, for any OpenTelemetry back end."""

    exporter: ExporterName = "off"
    """otlp sends them over HTTP, console writes them to standard error, off takes none."""
    endpoint: str | None = None
    """Where otlp sends, e.g. http://localhost:4318; null takes OTEL_EXPORTER_OTLP_ENDPOINT, else that address.
    Headers and keys come from OTEL_EXPORTER_OTLP_HEADERS only."""
    sample: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of episodes that are traced; which ones follows from their seeds."""
    content: bool = False
    """Send prompts, outputs, tool arguments and results too, as text, cut to 4000 characters each."""

    @field_validator("endpoint")
    @classmethod
    def _http_without_secrets(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("endpoint must be an http:// or https:// address, e.g. http://localhost:4318")
        if parts.username is not None or parts.password is not None:
            raise ValueError("endpoint must not carry a user or password; put keys into OTEL_EXPORTER_OTLP_HEADERS")
        return endpoint


_active: Tracing | None = None


def traced(kind: SpanKind) -> Callable[[F], F]:
    """Decorate the coroutine function that does what a span of this kind covers.

    Without open tracing the call costs one look at a global. What a kind reads from the arguments and the result is
    said in `trace_spans.py`.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> object:
            if _active is None:
                return function(*args, **kwargs)
            return _active.call(kind, function, args, kwargs)

        return cast(F, wrapper)

    return decorate


@contextmanager
def open_tracing(
    config: TracingConfig, *, run_name: str = "", model: str = "", exporter: SpanExporter | None = None
) -> Iterator[Tracing | None]:
    """Trace the episodes that are played inside the context; leaving it delivers what is queued, for 15 s at most.

    A back end that is down, slow or refuses costs spans, which are counted, and never an episode.

    Args:
        config: what to trace and where it goes.
        run_name: sent as the resource attribute `agentenv.run`.
        model: sent as `gen_ai.request.model`.
        exporter: one of your own instead of the configured one, e.g. in memory for tests; it is shut down on leaving.

    Yields:
        The counts of spans; None when tracing is off.

    Raises:
        UsageError: OpenTelemetry is not installed, or tracing is already open in this process.
    """
    global _active
    if config.exporter == "off" and exporter is None:
        yield None
        return
    _require_packages(needs_otlp=exporter is None and config.exporter == "otlp")
    from agentenv.trace_spans import Tracing

    if _active is not None:
        raise UsageError("tracing is already open in this process; leave the first open_tracing before the next")
    _active = tracing = Tracing(config, run_name=run_name, model=model, exporter=exporter)
    try:
        yield tracing
    finally:
        _active = None
        tracing.close()


def _require_packages(*, needs_otlp: bool) -> None:
    needed = ["opentelemetry.sdk", *(["opentelemetry.exporter.otlp.proto.http"] if needs_otlp else [])]
    for name in needed:
        if not _is_installed(name):
            raise UsageError(
                f'tracing needs the package {name}, which is not installed; run `pip install "agentenv[tracing]"`, '
                "or set exporter to off"
            )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
