"""The embedded engine's weights, failures and end: updates under load, refusals, broken models, closing."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2LMHeadModel

from agentenv.engine.hf import HFEngine, HFEngineConfig, weights_checksum
from agentenv.engine.protocol import Engine, WeightManifest
from agentenv.engine.weights import named_weights
from agentenv.errors import EngineClosed, EngineError, ModelError
from agentenv.trajectory import VersionSpan
from tests.engine.small_engines import TOLERANCE, ask, assert_logprobs_of, engine_of, perturbed, prompt_of
from tests.engine.small_models import ARCHITECTURES, gpt2, qwen3, reference_logprobs

# Weights.


async def test_new_weights_are_served_and_acknowledged_with_the_trainers_checksum():
    model, newer = qwen3(), perturbed(qwen3())
    engine = engine_of(model)
    await ask(engine, prompt_of(20))

    ack = await engine.update_weights(WeightManifest(version=5, tensors=named_weights(newer)))
    completion = await ask(engine, prompt_of(20))

    assert ack.version == (await engine.health()).version == 5
    assert ack.checksum == weights_checksum(named_weights(newer)) != weights_checksum(named_weights(model))
    assert completion.num_cached_tokens == 0  # the prefix was read by the old weights
    assert completion.weight_versions == (VersionSpan(version=5, start=0, end=12),)
    assert_logprobs_of(newer, prompt_of(20), completion)


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
async def test_kept_requests_go_on_under_the_new_weights_with_a_recomputed_cache(name: str):
    model = ARCHITECTURES[name]()
    newer = perturbed(model)
    engine = engine_of(model)
    prompts = [prompt_of(10 + index, seed=index) for index in range(4)]
    tasks = [asyncio.ensure_future(ask(engine, p, session=str(i), max_tokens=40)) for i, p in enumerate(prompts)]
    for _ in range(8):
        await asyncio.sleep(0)

    await engine.pause("keep")
    await engine.update_weights(WeightManifest(version=1, tensors=named_weights(perturbed(model, seed=2))))
    await engine.update_weights(WeightManifest(version=2, tensors=named_weights(newer)))  # no token is of version 1
    await engine.resume()
    completions = await asyncio.gather(*tasks)

    for prompt, completion in zip(prompts, completions, strict=True):
        old, new = completion.weight_versions
        assert (old.version, old.start, new.version, new.end) == (0, 0, 2, 40)
        assert 0 < old.end == new.start < 40
        ids = [*prompt, *completion.token_ids]
        expected = [
            *reference_logprobs(model, ids)[len(prompt) - 1 :][: old.end].tolist(),
            *reference_logprobs(newer, ids)[len(prompt) - 1 :][old.end :].tolist(),
        ]
        assert completion.logprobs == pytest.approx(expected, abs=TOLERANCE)


async def test_aborted_requests_return_what_they_had():
    model = qwen3()
    engine = engine_of(model)
    task = asyncio.ensure_future(ask(engine, prompt_of(10), max_tokens=100))
    for _ in range(8):
        await asyncio.sleep(0)

    await engine.pause("abort")
    completion = await task

    assert completion.finish_reason == "abort"
    assert 0 < len(completion.token_ids) < 100
    assert_logprobs_of(model, prompt_of(10), completion)


async def test_a_paused_engine_holds_requests_until_it_resumes():
    engine = engine_of(qwen3())
    await engine.pause()
    task = asyncio.ensure_future(ask(engine, [1, 2, 3]))
    for _ in range(20):
        await asyncio.sleep(0)
    health = await engine.health()

    await engine.resume()

    assert (health.is_ready, health.num_running, health.num_waiting) == (True, 0, 1)
    assert len((await task).token_ids) == 12


async def test_an_update_that_does_not_fit_is_refused_and_changes_nothing():
    model = qwen3()
    engine = engine_of(model)
    good = named_weights(perturbed(model))
    norm = "model.norm.weight"
    first = next(iter(good))
    bad_value = good[norm].clone()
    bad_value[3] = torch.nan
    cases: list[tuple[dict[str, object], str]] = [
        ({**good, "model.extra": torch.zeros(1)}, "no weight named model.extra"),
        ({name: value for name, value in good.items() if name != norm}, f"weights are missing: {norm}"),
        ({**good, first: torch.zeros(2, 2)}, rf"shapes differ: {first} is \(2, 2\), engine has \(97, 32\)"),
        ({**good, norm: bad_value}, f"not finite in the engine's dtype: {norm}"),
        ({**good, norm: [1.0]}, f"not a torch tensor: {norm}"),
        ({**good, "lm_head.weight": good[first] + 1}, "one tensor in the engine but differ in the update"),
    ]

    for tensors, message in cases:
        with pytest.raises(EngineError, match=message):
            await engine.update_weights(WeightManifest(version=1, tensors=tensors))
    completion = await ask(engine, prompt_of(10))

    assert (await engine.health()).version == 0
    assert_logprobs_of(model, prompt_of(10), completion)


async def test_versions_must_grow():
    engine = HFEngine(qwen3(), config=HFEngineConfig(max_length=64), version=4)

    for version in (3, 4):
        with pytest.raises(EngineError, match=f"weights of version {version} came, but the engine has version 4"):
            await engine.update_weights(WeightManifest(version=version, tensors=named_weights(qwen3())))


async def test_untied_weights_may_come_under_every_name_and_tied_ones_under_both():
    for model in (qwen3(tied=True), qwen3(tied=False)):
        newer = perturbed(model)
        engine = engine_of(model)

        await engine.update_weights(WeightManifest(version=1, tensors=dict(newer.state_dict())))

        assert_logprobs_of(newer, prompt_of(10), await ask(engine, prompt_of(10)))


async def test_the_engine_owns_its_weights():
    model = qwen3()
    untouched = copy.deepcopy(model)
    engine = engine_of(model)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()

    assert_logprobs_of(untouched, prompt_of(10), await ask(engine, prompt_of(10)))
    assert model.config._attn_implementation != "agentenv_slots"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_checksum_sees_a_changed_bit_a_swap_and_a_name_but_not_the_order():
    tensors = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([1, 2])}
    checksum = weights_checksum(tensors)

    assert weights_checksum(dict(reversed(tensors.items()))) == checksum
    assert weights_checksum({**tensors, "a": torch.tensor([1.0, 2.0, 3.0000002])}) != checksum
    assert weights_checksum({**tensors, "a": torch.tensor([2.0, 1.0, 3.0])}) != checksum
    assert weights_checksum({"a": tensors["a"], "c": tensors["b"]}) != checksum
    # in half precision the small change is gone
    halves = [weights_checksum({"a": torch.tensor([x])}, dtype=torch.bfloat16) for x in (3.0, 3.0000002)]
    assert halves[0] == halves[1]


# Failures and the end.


class BrittleModel(GPT2LMHeadModel):
    """A model whose forward fails on demand, as one that runs out of memory does."""

    fails = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.fails:
            raise RuntimeError("out of memory")
        return super().forward(*args, **kwargs)


async def test_a_failing_forward_fails_every_request_and_shows_in_health_until_weights_come():
    model = BrittleModel(gpt2().config).eval()
    engine = HFEngine(model, config=HFEngineConfig(max_slots=2, max_length=64), keeps_model=True)
    model.fails = True

    outcomes = await asyncio.gather(*(ask(engine, [1, 2], session=str(i)) for i in range(5)), return_exceptions=True)
    health = await engine.health()

    assert all(isinstance(outcome, EngineError) for outcome in outcomes)
    assert all("out of memory" in str(outcome) for outcome in outcomes)
    assert (health.is_ready, health.num_running, health.num_waiting) == (False, 0, 0)
    with pytest.raises(EngineError, match=r"failed earlier .*out of memory"):
        await ask(engine, [1, 2])
    model.fails = False
    await engine.update_weights(WeightManifest(version=1, tensors=named_weights(gpt2())))
    assert (await engine.health()).is_ready
    assert_logprobs_of(gpt2(), [1, 2], await ask(engine, [1, 2]))


async def test_logits_that_are_not_finite_fail_the_request_and_leave_no_trace_in_the_cache():
    model = qwen3()
    overflowing = copy.deepcopy(model)
    with torch.no_grad():
        named_weights(overflowing)["model.layers.0.mlp.down_proj.weight"].fill_(3e38)
    engine = engine_of(model)
    await engine.update_weights(WeightManifest(version=1, tensors=named_weights(overflowing)))

    with pytest.raises(EngineError, match="logits at position 20 are not finite"):
        await ask(engine, prompt_of(20))
    await engine.update_weights(WeightManifest(version=2, tensors=named_weights(model)))
    # the first takes the same slot; beside the longer one, its unused places are masked, not skipped
    completions = await asyncio.gather(ask(engine, prompt_of(5)), ask(engine, prompt_of(25), session="longer"))

    assert_logprobs_of(model, prompt_of(5), completions[0])
    assert_logprobs_of(model, prompt_of(25), completions[1])


async def test_close_fails_waiting_requests_and_may_be_called_twice():
    engine = engine_of(qwen3(), max_slots=1)
    tasks = [asyncio.ensure_future(ask(engine, [1, 2], session=str(i), max_tokens=100)) for i in range(3)]
    for _ in range(4):
        await asyncio.sleep(0)

    await engine.close()
    await engine.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [EngineClosed] * 3
    assert not (await engine.health()).is_ready
    with pytest.raises(EngineClosed):
        await ask(engine, [1])
    with pytest.raises(EngineClosed):
        await engine.update_weights(WeightManifest(version=1))


def test_one_engine_serves_event_loop_after_event_loop():
    engine = engine_of(qwen3())

    first = asyncio.run(ask(engine, prompt_of(5)))
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(ask(engine, prompt_of(5), max_tokens=120), timeout=0.001))
    second = asyncio.run(ask(engine, prompt_of(5)))

    assert second.token_ids == first.token_ids


def test_an_event_loop_that_stops_half_way_does_not_block_the_next():
    engine = engine_of(qwen3(), max_slots=1)
    abandoned = asyncio.new_event_loop()
    left = abandoned.create_task(ask(engine, prompt_of(5), max_tokens=120))
    abandoned.run_until_complete(asyncio.sleep(0.01))  # "left" still runs
    assert not left.done()

    completion = asyncio.run(ask(engine, prompt_of(5), session="next"))

    assert len(completion.token_ids) == 12
    for task in asyncio.all_tasks(abandoned):
        task.cancel()
    abandoned.run_until_complete(asyncio.wait(asyncio.all_tasks(abandoned)))
    abandoned.close()
    assert len(asyncio.run(ask(engine, prompt_of(5), session="next")).token_ids) == 12


def test_an_architecture_that_cannot_be_served_is_refused():
    bloom = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4))
    with torch.no_grad():
        for parameter in bloom.parameters():
            parameter.normal_(std=0.2)

    with pytest.raises(ModelError, match="BloomForCausalLM gives other log-probs over the slot cache"):
        engine_of(bloom)


def test_max_length_beyond_the_models_positions_is_refused():
    with pytest.raises(ModelError, match="max_length is 512, but Qwen3ForCausalLM has 256 positions"):
        engine_of(qwen3(), max_length=512)


async def test_prompts_are_read_also_where_a_step_has_no_more_tokens_than_there_are_slots():
    engine = engine_of(qwen3(), max_slots=8, max_step_tokens=1)
    asked = [ask(engine, prompt_of(20, seed=i), session=str(i), max_tokens=8) for i in range(16)]
    assert [len(done.token_ids) for done in await asyncio.gather(*asked)] == [8] * 16


def test_it_is_an_engine():
    assert isinstance(engine_of(qwen3()), Engine)
