"""`check_engine` passes engines that keep their promises, and names the promise that a broken one breaks."""

import dataclasses

import pytest

from agentenv.check_engine import check_engine
from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.protocol import Ack
from agentenv.engine.scripted import ScriptedEngine
from agentenv.errors import CheckFailed, UsageError
from tests.engine.small_models import llama, qwen3

CONFIG = HFEngineConfig(max_length=256, max_slots=32)
NEEDS_A_MODEL = {"log-probs", "temperature", "greedy", "stop ids", "length", "unknown ids", "too long"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    qwen3(seed=3).save_pretrained(path)
    return path


async def findings(engine, folder, **options):
    report = await check_engine(engine, model=folder, max_length=256, raise_on_failure=False, **options)
    return {result.name: result for result in report.results}


async def test_the_embedded_engine_keeps_every_promise(folder):
    found = await findings(HFEngine.from_pretrained(folder, config=CONFIG), folder)

    assert {r.name: r.detail for r in found.values() if r.status == "FAILED"} == {}
    assert {r.name for r in found.values() if r.status == "skipped"} == {"killed"}


async def test_the_embedded_engine_with_untied_weights_keeps_every_promise(tmp_path):
    llama(seed=5).save_pretrained(tmp_path)

    await check_engine(HFEngine.from_pretrained(tmp_path, config=CONFIG), model=tmp_path, max_length=256)


async def test_the_scripted_engine_keeps_every_promise_that_needs_no_model():
    engine = ScriptedEngine(lambda request: [7] * 500, latency_s=0.05)

    found = await findings(engine, None, vocab_size=97)

    assert {r.name: r.detail for r in found.values() if r.status == "FAILED"} == {}
    skipped = {r.name for r in found.values() if r.status == "skipped"}
    assert skipped == NEEDS_A_MODEL | {"new weights in flight", "first weights again", "killed"}


async def test_an_engine_with_other_weights_is_found_out(folder):
    other = HFEngine(qwen3(seed=4), config=CONFIG)

    found = await findings(other, folder, only=["log-probs"])

    assert found["log-probs"].status == "FAILED"
    assert "differ by" in found["log-probs"].detail


class ForgetsTemperature(HFEngine):
    async def generate(self, prompt_ids, sampling, **options):
        return await super().generate(prompt_ids, dataclasses.replace(sampling, temperature=1.0), **options)


class NeverUpdates(HFEngine):
    async def update_weights(self, manifest):
        self._version = manifest.version
        return Ack(version=manifest.version, checksum="")


class KeepsItsCache(HFEngine):
    async def update_weights(self, manifest):
        computed = self._slots.computed_S.copy()
        ack = await super().update_weights(manifest)
        self._slots.computed_S[:] = computed
        return ack


@pytest.mark.parametrize(
    ("broken", "promises"),
    [
        (ForgetsTemperature, {"temperature", "greedy"}),
        (NeverUpdates, {"new weights", "new weights in flight", "stale weights"}),
        (KeepsItsCache, {"new weights in flight"}),
    ],
)
async def test_a_broken_engine_is_named_with_its_promise(folder, broken, promises):
    engine = broken.from_pretrained(folder, config=CONFIG)

    with pytest.raises(CheckFailed) as failed:
        await check_engine(engine, model=folder, max_length=256, only=[*promises, "length"])

    for promise in promises:
        assert f"- {promise}:" in str(failed.value)
    assert "- length:" not in str(failed.value)


async def test_weights_are_left_alone_where_they_may_not_change(folder):
    engine = HFEngine.from_pretrained(folder, config=CONFIG, version=5)

    found = await findings(engine, folder, updates_weights=False, only=["new weights", "stale weights"])

    assert (await engine.health()).version == 5
    assert {result.status for result in found.values()} == {"skipped"}


async def test_a_promise_that_does_not_exist_is_refused(folder):
    with pytest.raises(UsageError, match="no promise 'speed'"):
        await check_engine(ScriptedEngine([()]), model=None, vocab_size=9, only=["speed"])
