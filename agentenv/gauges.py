"""What Prometheus is told: figures of runners, engines, training and tracing, read when somebody asks for them.

Everything here is pulled: the objects that are watched keep plain counters, or none at all, and know nothing of
Prometheus.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as WaitTimeout
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from agentenv.engine.measured import MeasuredEngine
from agentenv.engine.protocol import Engine
from agentenv.offload import num_abandoned_threads
from agentenv.runner import Runner
from agentenv.tally import Distribution, EpisodeTally
from agentenv.transcript import TranscriptRow

if TYPE_CHECKING:
    from prometheus_client import Metric

    from agentenv.trace_spans import Tracing

HEALTH_S = 1.0
"""How long a scrape waits for an engine's health; a busy event loop then keeps its last answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A metric that is exported.

    Attributes:
        name: as Prometheus knows it; counters end in `_total`.
        kind: of metric.
        labels: names of its labels.
        text: what it means.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    labels: tuple[str, ...]
    text: str


def _family(kind: Literal["gauge", "counter", "histogram"], name: str, text: str, *labels: str) -> Family:
    return Family(name=f"agentenv_{name}", kind=kind, labels=labels, text=text)


FAMILIES: tuple[Family, ...] = (
    _family("gauge", "episodes_running", "Episodes that are played now.", "runner"),
    _family("gauge", "episodes_waiting", "Episodes that wait for admission.", "runner"),
    _family("gauge", "tokens_in_flight", "Tokens that running episodes hold.", "runner"),
    _family("counter", "episodes_total", "Attempts that ended, by how they ended.", "runner", "stop_reason"),
    _family("counter", "episode_retries_total", "Attempts that failed and were played again.", "runner"),
    _family("counter", "sampled_tokens_total", "Tokens that the policy wrote.", "runner"),
    _family("histogram", "episode_seconds", "Duration of an attempt.", "runner"),
    _family("histogram", "episode_turns", "Assistant turns of an attempt.", "runner"),
    _family("counter", "admission_waits_total", "Episodes that had to wait for admission.", "runner"),
    _family("counter", "admission_wait_seconds_total", "Seconds that they waited, together.", "runner"),
    _family("gauge", "engine_ready", "1: the engine can serve.", "engine"),
    _family("gauge", "engine_requests_running", "Requests that the engine computes.", "engine"),
    _family("gauge", "engine_requests_waiting", "Requests that wait inside the engine.", "engine"),
    _family("gauge", "engine_requests_open", "Requests that were sent and are not answered.", "engine"),
    _family("gauge", "engine_cache_use", "Share of the key-value cache in use, where the engine says it.", "engine"),
    _family("gauge", "engine_weight_version", "Version of the weights that are served.", "engine"),
    _family("histogram", "engine_generate_seconds", "Duration of an answered request.", "engine"),
    _family("histogram", "engine_update_seconds", "Duration of a weight update.", "engine"),
    _family("counter", "engine_prompt_tokens_total", "Prompt tokens of answered requests.", "engine"),
    _family("counter", "engine_cached_tokens_total", "Prompt tokens that came from a prefix cache.", "engine"),
    _family("counter", "engine_output_tokens_total", "Tokens that the engine sampled.", "engine"),
    _family("counter", "engine_errors_total", "Failed requests and updates, by exception.", "engine", "kind"),
    _family("gauge", "pool_replicas", "Replicas, by where they stand.", "pool", "state"),
    _family("gauge", "pool_tokens_in_flight", "Prompts and expected outputs in a replica.", "pool", "replica"),
    _family("gauge", "pool_tokens_limit", "Bound on the tokens in flight, which adapts.", "pool", "replica"),
    _family("gauge", "pool_requests_in_flight", "Requests in a replica.", "pool", "replica"),
    _family("gauge", "pool_cache_use", "Share of a replica's key-value cache in use.", "pool", "replica"),
    _family("counter", "pool_restarts_total", "Times that a replica was replaced.", "pool", "replica"),
    _family("counter", "pool_reissued_requests_total", "Requests asked again, their replica being lost.", "pool"),
    _family("gauge", "hook_threads_hung", "Threads of hooks that missed their deadline and have not come back."),
    _family("gauge", "training_step", "Step of the newest training metrics."),
    _family("gauge", "training_metric", "Newest value of a metric of metrics.jsonl, by its name there.", "name"),
    _family("counter", "trace_spans_total", "Spans that were exported, failed, or were dropped.", "result"),
)

