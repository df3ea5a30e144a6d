"""A desk whose tools run in threads, in coroutines and inline, and ways to look at the spans of its episodes."""

import asyncio
import threading
import time
from typing import Any

from opentelemetry import trace as otel
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentenv import ToolEnv, reward, tool
from agentenv.engine.scripted import ScriptedEngine
from agentenv.messages import Message
from agentenv.runner import Runner, RunnerConfig
from agentenv.trace import TracingConfig, open_tracing

GUESS = "agentenv/GuessNumber-v0"


class Desk(ToolEnv):
    """Looks things up in threads, in coroutines and inline, and fails where it is told to."""

    def __init__(self, fail: str = "", **options):
        self.fail = fail
        self.seen: list[int] = []
        super().__init__(**options)

    def setup(self, rng, task) -> str:
        return "go"

    @tool(inline=False)
    def in_thread(self, key: int) -> str:
        """Look up in a thread.

        Args:
            key: what.
        """
        assert threading.current_thread() is not threading.main_thread()
        self.seen.append(otel.get_current_span().get_span_context().span_id)
        time.sleep(0.001)
        return f"value {key}"

    @tool(parallel=True)
    async def awaited(self, key: int) -> str:
        """Look up in a coroutine.

        Args:
            key: what.
        """
        await asyncio.sleep(0.002)
        self.seen.append(otel.get_current_span().get_span_context().span_id)
        return f"value {key}"

    @tool
    def broken(self) -> str:
        """Fail."""
        raise ConnectionError("server down")

    @reward(when="turn")
    def manners(self) -> float:
        return 0.25

    @reward
    def score(self) -> float:
        if self.fail == "reward":
            raise ZeroDivisionError("no cases")
        return 0.5


def say(text):
    return Message(role="assistant", content=text)


def runner_of(renderer, *turns, env=Desk, agent=None, faults=None, latency_s=0.0, **config):
    ids = [renderer.turn_ids(say(turn) if isinstance(turn, str) else turn) for turn in turns]
    engine = ScriptedEngine(ids, faults=faults, latency_s=latency_s)
    options = RunnerConfig(**config)
    return Runner(engine=engine, renderer=renderer, agent=agent, config=options, make_env=lambda spec: env())


async def traced_run(runner, specs, *, tracing=None) -> tuple[Any, Any]:
    """Play and return the finished spans and the trajectories."""
    kept = InMemorySpanExporter()
    with open_tracing(tracing or TracingConfig(), exporter=kept) as open_:
        played = [await runner.run_group(spec) for spec in specs]
        assert open_ is not None
        assert open_.flush()
        spans = kept.get_finished_spans()
    return spans, [t for group in played for t in group.trajectories]


def one(spans, name) -> Any:
    (found,) = [span for span in spans if span.name == name]
    return found


def named(spans, name) -> list[Any]:
    return sorted((span for span in spans if span.name == name), key=lambda span: span.start_time)


def parent_of(span, spans) -> Any:
    return next((other for other in spans if span.parent and other.context.span_id == span.parent.span_id), None)
