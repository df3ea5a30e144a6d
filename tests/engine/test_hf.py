"""The embedded engine: log-probs against the model's own forward, batching, prefixes, limits and failures."""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2LMHeadModel, PreTrainedModel

from agentenv.engine.decoder import GenericDecoder, LeanDecoder
from agentenv.engine.hf import HFEngine, HFEngineConfig, weights_checksum
from agentenv.engine.protocol import Completion, Engine, SamplingParams, WeightManifest, check_completion
from agentenv.engine.weights import named_weights
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError, ModelError
from agentenv.trainers.model import PackedModel
from agentenv.trajectory import VersionSpan
from tests.engine.small_models import ARCHITECTURES, VOCAB_SIZE, gpt2, qwen3, reference_logprobs

TOLERANCE = 1e-4


def engine_of(model: PreTrainedModel, **options: Any) -> HFEngine:
    return HFEngine(model, config=HFEngineConfig(**{"max_slots": 8, "max_length": 128, **options}))


def prompt_of(length: int, *, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=length)


async def ask(
    engine: HFEngine, prompt: Sequence[int], *, session: str = "s", deadline_s: float = 60.0, **sampling: Any
) -> Completion:
    params = SamplingParams(**{"max_tokens": 12, "seed": 3, **sampling})
    return await engine.generate(prompt, params, session_id=session, deadline_s=deadline_s)


def assert_logprobs_of(
    model: PreTrainedModel, prompt: Sequence[int], completion: Completion, *, temperature: float = 1.0
) -> None:
    check_completion(completion, vocab_size=VOCAB_SIZE)
    reference_T = reference_logprobs(model, [*prompt, *completion.token_ids], temperature=temperature)
    assert completion.logprobs == pytest.approx(reference_T[len(prompt) - 1 :].tolist(), abs=TOLERANCE)


