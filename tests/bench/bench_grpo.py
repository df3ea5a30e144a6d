"""A whole GRPO step on one CPU thread, generation, log-probs, backward and optimizer, in real tokens per CPU-second.

The step of `grpo_workload`, beside rates of TRL 1.16. Those were taken on another machine, so they are no target here;
`against_trl` runs both in one run, and has one.
`python -m tests.bench.bench_grpo` prints one JSON line per figure.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.protocol import Completion, SamplingParams
from agentenv.trainers.config import AlgorithmConfig
from agentenv.trainers.credit import grpo
from agentenv.trainers.losses import LossConfig
from agentenv.trainers.model import PackedModel
from agentenv.trainers.optimizer import OptimizerConfig
from agentenv.trainers.sample import Sample
from agentenv.trainers.worker import UpdatePlan, Worker
from tests.bench.bench_train import bench_model
from tests.bench.grpo_workload import GROUP_SIZE, PROMPT_TOKENS, Workload, workload
from tests.bench.measure import figure

TRL_STEP, TRL_TRAINING = 878.0, 1853.0
"""Real tokens per CPU-second of TRL 1.16 in float32: the whole step, and its training part alone."""
DTYPES = (torch.float32, torch.bfloat16)
NUM_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU-seconds of the two halves of a step."""

    generation_s: float
    training_s: float

    @property
    def step_s(self) -> float:
        """Of the whole step."""
        return self.generation_s + self.training_s


def figures() -> list[dict[str, object]]:
    """Measure and return the figures, each with its target."""
    torch.set_num_threads(1)
    work = workload()
    lines: list[dict[str, object]] = []
    for dtype in DTYPES:
        cost = cheapest(work, dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        step, training = work.num_tokens / cost.step_s, work.num_tokens / cost.training_s
        lines += [
            figure(f"grpo_step_{name}", step, unit="real tokens/CPU-s"),
            figure(f"grpo_training_{name}", training, unit="real tokens/CPU-s"),
            figure(f"grpo_step_{name}_over_trl", step / TRL_STEP, unit="x"),
            figure(f"grpo_training_{name}_over_trl", training / TRL_TRAINING, unit="x"),
        ]
    return lines


def cheapest(work: Workload, *, dtype: torch.dtype) -> Cost:
    """Return the cheapest of several steps after a warm-up; noise only ever adds."""
    movable: Any = bench_model()
    model = movable.to(dtype)
    worker = Worker(
        PackedModel(model),
        optimizer=OptimizerConfig(learning_rate=1e-6),
        algorithm=AlgorithmConfig(advantage="grpo", loss=LossConfig(policy="ppo_clip")),
    )
    engine = HFEngine(model, config=HFEngineConfig(max_length=1024, max_slots=64))
    costs = [asyncio.run(_step(work, worker=worker, engine=engine, step=step)) for step in range(1 + NUM_STEPS)]
    return min(costs[1:], key=lambda cost: cost.step_s)


async def _step(work: Workload, *, worker: Worker, engine: HFEngine, step: int) -> Cost:
    await engine.forget_prefixes()
    started = time.process_time()
    completions = await asyncio.gather(
        *(
            engine.generate(
                work.prompts[index // GROUP_SIZE],
                SamplingParams(max_tokens=length),
                session_id=f"{step}-{index}",
                deadline_s=600,
            )
            for index, length in enumerate(work.lengths)
        )
    )
    generated = time.process_time()
    samples = _samples(work, completions, step=step)
    metrics = worker.update(samples, plan=UpdatePlan(token_budget=16384, num_steps=100, seed=0, version=0))
    ended = time.process_time()
    assert metrics["tokens"] == work.num_tokens
    return Cost(generation_s=generated - started, training_s=ended - generated)


def _samples(work: Workload, completions: list[Completion], *, step: int) -> list[Sample]:
    reward_B = torch.rand(len(completions), generator=torch.Generator().manual_seed(step))
    group_B = torch.arange(len(completions)) // GROUP_SIZE
    advantage_B = grpo(reward_B, group_B, is_scored_B=torch.ones(len(completions), dtype=torch.bool)).tolist()
    samples = []
    for index, (completion, advantage) in enumerate(zip(completions, advantage_B, strict=True)):
        is_sampled_T = np.arange(PROMPT_TOKENS + len(completion.token_ids)) >= PROMPT_TOKENS
        column_T = is_sampled_T.astype(np.float32)
        logprob_T = np.zeros_like(column_T)
        logprob_T[PROMPT_TOKENS:] = completion.logprobs
        samples.append(
            Sample(
                sample_id=f"{index // GROUP_SIZE}/{index}/0",
                token_ids_T=np.array((*work.prompts[index // GROUP_SIZE], *completion.token_ids), np.int32),
                is_sampled_T=is_sampled_T,
                behaviour_logprob_T=logprob_T,
                version_T=np.where(is_sampled_T, 0, -1).astype(np.int32),
                turn_T=np.where(is_sampled_T, 0, -1).astype(np.int32),
                advantage_T=column_T * np.float32(advantage),
                policy_weight_T=column_T,
                cross_entropy_weight_T=np.zeros_like(column_T),
                kl_weight_T=np.zeros_like(column_T),
            )
        )
    return samples


if __name__ == "__main__":
    for line in figures():
        print(json.dumps(line))
