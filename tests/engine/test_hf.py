"""The embedded engine: log-probs against the model's own forward, chance, batching, limits and prefixes."""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
from typing import Any

import pytest
import torch

from agentenv.engine.decoder import GenericDecoder, LeanDecoder
from agentenv.engine.hf import weights_checksum
from agentenv.engine.protocol import SamplingParams, WeightManifest, check_completion
from agentenv.engine.weights import named_weights
from agentenv.errors import DeadlineExceeded, EngineError
from agentenv.trainers.model import PackedModel
from tests.engine.small_engines import TOLERANCE, ask, assert_logprobs_of, engine_of, perturbed, prompt_of
from tests.engine.small_models import ARCHITECTURES, VOCAB_SIZE, qwen3, reference_logprobs

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
        engine = engine_of(qwen3(), max_slots=4)

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
