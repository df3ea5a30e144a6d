"""What SGLang must do, as tests that run against the stand-in and, unchanged, against the real server.

A module that imports them provides the fixtures `subject`, a server that other tests use too, and `own_subject`, one
that may be killed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from agentenv.engine.protocol import Completion, SamplingParams, WeightManifest, check_completion
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.sglang_verbs import SGLangVerbs
from agentenv.engine.weights import weights_checksum
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError
from agentenv.trainers.sync.publish import publish

VOCAB_SIZE = 97
TOLERANCE = 1e-4
PATIENCE_S = 240.0
PROMPT = [5, 17, 3, 44, 90, 8, 61, 29]

Weights = Mapping[str, Tensor]
Connect = Callable[[ServerConfig], Awaitable[SGLangVerbs]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A server under test.

    Attributes:
        connect: makes an engine over it.
        weights: that it was started with.
        reference: log-probs of tokens 1, 2, ... of a sequence under given weights, at a temperature.
        kill: ends it at once.
        opened: engines that `close` closes.
    """

    connect: Connect
    weights: Weights
    reference: Callable[[Weights, Sequence[int], float], list[float]]
    kill: Callable[[], None]
    opened: list[SGLangVerbs] = field(default_factory=list)

    async def engine(self, **options: Any) -> SGLangVerbs:
        """Return an engine, with the weights that the server was started with as its newest version."""
        engine = await self.connect(ServerConfig(**{"name": "sglang", "max_length": 250, **options}))
        self.opened.append(engine)
        await engine.update_weights(WeightManifest(version=await newest(engine) + 1, tensors=self.weights))
        return engine

    async def close(self) -> None:
        """Close every engine that was made."""
        for engine in self.opened:
            await engine.close()


async def newest(engine: SGLangVerbs) -> int:
    return (await engine.health()).version


def moved(weights: Weights, *, seed: int = 1) -> dict[str, Tensor]:
    """Return other weights, far enough away that log-probs differ."""
    generator = torch.Generator().manual_seed(seed)
    return {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in weights.items()}


async def ask(engine: SGLangVerbs, prompt: Sequence[int] = PROMPT, **sampling: Any) -> Completion:
    params = SamplingParams(**{"max_tokens": 12, **sampling})
    completion = await engine.generate(prompt, params, session_id="s", deadline_s=PATIENCE_S)
    check_completion(completion, vocab_size=VOCAB_SIZE)
    return completion


async def until(condition: Callable[[], Awaitable[bool]], *, within_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - the server cannot set an event of ours
            await asyncio.sleep(0.02)


def expected(
    subject: Subject,
    weights: Weights,
    completion: Completion,
    *,
    prompt: Sequence[int] = PROMPT,
    temperature: float = 1.0,
) -> list[float]:
    """Return the log-probs that the output would have under some weights."""
    return subject.reference(weights, [*prompt, *completion.token_ids], temperature)[len(prompt) - 1 :]


@pytest.mark.parametrize(
    ("sampling", "temperature"),
    [
        ({}, 1.0),
        ({"temperature": 0.6}, 0.6),
        ({"temperature": 1.7, "top_p": 0.8}, 1.7),
        ({"temperature": 0.9, "top_k": 3}, 0.9),
        ({"temperature": 0.0}, 1.0),
    ],
)
async def test_logprobs_are_those_of_the_model_at_the_temperature_before_any_mask(subject, sampling, temperature):
    engine = await subject.engine()
    completion = await ask(engine, **sampling)

    reference = expected(subject, subject.weights, completion, temperature=temperature)
    assert completion.logprobs == pytest.approx(reference, abs=TOLERANCE)
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 12


async def test_a_stop_id_ends_the_output_and_is_part_of_it(subject):
    engine = await subject.engine()
    stop_ids = tuple(range(2, 60))
    completion = await ask(engine, max_tokens=100, stop_ids=stop_ids)

    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] in stop_ids
    assert not set(completion.token_ids[:-1]) & set(stop_ids)


async def test_an_output_ends_where_the_length_of_both_together_ends(subject):
    engine = await subject.engine(max_length=20)
    completion = await ask(engine, max_tokens=100)

    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 20 - len(PROMPT)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "empty prompt"),
        ([1, VOCAB_SIZE, 2], rf"token id {VOCAB_SIZE} .* \[0, {VOCAB_SIZE}\)"),
        ([1, -1], "token id -1"),
        ([1] * 250, "250 tokens"),
    ],
)
async def test_a_prompt_that_would_harm_the_server_never_reaches_it(subject, prompt, said):
    engine = await subject.engine()
    with pytest.raises(EngineError, match=said):
        await ask(engine, prompt)
    assert len((await ask(engine)).token_ids) == 12