Sample = tuple[str, tuple[str, ...], float | Distribution]
"""Name without prefix, label values, value."""


class ReplicaFigures(Protocol):
    """What a pool says of one replica."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def tokens_in_flight(self) -> int: ...
    @property
    def tokens_limit(self) -> int: ...
    @property
    def requests_in_flight(self) -> int: ...
    @property
    def num_restarts(self) -> int: ...
    @property
    def cache_use(self) -> float: ...


class PoolFigures(Protocol):
    """A pool of replicas, as far as it is shown; `agentenv.engine.pool.Pool` is one."""

    @property
    def num_reissued(self) -> int: ...
    def stats(self) -> Sequence[ReplicaFigures]: ...


class TrainingGauges:
    """Keeps the newest training metrics. Implements `agentenv.track.Tracker`."""

    def __init__(self) -> None:
        self.step = 0
        self.newest: dict[str, float] = {}

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Take the metrics of a step; those that a step leaves out keep their value."""
        self.newest = {**self.newest, **metrics}  # a scrape may be reading the old one
        self.step = step

    def log_transcripts(self, rows: Sequence[TranscriptRow], *, step: int) -> None:
        """Do nothing: texts are no figures."""

    def close(self) -> None:
        """Do nothing: the server belongs to `serve_metrics`."""


