"""The page on tracing and metrics names everything that is sent, and nothing else."""

import re
from pathlib import Path

from agentenv import tool_turn
from agentenv.engine.scripted import Faults
from agentenv.gauges import families_table
from agentenv.reward import Reward, best_of_group, score_group
from agentenv.runner import GroupSpec
from agentenv.trace import TracingConfig, open_tracing
from agentenv.trace_attributes import MAX_CONTENT_CHARS
from tests.traced_desk import GUESS, runner_of

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "tracing.md").read_text(encoding="utf-8")


def test_the_table_of_metrics_is_that_of_the_code():
    assert families_table() in PAGE, "print(agentenv.gauges.families_table()) gives the table for docs/tracing.md"


async def test_every_attribute_that_is_sent_is_on_the_page_and_every_one_on_the_page_is_sent(renderer):
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    deep = tool_turn("in_thread", {"key": 1, "more": _nested(5000)})
    runner = runner_of(renderer, tool_turn("in_thread", {"key": 3}), "done", max_retries=0)
    failing = runner_of(renderer, "done", faults=Faults(fail_every=1), max_retries=0)
    deeply = runner_of(renderer, "done", max_retries=0)
    kept = InMemorySpanExporter()
    with open_tracing(TracingConfig(content=True), model="m", exporter=kept) as tracing:
        assert tracing is not None
        group = await runner.run_group(GroupSpec(group_id="g", env_id=GUESS, size=2))
        await failing.run_group(GroupSpec(group_id="f", env_id=GUESS))
        await score_group([Reward(name="best", function=best_of_group, when="group")], group.trajectories)

        class Deep:
            async def play(self, episode):
                await episode.reset()
                episode.recorder.begin([1])
                await episode.generate()
                await episode.step(deep)
                await episode.step(tool_turn("in_thread", {"key": 1}))

        deeply.roster.default = Deep()
        await deeply.run_group(GroupSpec(group_id="d", env_id=GUESS))
        assert tracing.flush()

    sent = {key for span in kept.get_finished_spans() for key in span.attributes or {}}
    sent = {re.sub(r"^(agentenv\.reward_component)\..*", r"\1.<name>", key) for key in sent}
    told = set(re.findall(r"`((?:agentenv|gen_ai|error)\.[a-z_.<>]+)`", PAGE)) - {
        "agentenv.engine.engine_metrics.read_engine_load"
    }
    assert sent == told
    assert str(MAX_CONTENT_CHARS) in PAGE


def _nested(depth):
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value
