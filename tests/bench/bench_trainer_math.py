"""CPU time of the trainer's pure modules on one thread: advantages, importance weights with metrics, scheduling.

Batch: 1024 sequences of 1..2048 tokens, half of them sampled, in alternating stretches like turns and tool replies.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agentenv.trainers.correction import correct, mismatch_metrics, preset
from agentenv.trainers.credit import gae, grpo, to_tokens
from agentenv.trainers.scheduler import Scheduler

NUM_SEQUENCES, MAX_TOKENS, GROUP_SIZE = 1024, 2048, 8
NUM_WARM_UPS, NUM_REPEATS = 5, 21
Figure = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Packed columns; legend in `agentenv.trainers.packing`."""

    sequence_T: Tensor
    is_sampled_T: Tensor
    logprob_T: Tensor
    behaviour_logprob_T: Tensor
    advantage_T: Tensor
    version_T: Tensor


def gae_cpu_ms() -> list[Figure]:
    """Measure token-level GAE with rewards on sampled and on observation tokens."""
    columns = _columns()
    reward_T = torch.randn(len(columns.sequence_T), generator=_generator())
    value_T = torch.randn(len(columns.sequence_T), generator=_generator())

    def advantages() -> object:
        return gae(
            reward_T,
            value_T,
            sequence_T=columns.sequence_T,
            is_sampled_T=columns.is_sampled_T,
            gamma=0.999,
            lam=0.95,
        )

    return [_at_most("gae_cpu_ms", _median_ms(advantages), unit="ms", target=30.0)]


def grpo_cpu_ms() -> list[Figure]:
    """Measure GRPO advantages of trajectories and their broadcast to tokens."""
    columns = _columns()
    reward_B = torch.rand(NUM_SEQUENCES, generator=_generator())
    group_B = torch.arange(NUM_SEQUENCES) // GROUP_SIZE
    is_scored_B = torch.ones(NUM_SEQUENCES, dtype=torch.bool)

    def advantages() -> Tensor:
        advantage_B = grpo(reward_B, group_B, is_scored_B=is_scored_B)
        return to_tokens(advantage_B, columns.sequence_T, is_sampled_T=columns.is_sampled_T)

    return [_at_most("grpo_cpu_ms", _median_ms(advantages), unit="ms", target=2.0)]


def token_tis_cpu_ms() -> list[Figure]:
    """Measure truncated importance weights together with every mismatch metric."""
    columns = _columns()
    config = preset("token_tis", mode="decoupled")

    def correct_and_measure() -> None:
        correction = correct(
            columns.logprob_T,
            columns.behaviour_logprob_T,
            is_active_T=columns.is_sampled_T,
            sequence_T=columns.sequence_T,
            num_sequences=NUM_SEQUENCES,
            config=config,
        )
        mismatch_metrics(
            columns.logprob_T,
            columns.behaviour_logprob_T,
            is_active_T=columns.is_sampled_T,
            is_kept_T=correction.is_kept_T,
            sequence_T=columns.sequence_T,
            num_sequences=NUM_SEQUENCES,
            advantage_T=columns.advantage_T,
            version_T=columns.version_T,
            current_version=4,
        )

    return [_at_most("token_tis_cpu_ms", _median_ms(correct_and_measure), unit="ms", target=60.0)]


def scheduler_transitions_per_s() -> list[Figure]:
    """Measure transitions of a busy scheduler: admissions, results, one failure in eight, steps, weights."""

    def rate() -> float:
        scheduler = Scheduler(max_staleness=2, groups_per_step=16, window=16)
        num_transitions, start = 0, time.process_time()
        while num_transitions < 20_000:
            while (ticket := scheduler.admit()) is not None:
                is_failure = ticket.attempt == 0 and ticket.group % 8 == 0
                (scheduler.fail if is_failure else scheduler.finish)(ticket)
                num_transitions += 2
            batch = scheduler.take()
            assert batch is not None
            scheduler.weights_live(batch.step + 1)
            num_transitions += 3  # the refused admission, the batch, the weights
        return num_transitions / (time.process_time() - start)

    value = statistics.median(rate() for _ in range(NUM_REPEATS))
    return [
        {
            "name": "scheduler_transitions_per_s",
            "value": round(value),
            "unit": "1/s",
            "target": 50_000,
            "ok": value >= 50_000,
        }
    ]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _columns() -> Columns:
    torch.set_num_threads(1)
    generator = _generator()
    length_B = torch.randint(1, MAX_TOKENS + 1, (NUM_SEQUENCES,), generator=generator)
    sequence_T = torch.arange(NUM_SEQUENCES).repeat_interleave(length_B)
    is_sampled_T = torch.arange(len(sequence_T)) % 64 < 32
    behaviour_logprob_T = -torch.rand(len(sequence_T), generator=generator)
    noise_T = 0.05 * torch.randn(len(sequence_T), generator=generator)
    return Columns(
        sequence_T=sequence_T,
        is_sampled_T=is_sampled_T,
        logprob_T=behaviour_logprob_T + noise_T,
        behaviour_logprob_T=behaviour_logprob_T,
        advantage_T=torch.randn(len(sequence_T), generator=generator) * is_sampled_T,
        version_T=torch.where(is_sampled_T, 3, -1),
    )


def _median_ms(work: Callable[[], object]) -> float:
    for _ in range(NUM_WARM_UPS):  # the first calls pay for fresh memory pages
        work()
    times: list[float] = []
    for _ in range(NUM_REPEATS):
        start = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def _at_most(name: str, value: float, *, unit: str, target: float) -> Figure:
    return {"name": name, "value": round(value, 3), "unit": unit, "target": target, "ok": value <= target}


def figures() -> list[Figure]:
    """Measure everything."""
    return [*gae_cpu_ms(), *grpo_cpu_ms(), *token_tis_cpu_ms(), *scheduler_transitions_per_s()]


if __name__ == "__main__":
    for line in figures():
        print(json.dumps(line))
