"""The spans of running episodes: when they begin, whose children they are, and when they end.

Every episode is a trace of its own. Its state travels in a context variable, which asyncio tasks and worker threads
inherit, so that episodes that play at the same time never mix. A turn begins with a generation, or with a step that no
generation came before, and ends with its step, or with the next generation, so every agent has turns.
"""

from __future__ import annotations

import contextvars
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

from agentenv import trace_attributes as attributes_of
from agentenv.errors import EpisodeError, describe
from agentenv.redaction import without_secrets
from agentenv.seeds import derive_seed
from agentenv.span_queue import SpanQueue
from agentenv.trace import SpanKind, TracingConfig

if TYPE_CHECKING:
    from agentenv.engine.protocol import Completion
    from agentenv.episode import Episode, EpisodeSpec
    from agentenv.messages import Message, ToolCall, ToolResult
    from agentenv.reward import Reward
    from agentenv.runner import Runner
    from agentenv.tool import Toolbox
    from agentenv.trajectory import Trajectory

CLOSE_S = 15.0
"""Seconds that leaving `open_tracing` may wait for the back end."""
_REQUEST_S = 30
_MAX_ERROR_CHARS = 500
_Function = Callable[..., Awaitable[Any]]


@dataclass(slots=True)
class _Turn:
    """An open turn.

    Attributes:
        span: its span.
        num_generating: generations that run.
        has_generated: a generation of this turn began.
    """

    span: Span
    num_generating: int = 0
    has_generated: bool = False


@dataclass(slots=True)
class _EpisodeState:
    """What the spans inside an episode need to know of it."""

    span: Span
    session_id: str
    turn: _Turn | None = None
    num_turns: int = 0
    num_cached: int = 0

    @property
    def parent(self) -> Span:
        """What a tool or reward belongs to."""
        return self.span if self.turn is None else self.turn.span


_current: contextvars.ContextVar[_EpisodeState | None] = contextvars.ContextVar("agentenv_episode", default=None)


