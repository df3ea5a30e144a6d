"""Measures one real engine: weight updates, prefix reuse, and what the runner leaves of vLLM's own speed.

    python -m tests.real.bench vllm|sglang

Run it with the interpreter that has the engine (`make bench-engines`). Prints one JSON line per figure.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from agentenv.byte_tokenizer import byte_backend
from agentenv.engine.open import open_engine
from agentenv.engine.protocol import Engine, SamplingParams
from agentenv.engine.relabelled import Relabelled
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.weights import load_causal_lm, named_weights
from agentenv.episode import Limits
from agentenv.renderer import Renderer
from agentenv.runner import GroupSpec, Runner, RunnerConfig
from agentenv.tokenizer import load_tokenizer
from agentenv.trainers.sync.publish import publish
from agentenv.trainers.tiny import CHAT_TEMPLATE, make_tiny_model
from tests.bench.measure import figure

MAX_LENGTH = 1024
NUM_TURNS, OBSERVATION_TOKENS, TURN_TOKENS = 10, 40, 24
NUM_EPISODES, NUM_CONCURRENT = 512, 128
LIMITS = Limits(max_turn_tokens=32, max_episode_tokens=256, max_context_tokens=MAX_LENGTH)


def save_model(folder: Path) -> None:
    """Write a model of 0.85 million parameters with random weights."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_backend(), eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    model: Any = make_tiny_model(len(tokenizer), seed=0, hidden_size=128, num_layers=4, max_length=MAX_LENGTH)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


async def update_ms(engine: Engine, folder: Path) -> float:
    """Return the smallest time from pause to resume of ten updates with nothing in flight, checksums included."""
    weights = named_weights(load_causal_lm(folder, dtype=torch.float32))
    times = []
    for _ in range(10):
        version = (await engine.health()).version + 1
        started = time.perf_counter()
        await publish(engine, weights, version=version)
        times.append(1000 * (time.perf_counter() - started))
    return min(times)


async def cached_share(engine: Engine) -> float:
    """Return which share of the tokens that a turn repeats from the turn before is found in the cache."""
    prompt, num_repeated, num_cached = list(range(60)), 0, 0
    for turn in range(NUM_TURNS):
        sampling = SamplingParams(max_tokens=TURN_TOKENS, seed=turn)
        completion = await engine.generate(prompt, sampling, session_id=f"{0:016x}", deadline_s=120)
        if turn:
            num_cached += completion.num_cached_tokens
        prompt = [*prompt, *completion.token_ids]
        num_repeated += len(prompt) if turn < NUM_TURNS - 1 else 0
        prompt += [(7 * turn + i) % 200 for i in range(OBSERVATION_TOKENS)]
    return num_cached / num_repeated


class Calls(Relabelled):
    """An engine that notes who asked what."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, offset=0)
        self.asked: dict[str, list[tuple[list[int], SamplingParams]]] = {}
        self.num_tokens = 0

    async def generate(self, prompt_ids, sampling, *, session_id, deadline_s, images=()):
        self.asked.setdefault(session_id, []).append((list(prompt_ids), sampling))
        completion = await self.engine.generate(prompt_ids, sampling, session_id=session_id, deadline_s=deadline_s)
        self.num_tokens += len(completion.token_ids)
        return completion


async def runner_seconds(engine: Engine, renderer: Renderer) -> tuple[float, Calls]:
    """Play the quickstart's episodes, 128 at once; returns the seconds and what the engine was asked."""
    calls = Calls(engine)
    config = RunnerConfig(max_episodes=NUM_CONCURRENT, limits=LIMITS, max_retries=0)
    runner = Runner(engine=calls, renderer=renderer, config=config)
    specs = [GroupSpec(group_id=str(i), env_id="agentenv/GuessNumber-v0", seed=i) for i in range(NUM_EPISODES)]
    started = time.perf_counter()
    groups = await runner.run_all(specs)
    assert all(t.is_scored for group in groups for t in group.trajectories), groups[0].trajectories[0].error
    return time.perf_counter() - started, calls


async def plain_seconds(llm: Any, calls: Calls) -> tuple[float, int]:
    """Send the same requests to `AsyncLLM` itself, an episode's one after the other; returns seconds and tokens."""
    params_module: Any = importlib.import_module("vllm.sampling_params")
    gate, num_tokens = asyncio.Semaphore(NUM_CONCURRENT), 0

    async def episode(session: str, requests: list[tuple[list[int], SamplingParams]]) -> None:
        nonlocal num_tokens
        async with gate:
            for turn, (prompt, sampling) in enumerate(requests):
                params = params_module.SamplingParams(
                    max_tokens=sampling.max_tokens,
                    temperature=sampling.temperature,
                    stop_token_ids=list(sampling.stop_ids),
                    seed=(sampling.seed or 0) % 2**63,
                    logprobs=0,
                    detokenize=False,
                    output_kind=params_module.RequestOutputKind.FINAL_ONLY,
                )
                name = f"plain-{session}-{turn}-{time.perf_counter_ns()}"
                async for output in llm.generate({"prompt_token_ids": prompt}, params, name):
                    if output.finished:
                        num_tokens += len(output.outputs[0].token_ids)

    started = time.perf_counter()
    await asyncio.gather(*(episode(session, requests) for session, requests in calls.asked.items()))
    return time.perf_counter() - started, num_tokens


async def runner_share(engine: Any, renderer: Renderer) -> float:
    """Return the runner's tokens per second over those of plain `AsyncLLM`, the best of three rounds each."""
    await runner_seconds(engine, renderer)
    ours, theirs = [], []
    for _ in range(3):
        await engine.forget_prefixes()
        seconds, calls = await runner_seconds(engine, renderer)
        ours.append(calls.num_tokens / seconds)
        await engine.forget_prefixes()
        seconds, num_tokens = await plain_seconds(engine._llm, calls)
        theirs.append(num_tokens / seconds)
    print(json.dumps({"runner_tokens_per_s": round(max(ours)), "plain_tokens_per_s": round(max(theirs))}), flush=True)
    return max(ours) / max(theirs)


async def measure(name: str) -> bool:
    """Print every figure of an engine; returns whether all reach their targets."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        config = ServerConfig.model_validate({"name": name, "place": "in_process", "max_length": MAX_LENGTH})
        engine: Any = await open_engine(config, model=folder)
        try:
            await engine.generate([1, 2, 3], SamplingParams(max_tokens=8), session_id=f"{1:016x}", deadline_s=300)
            figures = [figure(f"{name}_update_ms", await update_ms(engine, Path(folder)), unit="ms", at_most=100)]
            share = await cached_share(engine)
            figures.append(figure(f"{name}_repeated_tokens_cached", share, unit="share", at_least=0.9))
            if name == "vllm":
                renderer = Renderer(load_tokenizer(folder), family="qwen3")
                share = await runner_share(engine, renderer)
                figures.append(figure("vllm_runner_over_plain_128", share, unit="ratio", at_least=0.85))
        finally:
            await engine.close()
    for line in figures:
        print(json.dumps(line), flush=True)
    return all(line["ok"] for line in figures)


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(measure(sys.argv[1])) else 1)