async def test_sixty_four_requests_at_once_each_get_their_own_answer(subject):
    engine = await subject.engine()
    prompts = [[(7 * i + j) % VOCAB_SIZE for j in range(4 + i % 9)] for i in range(64)]
    completions = await asyncio.gather(*(ask(engine, prompt) for prompt in prompts))

    for prompt, completion in zip(prompts, completions, strict=True):
        reference = expected(subject, subject.weights, completion, prompt=prompt)
        assert completion.logprobs == pytest.approx(reference, abs=TOLERANCE)


async def test_an_aborting_pause_gives_back_what_was_generated(subject):
    engine = await subject.engine()
    running = asyncio.create_task(ask(engine, max_tokens=230))
    await until(lambda: is_running(engine))
    await engine.pause("abort")
    completion = await running
    await engine.resume()
    after = await ask(engine)

    assert completion.finish_reason == "abort"
    assert 0 <= len(completion.token_ids) < 230
    reference = expected(subject, subject.weights, completion)
    assert completion.logprobs == pytest.approx(reference, abs=TOLERANCE)
    assert after.finish_reason == "length"


async def test_requests_that_had_not_begun_come_back_empty_from_an_aborting_pause(subject):
    engine = await subject.engine()
    running = [asyncio.create_task(ask(engine, [i % VOCAB_SIZE, 1, 2], max_tokens=230)) for i in range(150)]
    await until(lambda: is_waiting(engine))
    await engine.pause("abort")
    await engine.resume()  # what had not yet reached the server when it paused runs now
    completions = await asyncio.gather(*running)

    empty = [completion for completion in completions if not completion.token_ids]
    assert empty
    assert all(completion.finish_reason == "abort" for completion in empty)


async def test_a_cancelled_request_is_aborted_in_the_server(subject):
    engine = await subject.engine()
    running = asyncio.create_task(ask(engine, max_tokens=230))
    await until(lambda: is_running(engine))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: is_idle(engine))


async def test_a_deadline_ends_its_own_request_and_no_other(subject):
    engine = await subject.engine()
    other = asyncio.create_task(ask(engine, max_tokens=230))
    with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
        await engine.generate(PROMPT, SamplingParams(max_tokens=230), session_id="s", deadline_s=0.05)
    completion = await other
    await until(lambda: is_idle(engine))

    assert (completion.finish_reason, len(completion.token_ids)) == ("length", 230)


async def test_a_paused_server_takes_no_request_and_goes_on_with_those_that_it_had(subject):
    engine = await subject.engine()
    early = asyncio.create_task(ask(engine, max_tokens=200))
    await until(lambda: is_running(engine))
    await engine.pause("keep")
    with pytest.raises(DeadlineExceeded):
        await engine.generate(PROMPT, SamplingParams(max_tokens=4), session_id="s", deadline_s=0.3)
    assert not early.done()
    started = time.monotonic()
    assert (await engine.health()).is_ready
    assert time.monotonic() - started < 5  # its own health check would block for 20 s
    late = asyncio.create_task(ask(engine))
    await engine.resume()
    completions = [await early, await late]

    for completion in completions:
        assert completion.finish_reason == "length"
        assert completion.logprobs == pytest.approx(expected(subject, subject.weights, completion), abs=TOLERANCE)


@pytest.mark.parametrize("way", ["tensor", "gloo", "disk"])
async def test_new_weights_serve_from_the_next_request_on_and_are_proven(subject, way):
    engine = await subject.engine(weight_sync=way)
    weights, version = moved(subject.weights), await newest(engine) + 1
    await ask(engine)  # leaves a prefix in the cache
    ack = await publish(engine, weights, version=version)
    completion = await ask(engine)
    again = moved(subject.weights, seed=2)
    await publish(engine, again, version=version + 1)
    last = await ask(engine)

    assert (ack.version, ack.checksum) == (version, weights_checksum(weights))
    assert engine.proof.num_parameters == engine.proof.num_proven > 0
    assert completion.num_cached_tokens == 0
    assert [span.version for span in completion.weight_versions] == [version]
    assert completion.logprobs == pytest.approx(expected(subject, weights, completion), abs=TOLERANCE)
    assert completion.logprobs != pytest.approx(expected(subject, subject.weights, completion), abs=0.01)
    assert last.logprobs == pytest.approx(expected(subject, again, last), abs=TOLERANCE)


async def test_the_load_tells_requests_and_cache_use(subject):
    engine = await subject.engine()
    running = asyncio.create_task(ask(engine, max_tokens=230))
    await until(lambda: uses_cache(engine))
    await running
    await until(lambda: is_idle(engine))