def perturbed(model: PreTrainedModel, *, seed: int = 1) -> PreTrainedModel:
    """Return a copy with other values in every parameter, norms included."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return other


# What it computes.


@pytest.mark.parametrize("name", ARCHITECTURES)
async def test_greedy_output_is_that_of_generate(name: str):
    model = ARCHITECTURES[name]()
    prompt = prompt_of(20)

    completion = await ask(engine_of(model), prompt, temperature=0.0)

    generated: Any = model
    expected_BT = generated.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, 20, dtype=torch.int64),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert completion.token_ids == expected_BT[0, 20:].tolist()
    assert completion.finish_reason == "length"


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", ARCHITECTURES)
async def test_logprobs_of_a_crowd_are_those_of_the_models_own_forward(name: str, temperature: float):
    model = ARCHITECTURES[name]()
    prompts = [prompt_of(3 + 5 * index, seed=index) for index in range(12)]
    engine = engine_of(model, max_slots=5, max_step_tokens=32)

    completions = await asyncio.gather(
        *(ask(engine, prompt, session=str(i), temperature=temperature, seed=i) for i, prompt in enumerate(prompts))
    )

    for prompt, completion in zip(prompts, completions, strict=True):
        assert_logprobs_of(model, prompt, completion, temperature=temperature)


@pytest.mark.parametrize(
    ("name", "decoder"), [("qwen3", LeanDecoder), ("mistral", LeanDecoder), ("gpt2", GenericDecoder)]
)
def test_plain_llama_blocks_run_lean_and_other_architectures_as_they_are(name: str, decoder: type):
    assert type(engine_of(ARCHITECTURES[name]())._decoder) is decoder


async def test_top_k_and_top_p_leave_the_logprobs_unfiltered():
    model = qwen3()
    prompt = prompt_of(10)

    completion = await ask(engine_of(model), prompt, top_k=3, top_p=0.7, max_tokens=30)

    assert_logprobs_of(model, prompt, completion)


async def test_engine_and_trainer_agree_on_every_logprob():
    model = qwen3()
    engine, trainer = engine_of(model), PackedModel(copy.deepcopy(model))
    prompts = [prompt_of(4 + 3 * index, seed=index) for index in range(6)]

    completions = await asyncio.gather(*(ask(engine, p, session=str(i)) for i, p in enumerate(prompts)))

    full = [[*p, *c.token_ids] for p, c in zip(prompts, completions, strict=True)]
    boundary_C = torch.tensor([0, *(len(ids) for ids in full)]).cumsum(0)
    scores = trainer.forward_logprobs(
        torch.tensor([token_id for ids in full for token_id in ids]),
        cu_seqlens_C=boundary_C,
        position_T=torch.cat([torch.arange(len(ids)) for ids in full]),
    )
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start = int(boundary_C[index]) + len(prompt)
        expected = scores.logprob_T[start : int(boundary_C[index + 1])].tolist()
        assert completion.logprobs == pytest.approx(expected, abs=TOLERANCE)


async def test_a_float64_engine_reports_logprobs_to_float32_precision():
    model = qwen3()
    prompt = prompt_of(10)

    completion = await ask(engine_of(model, dtype="float64"), prompt)

    reference_T = reference_logprobs(copy.deepcopy(model).double(), [*prompt, *completion.token_ids])
    assert completion.logprobs == pytest.approx(reference_T[9:].tolist(), abs=2e-6)


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
async def test_half_precision_serves_the_rounded_weights(name: str):
    model = ARCHITECTURES[name]()
    engine = engine_of(model, dtype="bfloat16")
    rounded: Any = copy.deepcopy(model)
    rounded = rounded.to(torch.bfloat16)

    completion = await ask(engine, prompt_of(10))
    ack = await engine.update_weights(WeightManifest(version=1, tensors=named_weights(model)))

    reference_T = reference_logprobs(rounded, [*prompt_of(10), *completion.token_ids])[9:]
    assert completion.logprobs == pytest.approx(reference_T.tolist(), abs=0.1)  # activations have 8 bits
    assert ack.checksum == weights_checksum(named_weights(model), dtype=torch.bfloat16)


# Chance.


async def test_a_seeded_request_draws_the_same_alone_and_in_a_crowd():
    model = qwen3()
    prompts = [prompt_of(5 + index, seed=index) for index in range(10)]

    alone = [await ask(engine_of(model, max_slots=1), p, seed=i, max_tokens=20) for i, p in enumerate(prompts)]
    crowd_engine = engine_of(model, max_slots=10)
    crowd = await asyncio.gather(
        *(ask(crowd_engine, p, session=str(i), seed=i, max_tokens=20) for i, p in enumerate(prompts))
    )

    assert [c.token_ids for c in crowd] == [c.token_ids for c in alone]


async def test_two_runs_with_the_same_seeds_and_order_are_bit_identical():
    async def run() -> list[tuple[list[int], list[float]]]:
        engine = engine_of(qwen3(), max_slots=4, seed=11)

        async def episode(index: int) -> list[tuple[list[int], list[float]]]:
            history, turns = prompt_of(6 + index, seed=index), []
            for _ in range(3):
                completion = await ask(engine, history, session=str(index), seed=None, max_tokens=5 + index)
                turns.append((list(completion.token_ids), list(completion.logprobs)))
                history = [*history, *completion.token_ids, index]
            return turns

        return list(itertools.chain(*await asyncio.gather(*(episode(index) for index in range(7)))))

    assert await run() == await run()


async def test_requests_without_a_seed_draw_differently_from_each_other():
    engine = engine_of(qwen3())

    first = await ask(engine, prompt_of(5), seed=None)
    second = await ask(engine, prompt_of(5), seed=None)

    assert first.token_ids != second.token_ids


# Limits.


async def test_a_stop_id_ends_the_output_and_belongs_to_it():
    engine = engine_of(qwen3())
    free = await ask(engine, prompt_of(8), max_tokens=30)
    stop_id = free.token_ids[7]
    first = free.token_ids.index(stop_id)

    stopped = await ask(engine, prompt_of(8), max_tokens=30, stop_ids=(500, stop_id), session="other")

    assert stopped.token_ids == free.token_ids[: first + 1]
    assert stopped.finish_reason == "stop"


async def test_output_is_cut_where_prompt_and_output_reach_max_length():
    completion = await ask(engine_of(qwen3(), max_length=24), prompt_of(20), max_tokens=100)

    assert len(completion.token_ids) == 4
    assert completion.finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([5, 3, VOCAB_SIZE, 1], rf"prompt_ids\[2\] is {VOCAB_SIZE}; ids must lie in \[0, {VOCAB_SIZE}\)"),
        ([5, -1], r"prompt_ids\[1\] is -1"),
        ([], "non-empty list of integers"),
        ([1.5, 2.0], "dtype float64; a non-empty list of integers"),
        ([1] * 128, "128 tokens, but max_length is 128"),
    ],
)
async def test_a_prompt_that_cannot_be_served_is_refused_with_the_reason(prompt: list[Any], message: str):
    engine = engine_of(qwen3())

    with pytest.raises(EngineError, match=message):
        await ask(engine, prompt)

    assert len((await ask(engine, [1, 2, 3])).token_ids) == 12


async def test_a_long_prompt_read_over_several_steps_gives_the_same_output():
    model = qwen3()

    whole = await ask(engine_of(model), prompt_of(100), max_tokens=10)
    chunked = await ask(engine_of(model, max_slots=1, max_step_tokens=7), prompt_of(100), max_tokens=10)

    assert chunked.token_ids == whole.token_ids
    assert chunked.logprobs == pytest.approx(whole.logprobs, abs=1e-5)


async def test_more_requests_than_slots_are_served_in_order():
    engine = engine_of(qwen3(), max_slots=2)
    finished: list[int] = []

    async def one(index: int) -> None:
        await ask(engine, prompt_of(4, seed=index), session=str(index), max_tokens=4)
        finished.append(index)

    tasks = [asyncio.ensure_future(one(index)) for index in range(6)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    health = await engine.health()
    await asyncio.gather(*tasks)

    assert (health.num_running, health.num_waiting) == (2, 4)
    assert finished == [0, 1, 2, 3, 4, 5]


async def test_the_oldest_prompt_is_read_first():
    engine = engine_of(qwen3(), max_slots=2, max_step_tokens=4)
    finished: list[str] = []

    async def one(name: str, length: int) -> None:
        await ask(engine, prompt_of(length, seed=ord(name)), session=name, max_tokens=2)
        finished.append(name)

    # "c" gets the slot of "a", which lies before that of "b", while "b" is still being read 3 tokens at a time
    await asyncio.gather(one("a", 2), one("b", 60), one("c", 60))

    assert finished == ["a", "b", "c"]


async def test_a_request_past_its_deadline_fails_and_frees_its_slot():
    engine = engine_of(qwen3(), max_slots=1)
    await engine.pause("keep")

    with pytest.raises(DeadlineExceeded, match=r"engine failure in HFEngine.generate: no completion within 0.01 s"):
        await ask(engine, [1, 2], deadline_s=0.01)

    assert (await engine.health()).num_waiting == 0
    await engine.resume()
    running = asyncio.ensure_future(ask(engine, [1, 2], deadline_s=0.01, max_tokens=100))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await engine.pause("keep")
    with pytest.raises(DeadlineExceeded):
        await running
    assert (await engine.health()).num_running == 0


async def test_a_cancelled_request_frees_its_slot_at_once():
    engine = engine_of(qwen3(), max_slots=1)
    running = asyncio.ensure_future(ask(engine, [1, 2], max_tokens=100))
    waiting = asyncio.ensure_future(ask(engine, [3, 4], max_tokens=100, session="w"))
    for _ in range(4):
        await asyncio.sleep(0)
    before = await engine.health()

    running.cancel()
    waiting.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    after = await engine.health()

    assert (before.num_running, before.num_waiting) == (1, 1)
    assert (after.num_running, after.num_waiting) == (0, 0)


# Prefixes.


async def test_the_next_turn_reads_only_what_is_new():
    model = qwen3()
    engine = engine_of(model)
    first = await ask(engine, prompt_of(20), max_tokens=10)
    prompt = [*prompt_of(20), *first.token_ids, *prompt_of(6, seed=9)]

    second = await ask(engine, prompt)

    # the last sampled token was never fed back, so 20 + 10 - 1 are cached
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 29)
    assert_logprobs_of(model, prompt, second)


async def test_new_prompts_and_next_turns_of_like_length_are_read_together():
    model = qwen3()
    engine = engine_of(model)
    first = await ask(engine, prompt_of(20), max_tokens=10)
    next_turn = [*prompt_of(20), *first.token_ids, *prompt_of(19, seed=9)]
    fresh = prompt_of(21, seed=8)  # one token more than the 20 that the next turn has to read

    completions = await asyncio.gather(ask(engine, next_turn), ask(engine, fresh, session="fresh"))

    assert_logprobs_of(model, next_turn, completions[0])
    assert_logprobs_of(model, fresh, completions[1])


async def test_a_rewritten_history_keeps_what_still_holds():
    model = qwen3()
    engine = engine_of(model)
    await ask(engine, prompt_of(40))
    prompt = [*prompt_of(40)[:25], *prompt_of(10, seed=9)]

    completion = await ask(engine, prompt)

    assert completion.num_cached_tokens == 25
    assert_logprobs_of(model, prompt, completion)


async def test_the_session_idle_for_longest_makes_room():
    engine = engine_of(qwen3(), max_slots=2, shares_prefixes=False)
    for session in ("a", "b", "c"):  # c takes the slot of a
        await ask(engine, prompt_of(20, seed=ord(session)), session=session)

    again = {s: await ask(engine, prompt_of(20, seed=ord(s)), session=s, max_tokens=1) for s in ("c", "b", "a")}

    assert {session: completion.num_cached_tokens for session, completion in again.items()} == {
        "c": 19,
        "b": 19,
        "a": 0,
    }


async def test_an_ended_session_gives_its_slot_up_first():
    engine = engine_of(qwen3(), max_slots=2, shares_prefixes=False)
    for session in ("a", "b"):
        await ask(engine, prompt_of(20, seed=ord(session)), session=session)

    await engine.end_session("b")
    await engine.end_session("never seen")
    await ask(engine, prompt_of(20, seed=5), session="c")

    assert (await ask(engine, prompt_of(20, seed=ord("a")), session="a")).num_cached_tokens == 19


async def test_episodes_of_a_group_read_their_common_prompt_once():
    model = qwen3()
    engine = engine_of(model, max_slots=8)
    shared = prompt_of(60)
    prompts = [[*shared, *prompt_of(5, seed=index)] for index in range(8)]

    completions = await asyncio.gather(
        *(ask(engine, prompt, session=str(i), seed=i) for i, prompt in enumerate(prompts))
    )

    # the first one reads, the others copy
    assert [completion.num_cached_tokens for completion in completions] == [0] + [60] * 7
    for prompt, completion in zip(prompts, completions, strict=True):
        assert_logprobs_of(model, prompt, completion)


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


def test_a_step_must_hold_more_tokens_than_there_are_slots():
    with pytest.raises(ValueError, match=r"max_step_tokens is 8; it must be larger than max_slots \(8\)"):
        HFEngineConfig(max_slots=8, max_step_tokens=8)


def test_it_is_an_engine():
    assert isinstance(engine_of(qwen3()), Engine)


# Everything at once.


@pytest.mark.parametrize(("seed", "max_slots"), [(0, 16), (1, 3), (2, 1)])
async def test_logprobs_hold_through_turns_cancellations_evictions_and_weight_updates(seed: int, max_slots: int):
    versions = {0: qwen3()}
    engine = engine_of(versions[0], max_slots=max_slots, max_step_tokens=max_slots + 20)
    groups = [prompt_of(40, seed=100 + group) for group in range(2)]

    async def episode(index: int) -> None:
        rng = random.Random(1000 * seed + index)
        history = list(rng.choice(groups))
        for turn in range(3):
            sampling = SamplingParams(
                max_tokens=rng.randrange(1, 12), temperature=rng.choice([1.0, 0.7]), stop_ids=(3,)
            )
            request = asyncio.ensure_future(engine.generate(history, sampling, session_id=str(index), deadline_s=60))
            if rng.random() < 0.2:
                for _ in range(rng.randrange(8)):
                    await asyncio.sleep(0)
                request.cancel()
            try:
                completion = await request
            except asyncio.CancelledError:
                continue
            check_completion(completion, vocab_size=VOCAB_SIZE)
            start, history = len(history), [*history, *completion.token_ids]
            for span in completion.weight_versions:
                expected_T = reference_logprobs(versions[span.version], history, temperature=sampling.temperature)
                expected = expected_T[start + span.start - 1 : start + span.end - 1].tolist()
                assert completion.logprobs[span.start : span.end] == pytest.approx(expected, abs=TOLERANCE)
            history += prompt_of(rng.randrange(0, 9), seed=turn)
        await engine.end_session(str(index))

    async def update() -> None:
        for version in (1, 2):
            for _ in range(15):
                await asyncio.sleep(0)
            versions[version] = perturbed(versions[version - 1], seed=version)
            await engine.pause("keep" if version == 1 else "abort")
            await engine.update_weights(WeightManifest(version=version, tensors=named_weights(versions[version])))
            await engine.resume()

    await asyncio.gather(update(), *(episode(index) for index in range(16)))

    health = await engine.health()
    assert (health.num_running, health.num_waiting, health.version) == (0, 0, 2)