class Gauges:
    """What is watched. A Prometheus registry takes it as a collector.

    Attributes:
        training: a tracker that shows training metrics.
    """

    def __init__(self) -> None:
        self.training = TrainingGauges()
        self._runners: dict[str, Runner] = {}
        self._engines: dict[str, MeasuredEngine] = {}
        self._pools: dict[str, PoolFigures] = {}
        self._tracing: Tracing | None = None

    def watch_runner(self, runner: Runner, *, name: str) -> None:
        """Show a runner under a name; from now on it counts what it plays."""
        if runner.tally is None:
            runner.tally = EpisodeTally()
        self._runners[name] = runner

    def watch_engine(self, engine: Engine, *, name: str) -> MeasuredEngine:
        """Show an engine under a name; returns the engine to use from now on."""
        measured = engine if isinstance(engine, MeasuredEngine) else MeasuredEngine(engine)
        self._engines[name] = measured
        return measured

    def watch_pool(self, pool: PoolFigures, *, name: str) -> None:
        """Show the replicas of a pool under a name."""
        self._pools[name] = pool

    def watch_tracing(self, tracing: Tracing) -> None:
        """Show how many spans were delivered."""
        self._tracing = tracing

    def collect(self) -> Iterator[Metric]:
        """Read all figures; what Prometheus' registry calls, on the thread of the scrape."""
        samples: dict[str, list[tuple[tuple[str, ...], float | Distribution]]] = {}
        for name, labels, value in self._samples():
            samples.setdefault(f"agentenv_{name}", []).append((labels, value))
        for family in FAMILIES:
            if family.name in samples:
                yield _metric(family, samples[family.name])

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance, so that a registry does not scrape while it registers."""
        return ()

    def _samples(self) -> Iterator[Sample]:
        for name, runner in tuple(self._runners.items()):
            yield from _of_runner(name, runner)
        for name, engine in tuple(self._engines.items()):
            yield from _of_engine(name, engine)
        for name, pool in tuple(self._pools.items()):
            yield from _of_pool(name, pool)
        yield "hook_threads_hung", (), num_abandoned_threads()
        if self.training.newest:
            yield "training_step", (), self.training.step
            for key, value in self.training.newest.items():
                yield "training_metric", (key,), float(value)
        if self._tracing is not None:
            yield "trace_spans_total", ("exported",), self._tracing.num_exported
            yield "trace_spans_total", ("failed",), self._tracing.num_failed
            yield "trace_spans_total", ("dropped",), self._tracing.num_dropped


def families_table() -> str:
    """Return all metrics as a Markdown table, for the documentation."""
    rows = [
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.text} |"
        for family in FAMILIES
    ]
    return "\n".join(["| name | kind | labels | meaning |", "|---|---|---|---|", *rows])


def _of_runner(name: str, runner: Runner) -> Iterator[Sample]:
    running = tuple(runner.running)
    yield "episodes_running", (name,), len(running)
    yield "episodes_waiting", (name,), runner.admission.num_waiting
    yield "tokens_in_flight", (name,), sum(episode.recorder.context_length for episode in running)
    yield "episode_retries_total", (name,), runner.num_retries
    yield "admission_waits_total", (name,), runner.admission.num_waits
    yield "admission_wait_seconds_total", (name,), runner.admission.waited_s
    tally = runner.tally
    if tally is not None:
        for reason, count in tally.num_ended.items():
            yield "episodes_total", (name, reason.value), count
        yield "sampled_tokens_total", (name,), tally.num_sampled_tokens
        yield "episode_seconds", (name,), tally.seconds
        yield "episode_turns", (name,), tally.turns


def _of_engine(name: str, engine: MeasuredEngine) -> Iterator[Sample]:
    answers = _ask_health(engine)
    health = engine.last_health
    if health is not None:
        yield "engine_ready", (name,), float(answers and health.is_ready)
        yield "engine_requests_running", (name,), health.num_running
        yield "engine_requests_waiting", (name,), health.num_waiting
        yield "engine_cache_use", (name,), health.cache_use
    yield "engine_requests_open", (name,), engine.num_running
    yield "engine_weight_version", (name,), engine.version
    yield "engine_generate_seconds", (name,), engine.generate_s
    yield "engine_update_seconds", (name,), engine.update_s
    yield "engine_prompt_tokens_total", (name,), engine.num_prompt_tokens
    yield "engine_cached_tokens_total", (name,), engine.num_cached_tokens
    yield "engine_output_tokens_total", (name,), engine.num_output_tokens
    for kind, count in tuple(engine.num_errors.items()):
        yield "engine_errors_total", (name, kind), count


def _of_pool(name: str, pool: PoolFigures) -> Iterator[Sample]:
    replicas = pool.stats()
    for state, count in Counter(replica.state for replica in replicas).items():
        yield "pool_replicas", (name, state), count
    for replica in replicas:
        labels = (name, replica.name)
        yield "pool_tokens_in_flight", labels, replica.tokens_in_flight
        yield "pool_tokens_limit", labels, replica.tokens_limit
        yield "pool_requests_in_flight", labels, replica.requests_in_flight
        yield "pool_cache_use", labels, replica.cache_use
        yield "pool_restarts_total", labels, replica.num_restarts
    yield "pool_reissued_requests_total", (name,), pool.num_reissued


def _ask_health(engine: MeasuredEngine) -> bool:
    """Refresh `last_health` on the engine's event loop; False when the engine refused to answer.

    A loop that is busy, because a model is trained on it say, keeps the last answer.
    """
    loop = engine.loop
    if loop is None or not loop.is_running():
        return True
    with suppress(RuntimeError):
        if asyncio.get_running_loop() is loop:
            return True  # asked from the loop itself, which cannot wait for itself
    asked = engine.health()
    try:
        answer = asyncio.run_coroutine_threadsafe(asked, loop)
    except RuntimeError:  # the loop was closed meanwhile
        asked.close()
        return True
    try:
        answer.result(HEALTH_S)
    except WaitTimeout:
        answer.cancel()
    except Exception:
        return False
    return True


def _metric(family: Family, samples: Sequence[tuple[tuple[str, ...], float | Distribution]]) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.text, labels=family.labels)
        for labels, value in samples:
            assert isinstance(value, Distribution)
            buckets = [
                ("+Inf" if bound == float("inf") else str(float(bound)), count) for bound, count in value.cumulative()
            ]
            histogram.add_metric(labels, buckets, value.total)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.text, labels=family.labels)
    for labels, value in samples:
        assert not isinstance(value, Distribution)
        metric.add_metric(labels, value)
    return metric
