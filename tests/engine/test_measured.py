"""The counting engine: figures equal what passed, errors are counted and go on, and it is an engine like any other."""

import asyncio

import pytest

from agentenv.engine.measured import MeasuredEngine
from agentenv.engine.protocol import Completion, Engine, SamplingParams, WeightManifest
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.errors import EngineClosed, EngineError
from agentenv.trajectory import VersionSpan


async def ask(engine, prompt=(1, 2, 3), session="s"):
    return await engine.generate(list(prompt), SamplingParams(max_tokens=8), session_id=session, deadline_s=5.0)


async def test_tokens_requests_and_seconds_are_those_that_passed():
    engine = MeasuredEngine(ScriptedEngine([(7, 8)], latency_s=0.02))
    assert isinstance(engine, Engine)

    asked = [asyncio.create_task(ask(engine, session=str(i))) for i in range(3)]
    await asyncio.sleep(0.005)
    assert engine.num_running == 3
    answers = await asyncio.gather(*asked)

    assert [list(answer.token_ids) for answer in answers] == [[7, 8]] * 3
    assert (engine.num_running, engine.num_prompt_tokens, engine.num_output_tokens) == (0, 9, 6)
    assert engine.generate_s.count == 3
    assert 0.06 <= engine.generate_s.total < 3
    assert dict(engine.generate_s.cumulative())[0.01] == 0
    assert engine.version == 0


async def test_cached_tokens_and_the_newest_version_come_from_the_completion():
    class Mixed(ScriptedEngine):
        async def generate(self, prompt_ids, sampling, *, session_id, deadline_s, images=()):
            spans = (VersionSpan(version=2, start=0, end=1), VersionSpan(version=3, start=1, end=2))
            return Completion(
                token_ids=(7, 8),
                logprobs=(-0.5, -0.5),
                finish_reason="stop",
                weight_versions=spans,
                num_cached_tokens=2,
            )

    engine = MeasuredEngine(Mixed([()]))
    await ask(engine)
    assert (engine.num_cached_tokens, engine.version) == (2, 3)


async def test_failures_are_counted_by_kind_and_raised():
    engine = MeasuredEngine(ScriptedEngine([(7,)], faults=Faults(fail_every=2)))
    await ask(engine)
    with pytest.raises(EngineError):
        await ask(engine)
    with pytest.raises(EngineError):
        await engine.update_weights(WeightManifest(version=0))
    await engine.close()
    with pytest.raises(EngineClosed):
        await ask(engine)

    assert engine.num_errors == {"EngineError": 2, "EngineClosed": 1}
    assert engine.generate_s.count == 1
    assert engine.num_running == 0


async def test_a_cancelled_request_is_no_error():
    engine = MeasuredEngine(ScriptedEngine([(7,)], latency_s=30))
    asked = asyncio.create_task(ask(engine))
    await asyncio.sleep(0.01)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert (engine.num_running, engine.num_errors) == (0, {})


async def test_updates_health_and_pauses_reach_the_engine():
    inner = ScriptedEngine([(7,)])
    engine = MeasuredEngine(inner)
    ack = await engine.update_weights(WeightManifest(version=5))
    assert (ack.version, inner.version, engine.version, engine.update_s.count) == (5, 5, 5, 1)

    await engine.pause("keep")
    asked = asyncio.create_task(ask(engine))
    await asyncio.sleep(0.01)
    assert not asked.done()
    health = await engine.health()
    assert (health.num_running, engine.last_health) == (1, health)
    await engine.resume()
    await asked
    await engine.forget_prefixes()
    await engine.end_session("s")