@pytest.mark.parametrize("way", ["tensor", "gloo", "disk"])
async def test_weights_that_change_in_flight_change_the_logprobs_from_that_token_on(subject, way):
    engine = await subject.engine(weight_sync=way)
    old = await newest(engine)
    weights = moved(subject.weights)
    running = asyncio.create_task(ask(engine, max_tokens=230))
    await until(lambda: is_running(engine))
    await asyncio.sleep(0.05)
    await engine.update_weights(WeightManifest(version=old + 1, tensors=weights))
    completion = await running

    before, after = completion.weight_versions
    assert (before.version, after.version) == (old, old + 1)
    assert 0 < before.end == after.start < after.end == 230
    with_old, with_new = expected(subject, subject.weights, completion), expected(subject, weights, completion)
    switch = before.end
    assert completion.logprobs[:switch] == pytest.approx(with_old[:switch], abs=TOLERANCE)
    assert completion.logprobs[switch:] == pytest.approx(with_new[switch:], abs=TOLERANCE)
    assert completion.logprobs[switch:] != pytest.approx(with_old[switch:], abs=0.01)


async def test_a_prefix_is_read_from_the_cache_until_it_is_to_be_forgotten(subject):
    engine = await subject.engine()
    first = await ask(engine)
    turn = [*PROMPT, *first.token_ids, 4, 4, 4]
    second = await ask(engine, turn)
    await engine.forget_prefixes()
    third = await ask(engine, turn)

    # the last sampled token's key and value were never computed
    assert second.num_cached_tokens >= len(PROMPT) + len(first.token_ids) - 1
    assert third.num_cached_tokens == 0


async def test_prefixes_are_forgotten_also_while_requests_run(subject):
    engine = await subject.engine()
    await ask(engine)
    running = asyncio.create_task(ask(engine, max_tokens=200))
    await until(lambda: is_running(engine))
    await engine.forget_prefixes()
    completion = await running

    assert completion.logprobs == pytest.approx(expected(subject, subject.weights, completion), abs=TOLERANCE)


async def test_a_version_that_is_not_newer_is_refused(subject):
    engine = await subject.engine()
    version = await newest(engine)
    with pytest.raises(EngineError, match=f"version {version} came"):
        await engine.update_weights(WeightManifest(version=version, tensors=subject.weights))


async def test_two_trainers_on_one_server_are_found_out(subject):
    engine, other = await subject.engine(), await subject.engine()
    version = await newest(other)
    with pytest.raises(EngineError, match="another one updates it too"):
        await engine.update_weights(WeightManifest(version=version + 5, tensors=subject.weights))
    assert len((await ask(engine)).token_ids) == 12


@pytest.mark.parametrize("fault", ["unknown", "missing", "shape", "nan", "no tensor", "none"])
async def test_weights_that_do_not_fit_are_refused_before_anything_is_sent(subject, fault):
    engine = await subject.engine()
    version = await newest(engine)
    name = next(iter(subject.weights))
    broken: dict[str, Any] = dict(moved(subject.weights))
    if fault == "unknown":
        broken["model.nothing.weight"] = torch.zeros(3)
    elif fault == "missing":
        del broken[name]
    elif fault == "shape":
        broken[name] = broken[name][:-1]
    elif fault == "nan":
        broken[name] = broken[name] * torch.nan
    elif fault == "no tensor":
        broken[name] = [1.0]
    else:
        broken = {}
    with pytest.raises(EngineError, match="weight update refused"):
        await engine.update_weights(WeightManifest(version=version + 1, tensors=broken))
    completion = await ask(engine)

    assert [span.version for span in completion.weight_versions] == [version]
    assert completion.logprobs == pytest.approx(expected(subject, subject.weights, completion), abs=TOLERANCE)


async def test_a_closed_engine_refuses_and_lets_its_server_go_on(subject):
    engine = await subject.engine()
    await engine.pause("keep")
    waiting = asyncio.create_task(ask(engine))
    await asyncio.sleep(0)
    await engine.close()
    await engine.close()
    with pytest.raises(EngineClosed):
        await waiting
    with pytest.raises(EngineClosed):
        await ask(engine)
    other = await subject.engine()
    assert len((await ask(other)).token_ids) == 12


async def test_requests_of_a_killed_server_fail_at_once(own_subject):
    engine = await own_subject.engine()
    running = [asyncio.create_task(ask(engine, max_tokens=230)) for _ in range(3)]
    await until(lambda: is_running(engine))
    own_subject.kill()
    started = time.monotonic()
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(outcome, EngineError)
    with pytest.raises(EngineError):
        await ask(engine)
    with pytest.raises(EngineError):
        await engine.update_weights(WeightManifest(version=99, tensors=own_subject.weights))
    assert time.monotonic() - started < 10
    assert not (await engine.health()).is_ready


async def is_running(engine: SGLangVerbs) -> bool:
    return (await engine.health()).num_running > 0


async def uses_cache(engine: SGLangVerbs) -> bool:
    health = await engine.health()
    return health.num_running > 0 and 0 < health.cache_use <= 1


async def is_waiting(engine: SGLangVerbs) -> bool:
    return (await engine.health()).num_waiting > 0


async def is_idle(engine: SGLangVerbs) -> bool:
    health = await engine.health()
    return health.num_running == health.num_waiting == 0