class Tracing:
    """Open tracing: makes spans and owns their way out. `open_tracing` makes and closes it.

    Args:
        config: what to trace.
        run_name: of the run; may be empty.
        model: name of the model; may be empty.
        exporter: instead of the configured one.
    """

    def __init__(self, config: TracingConfig, *, run_name: str, model: str, exporter: SpanExporter | None) -> None:
        self.config = config
        self.model = model
        chosen = _exporter(config) if exporter is None else exporter
        self._queue = SpanQueue(chosen, where=_where(config, chosen))
        # nothing global is set: a program that embeds this package may have a provider of its own
        self._provider = TracerProvider(resource=_resource(run_name), sampler=ALWAYS_ON, shutdown_on_exit=False)
        self._provider.add_span_processor(self._queue)
        self._tracer = self._provider.get_tracer("agentenv")
        self._episodes: dict[str, _EpisodeState] = {}
        self._newest_version = -1
        self._kinds: Mapping[SpanKind, Callable[..., Awaitable[Any]]] = {
            "episode": self._episode,
            "generate": self._generate,
            "step": self._step,
            "tool": self._tool,
            "reward": self._reward,
            "group reward": self._group_reward,
        }

    @property
    def num_exported(self) -> int:
        """Spans that the back end took."""
        return self._queue.num_exported

    @property
    def num_dropped(self) -> int:
        """Spans that found the queue full, or were left at the end."""
        return self._queue.num_dropped

    @property
    def num_failed(self) -> int:
        """Spans whose export failed."""
        return self._queue.num_failed

    def flush(self, *, timeout_s: float = CLOSE_S) -> bool:
        """Wait until every finished span was handed to the exporter; False when the time ran out."""
        return self._queue.force_flush(int(timeout_s * 1000))

    def close(self) -> None:
        """Deliver what is queued, for `CLOSE_S` seconds at most; idempotent."""
        self._queue.close(deadline_s=CLOSE_S)

    def call(
        self, kind: SpanKind, function: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Awaitable[Any]:
        """Call a function that `traced` decorates, under a span of its kind."""
        return self._kinds[kind](cast(_Function, function), *args, **kwargs)

    def takes(self, spec: EpisodeSpec) -> bool:
        """Say whether an episode is traced: a function of its seeds, the same for all its attempts."""
        return self._is_sampled(spec.run_seed, spec.group_id, spec.member)

    def _is_sampled(self, *parts: int | str) -> bool:
        return derive_seed("trace", *parts) < self.config.sample * 2**63

    # One method per kind of span.

    async def _episode(self, function: _Function, runner: Runner, spec: EpisodeSpec, **kwargs: Any) -> Trajectory:
        if not self.takes(spec):
            with _inside(None):
                return await function(runner, spec, **kwargs)
        agent = type(runner.agent).__name__
        span = self._start("episode", attributes_of.of_spec(spec, agent=agent), parent=None)
        state = _EpisodeState(span=span, session_id=spec.session_id())
        self._episodes[state.session_id] = state
        with _inside(state), _covering(span):
            try:
                trajectory: Trajectory = await function(runner, spec, **kwargs)
            finally:
                self._episodes.pop(state.session_id, None)
                _end_turn(state)
            self._finish(state, trajectory)
        return trajectory

    def _finish(self, state: _EpisodeState, trajectory: Trajectory) -> None:
        said = dict(attributes_of.of_trajectory(trajectory))
        said["agentenv.num_cached_tokens"] = state.num_cached
        first = said.get("agentenv.weight_version.first")
        if isinstance(first, int):
            said["agentenv.staleness"] = max(0, self._newest_version - first)
        _set(state.span, said)
        if trajectory.error:
            _set_error(state.span, kind=trajectory.stop_reason.value, text=trajectory.error)

    async def _generate(self, function: _Function, episode: Episode, *args: Any, **kwargs: Any) -> Completion:
        state = self._state_of(episode)
        if state is None:
            return await function(episode, *args, **kwargs)
        turn = self._turn_of_generation(state)
        turn.num_generating += 1
        try:
            said = dict(
                attributes_of.of_request(
                    episode, model=self.model, num_prompt_tokens=len(args[0]), max_tokens=kwargs["max_tokens"]
                )
            )
            if self.config.content:
                said.update(_text(lambda: attributes_of.prompt_text(episode.conversation)))
            with _covering(self._start("generate", said, parent=turn.span)) as span:
                completion: Completion = await function(episode, *args, **kwargs)
                self._count(state, completion)
                _set(span, attributes_of.of_completion(completion))
                if self.config.content:
                    decode = episode.renderer.decode
                    _set(span, _text(lambda: attributes_of.output_text(completion, decode=decode)))
            return completion
        finally:
            turn.num_generating -= 1
            if turn is not state.turn and not turn.num_generating:
                turn.span.end()  # another generation had begun the next turn meanwhile

    def _turn_of_generation(self, state: _EpisodeState) -> _Turn:
        if state.turn is not None and state.turn.has_generated:
            _end_turn(state)
        turn = self._open_turn(state)
        turn.has_generated = True
        return turn

    def _count(self, state: _EpisodeState, completion: Completion) -> None:
        state.num_cached += completion.num_cached_tokens
        self._newest_version = max(self._newest_version, *(span.version for span in completion.weight_versions), -1)

    async def _step(self, function: _Function, episode: Episode, *args: Any, **kwargs: Any) -> tuple[Message, ...]:
        state = self._state_of(episode)
        if state is None:
            return await function(episode, *args, **kwargs)
        span = self._open_turn(state).span
        try:
            with _covering(span):
                messages: tuple[Message, ...] = await function(episode, *args, **kwargs)
                _set(span, attributes_of.of_turn(episode.recorder.turns()[kwargs.get("turn_index", -1)]))
                return messages
        finally:
            state.turn = None

    def _open_turn(self, state: _EpisodeState) -> _Turn:
        if state.turn is None:
            span = self._start("turn", {"agentenv.turn": state.num_turns}, parent=state.span)
            state.turn = _Turn(span=span)
            state.num_turns += 1
        return state.turn

    async def _tool(self, function: _Function, toolbox: Toolbox, call: ToolCall) -> ToolResult:
        state = _current.get()
        if state is None:
            return await function(toolbox, call)
        is_known = call.name in toolbox.tools
        said = dict(attributes_of.of_call(call, is_known=is_known))
        if self.config.content:
            said.update(_text(lambda: attributes_of.call_text(call)))
        # names come from the model: an invented one must not become a span name of its own
        name = f"tool {call.name}" if is_known else "tool"
        with _covering(self._start(name, said, parent=state.parent)) as span:
            result: ToolResult = await function(toolbox, call)
            _set(span, attributes_of.of_result(result))
            if self.config.content:
                _set(span, _text(lambda: attributes_of.result_text(result)))
        return result

    async def _reward(self, function: _Function, component: Reward, *args: Any, **kwargs: Any) -> float:
        state = _current.get()
        if state is None:
            return await function(component, *args, **kwargs)
        with _covering(self._start(f"reward {component.name}", {}, parent=state.parent)) as span:
            value: float = await function(component, *args, **kwargs)
            _set(span, attributes_of.of_reward(component.name, value))
        return value

    async def _group_reward(
        self, function: _Function, component: Reward, scored: Sequence[Trajectory]
    ) -> Sequence[object]:
        """Its episodes are over, so the span is a trace of its own."""
        first = scored[0]
        if not self._is_sampled(first.seed, first.group_id):
            return await function(component, scored)
        said: attributes_of.Attributes = {
            "gen_ai.evaluation.name": component.name,
            "agentenv.env_id": first.env_id,
            "agentenv.group_id": first.group_id,
            "agentenv.num_members": len(scored),
        }
        with _covering(self._start(f"group reward {component.name}", said, parent=None)):
            return await function(component, scored)

    def _state_of(self, episode: Episode) -> _EpisodeState | None:
        """Return the episode's state; a gateway generates in tasks that the runner did not start."""
        state = _current.get()
        if state is not None and state.session_id == episode.session_id:
            return state
        return self._episodes.get(episode.session_id)

    def _start(self, name: str, attributes: attributes_of.Attributes, *, parent: Span | None) -> Span:
        context = Context() if parent is None else set_span_in_context(parent)
        return self._tracer.start_span(name, context=context, attributes=attributes_of.clean(attributes))


@contextmanager
def _inside(state: _EpisodeState | None) -> Iterator[None]:
    token = _current.set(state)
    try:
        yield
    finally:
        with suppress(ValueError):  # a coroutine that is thrown away is closed in another context
            _current.reset(token)


@contextmanager
def _covering(span: Span) -> Iterator[Span]:
    """Make a span the current one, note what goes wrong inside, and end it."""
    token = otel_context.attach(set_span_in_context(span))
    try:
        yield span
    except BaseException as error:
        if isinstance(error, EpisodeError):
            _set(span, {"agentenv.error.side": error.side})
        _set_error(span, kind=type(error).__name__, text=describe(error))
        raise
    finally:
        otel_context.detach(token)
        span.end()


def _end_turn(state: _EpisodeState) -> None:
    """End the open turn, unless a generation still runs in it, which then ends it."""
    turn, state.turn = state.turn, None
    if turn is not None and not turn.num_generating:
        turn.span.end()


def _text(make: Callable[[], attributes_of.Attributes]) -> attributes_of.Attributes:
    """Write what a model or tool said; what cannot be written, such as arguments nested too deeply, is left out."""
    try:
        return make()
    except Exception as error:
        return {"agentenv.content_error": describe(error)[:_MAX_ERROR_CHARS]}


def _set(span: Span, attributes: attributes_of.Attributes) -> None:
    span.set_attributes(attributes_of.clean(attributes))


def _set_error(span: Span, *, kind: str, text: str) -> None:
    shown = str(without_secrets(attributes_of.cut(text, _MAX_ERROR_CHARS)))
    _set(span, {"error.type": kind})
    span.set_status(Status(StatusCode.ERROR, shown.encode("utf-8", "replace").decode()))


def _resource(run_name: str) -> Resource:
    """Say who sends; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES count."""
    resource = Resource.create({"agentenv.run": run_name} if run_name else {})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "agentenv"}))
    return resource


def _exporter(config: TracingConfig) -> SpanExporter:
    if config.exporter == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        # standard output belongs to the command's own answer
        return ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: span.to_json(indent=None) + "\n")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # the usual 10 s are too few for a back end that has just been started; here nobody waits for an export
    is_set = any(name in os.environ for name in ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"))
    return OTLPSpanExporter(endpoint=_full_endpoint(config.endpoint), timeout=None if is_set else _REQUEST_S)


def _full_endpoint(endpoint: str | None) -> str | None:
    """Add the path of the protocol to a bare address; None lets the exporter ask the environment."""
    if endpoint is None or endpoint.split("://", 1)[1].partition("/")[2]:
        return endpoint
    return endpoint.rstrip("/") + "/v1/traces"


def _where(config: TracingConfig, exporter: SpanExporter) -> str:
    """Name the back end for warnings, without what may be a key in its address."""
    parts = urlsplit(config.endpoint or getattr(exporter, "_endpoint", ""))
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}" if parts.hostname else type(exporter).__name__
