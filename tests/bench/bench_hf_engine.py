"""The embedded engine on one CPU thread, against transformers' `model.generate` in the same run.

The workload is prompts of 64 tokens and 128 new tokens, sampled at temperature 1, with 1, 32 or 128 requests in flight,
on a Qwen3 of 0.85M parameters in float32. `python -m tests.bench.bench_hf_engine` prints one JSON line per figure.
"""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any

import torch
from torch import Tensor

from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.protocol import SamplingParams
from tests.bench.bench_train import bench_model
from tests.bench.measure import cpu_seconds, figure

PROMPT_TOKENS, NEW_TOKENS = 64, 128
LEAST_SPEEDUPS = {1: 2.0, 32: 1.4, 128: 1.4}
REPEATS = {1: 5, 32: 3, 128: 2}


def figures() -> list[dict[str, object]]:
    """Measure and return the figures, each with its target."""
    torch.set_num_threads(1)
    model = bench_model().eval()
    engine = HFEngine(model, config=HFEngineConfig(max_slots=max(LEAST_SPEEDUPS), max_length=512))
    lines: list[dict[str, object]] = []
    for in_flight, least in LEAST_SPEEDUPS.items():
        prompt_BL = torch.randint(1, 2000, (in_flight, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
        engine_s = cpu_seconds(functools.partial(_serve, engine, prompt_BL), repeats=REPEATS[in_flight])
        generate_s = cpu_seconds(functools.partial(_generate, model, prompt_BL), repeats=REPEATS[in_flight])
        num_tokens = in_flight * NEW_TOKENS
        lines += [
            figure(f"hf_engine_{in_flight}", num_tokens / engine_s, unit="output tokens/CPU-s"),
            figure(f"hf_generate_{in_flight}", num_tokens / generate_s, unit="output tokens/CPU-s"),
            figure(f"hf_engine_over_generate_{in_flight}", generate_s / engine_s, unit="x", at_least=least),
        ]
    return lines


def _serve(engine: HFEngine, prompt_BL: Tensor) -> None:
    """Play every prompt as an episode of its own; no prefix is found in the cache."""

    async def play() -> None:
        sampling = SamplingParams(max_tokens=NEW_TOKENS)
        names = [f"episode-{index}" for index in range(len(prompt_BL))]
        requests = zip(prompt_BL.tolist(), names, strict=True)
        completions = await asyncio.gather(
            *(engine.generate(prompt, sampling, session_id=name, deadline_s=600) for prompt, name in requests)
        )
        assert all(len(completion.token_ids) == NEW_TOKENS for completion in completions)
        assert all(completion.num_cached_tokens == 0 for completion in completions)
        await engine.forget_prefixes()

    asyncio.run(play())


def _generate(model: Any, prompt_BL: Tensor) -> None:
    output_BL = model.generate(
        prompt_BL,
        attention_mask=torch.ones_like(prompt_BL),
        max_new_tokens=NEW_TOKENS,
        do_sample=True,
        top_k=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert output_BL.shape[1] == PROMPT_TOKENS + NEW_TOKENS


if __name__ == "__main__":
    for line in figures():
        print(json.dumps(line))
