"""Tracing: what it costs when off, how it is opened, and which episodes it takes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentenv import tool_turn
from agentenv.config import load_config
from agentenv.episode import EpisodeSpec
from agentenv.errors import ConfigError, UsageError
from agentenv.runner import GroupSpec
from agentenv.trace import TracingConfig, open_tracing
from tests.traced_desk import GUESS, named, runner_of, traced_run

ROOT = Path(__file__).resolve().parent.parent


def test_the_sample_follows_from_the_seeds_and_holds_the_share_asked_for():
    specs = [EpisodeSpec(env_id=GUESS, group_id=str(i), member=m, run_seed=9) for i in range(500) for m in range(4)]

    def chosen():
        with open_tracing(TracingConfig(sample=0.3), exporter=InMemorySpanExporter()) as tracing:
            assert tracing is not None
            return [tracing.takes(spec) for spec in specs]

    first, second = chosen(), chosen()
    assert first == second
    assert 0.26 < sum(first) / len(first) < 0.34  # 2000 draws: four standard deviations are 0.04
    with open_tracing(TracingConfig(sample=0.3), exporter=InMemorySpanExporter()) as tracing:
        assert tracing is not None
        again = [tracing.takes(replace(spec, attempt=1)) for spec in specs]
    assert again == first, "all attempts of an episode are traced, or none"


async def test_episodes_outside_the_sample_leave_no_span(renderer):
    specs = [GroupSpec(group_id=str(i), env_id=GUESS, seed=i) for i in range(40)]
    runner = runner_of(renderer, tool_turn("in_thread", {"key": 1}), "done")

    half, _ = await traced_run(runner, specs, tracing=TracingConfig(sample=0.5))
    none, _ = await traced_run(runner, specs, tracing=TracingConfig(sample=0.0))

    assert 5 < len(named(half, "episode")) < 35
    assert len(named(half, "tool in_thread")) == len(named(half, "episode"))
    assert none == ()


def test_off_costs_no_import_of_opentelemetry():
    code = (
        "import asyncio, sys; from agentenv.trace import TracingConfig, open_tracing\n"
        "from agentenv.engine.scripted import ScriptedEngine; from agentenv.runner import GroupSpec, Runner\n"
        "from agentenv.agent.policy import PolicyAgent\n"
        "from agentenv.byte_tokenizer import byte_tokenizer; from agentenv.renderer import Renderer\n"
        "runner = Runner(engine=ScriptedEngine([()]), renderer=Renderer(byte_tokenizer(), family='qwen3'),"
        " agent=PolicyAgent('oracle'))\n"
        "with open_tracing(TracingConfig()) as tracing:\n"
        f"    asyncio.run(runner.run_group(GroupSpec(group_id='g', env_id='{GUESS}')))\n"
        "assert tracing is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


def test_missing_packages_are_a_users_mistake_with_a_remedy():
    code = (
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'opentelemetry': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from agentenv.trace import TracingConfig, open_tracing; from agentenv.errors import UsageError\n"
        "try:\n"
        "    with open_tracing(TracingConfig(exporter='console')): pass\n"
        "except UsageError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert 'pip install "agentenv[tracing]"' in out.stdout


def test_tracing_has_one_owner_and_can_be_opened_again_after_it():
    with open_tracing(TracingConfig(), exporter=InMemorySpanExporter()):
        with open_tracing(TracingConfig()) as off:  # off inside on: nothing to own
            assert off is None
        second = open_tracing(TracingConfig(), exporter=InMemorySpanExporter())
        with pytest.raises(UsageError, match="already open"):
            second.__enter__()
    with open_tracing(TracingConfig(), exporter=InMemorySpanExporter()) as tracing:
        assert tracing is not None


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("endpoint: localhost:4318", "http:// or https://"),
        ("endpoint: http://me:hunter2@host:4318", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("sample: 1.5", "at most 1"),
        ("exporter: jaeger", "otlp"),
    ],
)
def test_a_wrong_configuration_says_what_is_allowed_and_no_secret(line, told, tmp_path):
    path = tmp_path / "tracing.yaml"
    path.write_text(line)
    with pytest.raises(ConfigError) as raised:
        load_config(TracingConfig, path)
    assert told in str(raised.value)
    assert "hunter2" not in str(raised.value)
