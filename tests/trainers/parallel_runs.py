"""Updates of a small model, by one process or by several: what the tests of parallel training compare."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed

from agentenv.trainers.config import AlgorithmConfig
from agentenv.trainers.correction import preset
from agentenv.trainers.losses import LossConfig
from agentenv.trainers.model import PackedModel
from agentenv.trainers.optimizer import OptimizerConfig
from agentenv.trainers.parallel import ParallelConfig, lay_out_ranks, spread
from agentenv.trainers.sample import Sample
from agentenv.trainers.tiny import make_tiny_model
from agentenv.trainers.worker import UpdatePlan, Worker
from tests.trainers.samples import policy_sample

PLAIN = AlgorithmConfig(correction=preset("none"), loss=LossConfig(policy="ppo_clip"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to take three optimizer steps."""

    parallel: dict[str, Any] = field(default_factory=dict)
    algorithm: AlgorithmConfig = PLAIN
    token_budget: int = 10_000
    num_epochs: int = 1
    num_mini_batches: int = 1
    lengths: tuple[int, ...] = (8, 11, 14, 17, 20, 23)
    bad_sample: int | None = None
    dtype: torch.dtype = torch.float64
    num_updates: int = 3
    max_grad_norm: float = 1.0

    def samples(self) -> list[Sample]:
        """Return samples of uneven lengths; one may have an advantage that is not a number."""
        signs = [float("nan") if i == self.bad_sample else (-1.0) ** i for i in range(len(self.lengths))]
        return [
            policy_sample(f"g/{i}/0", seed=i, length=length, advantage=sign, mu_shift=0.02 * i)
            for i, (length, sign) in enumerate(zip(self.lengths, signs, strict=True))
        ]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an update leaves.

    Attributes:
        metrics: of every update.
        weights: after the last one; empty on all ranks but the first.
        logprobs: of all samples before the first update.
        dtypes: of parameters and optimizer states.
    """

    metrics: list[dict[str, float]]
    weights: dict[str, torch.Tensor]
    logprobs: dict[str, torch.Tensor]
    dtypes: set[torch.dtype]


def small_worker(case: Case, *, seed: int = 1) -> Worker:
    """Return a worker, spread over the process group where there is one."""
    config = ParallelConfig.model_validate(case.parallel)
    model, reference = _small_model(case, seed=seed), None
    if case.algorithm.loss.kl_coefficient:
        reference = _small_model(case, seed=9)
    ranks = lay_out_ranks(config, device=torch.device("cpu")) if distributed.is_initialized() else None
    for one in (model, reference):
        if one is not None:
            spread(one, config=config, ranks=ranks)
    return Worker(
        model,
        optimizer=OptimizerConfig(learning_rate=1e-2, max_grad_norm=case.max_grad_norm),
        algorithm=case.algorithm,
        reference=reference,
        ranks=ranks,
    )


def outcome_of(case: Case) -> Outcome:
    """Score the samples, take the updates, and gather what they leave."""
    warnings.simplefilter("ignore")
    worker = small_worker(case)
    samples = case.samples()
    logprobs = worker.logprobs(samples, token_budget=case.token_budget)
    metrics = [worker.update(samples, plan=plan_of(case)) for _ in range(case.num_updates)]
    return Outcome(metrics=metrics, weights=dict(worker.weights()), logprobs=logprobs, dtypes=_dtypes(worker))


def outcomes_of(cases: dict[str, Case]) -> dict[str, Outcome]:
    """Return the outcome of every case, by name."""
    return {name: outcome_of(case) for name, case in cases.items()}


def plan_of(case: Case) -> UpdatePlan:
    """Return the plan of each of a case's updates."""
    return UpdatePlan(
        token_budget=case.token_budget,
        num_epochs=case.num_epochs,
        num_mini_batches=case.num_mini_batches,
        num_steps=10,
        seed=0,
        version=0,
    )


def _small_model(case: Case, *, seed: int) -> PackedModel:
    causal_lm = make_tiny_model(40, seed=seed, hidden_size=32, num_layers=2, num_heads=4)
    return PackedModel(causal_lm).to(case.dtype)


def _dtypes(worker: Worker) -> set[torch.dtype]:
    states = [value for state in worker.optimizer.state.values() for name, value in state.items() if name != "step"]
    return {tensor.dtype for tensor in [*worker.model.parameters(), *states]}
