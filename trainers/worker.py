"""Owns model and optimizer: scores samples and takes optimizer steps. The same class serves every placement.

Shapes: T packed tokens of one micro-batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentenv.errors import UsageError
from agentenv.seeds import derive_seed
from agentenv.trainers.config import AlgorithmConfig
from agentenv.trainers.correction import Correction, correct, mismatch_metrics
from agentenv.trainers.losses import (
    Denominators,
    MetricSums,
    active_tokens,
    count_denominators,
    mean_metrics,
    packed_loss,
)
from agentenv.trainers.model import PackedModel, TokenScores, named_weights
from agentenv.trainers.optimizer import OptimizerConfig, learning_rate, make_optimizer
from agentenv.trainers.packing import PackedBatch, micro_batches, pack
from agentenv.trainers.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePlan:
    """How a batch of samples becomes optimizer steps.

    Attributes:
        num_epochs: passes over the batch.
        num_mini_batches: optimizer steps of one pass.
        token_budget: tokens of one forward and backward pass.
        temperature: at which the samples were drawn; log-probs are taken at the same one.
        num_steps: optimizer steps of the whole phase, for the schedule.
        seed: shuffles mini-batches; (seed, epoch) names the order.
        version: weight version before the update.
    """

    num_epochs: int = 1
    num_mini_batches: int = 1
    token_budget: int
    temperature: float = 1.0
    num_steps: int
    seed: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """A micro-batch with what is known before the first backward pass."""

    batch: PackedBatch
    old_logprob_T: Tensor | None
    weight_T: Tensor | None
    is_kept_T: Tensor | None


class Worker:
    """Trains one model.

    Args:
        model: the policy.
        optimizer: its optimizer's configuration.
        algorithm: loss and correction.
        reference: the frozen policy that a KL penalty pulls towards.

    Raises:
        UsageError: a KL penalty without a reference.
    """

    def __init__(
        self,
        model: PackedModel,
        *,
        optimizer: OptimizerConfig,
        algorithm: AlgorithmConfig,
        reference: PackedModel | None = None,
    ) -> None:
        if algorithm.loss.kl_coefficient and reference is None:
            raise UsageError(f"kl_coefficient is {algorithm.loss.kl_coefficient}, but there is no reference policy")
        self.model = model
        self.reference = reference if algorithm.loss.kl_coefficient else None
        self.algorithm = algorithm
        self.optimizer_config = optimizer
        self.optimizer = make_optimizer(model, optimizer)
        self.optimizer_steps = 0
        self.device = next(model.parameters()).device

    def update(self, samples: Sequence[Sample], *, plan: UpdatePlan) -> dict[str, float]:
        """Train on a batch and return its metrics.

        A batch without a token to learn from is skipped and says so in `skipped`; a step whose gradient is not finite
        is not taken and counted in `non_finite_steps`.
        """
        started = time.perf_counter()
        useful = [sample for sample in samples if sample.policy_weight_T.any() or sample.cross_entropy_weight_T.any()]
        if not useful:
            return {"skipped": 1.0}
        # scored once, before the first update: later mini-batches and epochs keep the same anchor and the same mask
        old = self._old_logprobs(useful, plan=plan)
        sums: list[MetricSums] = []
        norms: list[float] = []
        mismatch: dict[str, float] = {}
        for epoch in range(plan.num_epochs):
            for mini_batch in _mini_batches(useful, plan=plan, epoch=epoch):
                scored = [
                    self._scored(part, old=old) for part in self._packs(mini_batch, token_budget=plan.token_budget)
                ]
                logprobs, norm = self._step(scored, plan=plan, sums=sums)
                norms.append(norm)
                if not mismatch:
                    mismatch = self._mismatch(scored, logprobs, plan=plan)
        finite = [norm for norm in norms if math.isfinite(norm)]
        return {
            **mean_metrics(sums),
            **{f"mismatch/{name}": value for name, value in mismatch.items()},
            "grad_norm": sum(finite) / len(finite) if finite else math.nan,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "non_finite_steps": float(len(norms) - len(finite)),
            "tokens": float(sum(map(len, useful))),
            "skipped": 0.0,
            "update_s": time.perf_counter() - started,
        }

    def logprobs(self, samples: Sequence[Sample], *, token_budget: int, temperature: float = 1.0) -> dict[str, Tensor]:
        """Score samples without gradient: sample id -> log-prob per token, float32[T], 0 where nothing was asked."""
        out: dict[str, Tensor] = {}
        for part in self._packs(samples, token_budget=token_budget):
            with torch.no_grad():
                scored = self._forward(part, temperature=temperature)
            bounds = part.cu_seqlens_C.tolist()
            for index, sample_id in enumerate(part.sample_ids):
                out[sample_id] = scored.logprob_T[bounds[index] : bounds[index + 1]].cpu()
        return out

    def weights(self) -> Mapping[str, Tensor]:
        """Return the parameters by name, by reference."""
        return named_weights(self.model)

    def _old_logprobs(self, samples: Sequence[Sample], *, plan: UpdatePlan) -> dict[str, Tensor]:
        """Take the no-grad pass where the correction needs one before denominators are counted."""
        has_policy = any(sample.policy_weight_T.any() for sample in samples)
        if not self.algorithm.correction.needs_old_logprob or not has_policy:
            return {}
        return self.logprobs(samples, token_budget=plan.token_budget, temperature=plan.temperature)

    def _scored(self, batch: PackedBatch, *, old: Mapping[str, Tensor]) -> _Scored:
        if not old:
            return _Scored(batch=batch, old_logprob_T=None, weight_T=None, is_kept_T=None)
        logprob_T = torch.cat([old[sample_id] for sample_id in batch.sample_ids]).to(self.device)
        correction = self._correct(batch, logprob_T)
        is_decoupled = self.algorithm.correction.mode == "decoupled"
        return _Scored(
            batch=batch,
            old_logprob_T=logprob_T if is_decoupled else None,
            weight_T=correction.weight_T if is_decoupled else None,
            is_kept_T=correction.is_kept_T,
        )

    def _reference_logprob(self, batch: PackedBatch, *, temperature: float) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            return self._forward(batch, temperature=temperature, model=self.reference).logprob_T

    def _forward(
        self, batch: PackedBatch, *, temperature: float, with_entropy: bool = False, model: PackedModel | None = None
    ) -> TokenScores:
        return (model or self.model).forward_logprobs(
            batch.token_ids_T,
            cu_seqlens_C=batch.cu_seqlens_C,
            position_T=batch.position_T,
            is_scored_T=_needed(batch),
            temperature=temperature,
            with_entropy=with_entropy,
        )

    def _correct(self, batch: PackedBatch, logprob_T: Tensor) -> Correction:
        return correct(
            logprob_T,
            batch.behaviour_logprob_T,
            is_active_T=active_tokens(batch).policy_T,
            sequence_T=batch.sequence_T,
            num_sequences=batch.num_sequences,
            config=self.algorithm.correction,
        )

    def _packs(self, samples: Sequence[Sample], *, token_budget: int) -> list[PackedBatch]:
        return [pack(part).to(self.device) for part in micro_batches(samples, token_budget=token_budget)]

    def _step(
        self, scored: Sequence[_Scored], *, plan: UpdatePlan, sums: list[MetricSums]
    ) -> tuple[list[Tensor], float]:
        """Take one optimizer step; returns the log-probs per micro-batch and the gradient norm before clipping."""
        denominators = sum((count_denominators(s.batch, is_kept_T=s.is_kept_T) for s in scored), Denominators())
        logprobs: list[Tensor] = []
        for part in scored:
            loss, metrics, logprob_T = self._loss(part, plan=plan, denominators=denominators)
            loss.backward()
            sums.append(metrics)
            logprobs.append(logprob_T)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer_config.max_grad_norm)
        rate = learning_rate(self.optimizer_config, step=self.optimizer_steps, num_steps=plan.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        value = float(norm)
        if math.isfinite(value):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_steps += 1
        return logprobs, value

    def _loss(
        self, part: _Scored, *, plan: UpdatePlan, denominators: Denominators
    ) -> tuple[Tensor, MetricSums, Tensor]:
        batch = part.batch
        out = self._forward(batch, temperature=plan.temperature, with_entropy=_has_policy(batch))
        weight_T = part.weight_T
        if self.algorithm.correction.mode == "bypass":
            weight_T = self._correct(batch, out.logprob_T.detach()).weight_T
        loss, metrics = packed_loss(
            batch,
            logprob_T=out.logprob_T,
            denominators=denominators,
            config=self.algorithm.loss,
            old_logprob_T=part.old_logprob_T,
            weight_T=weight_T,
            is_kept_T=part.is_kept_T,
            entropy_T=out.entropy_T,
            ref_logprob_T=self._reference_logprob(batch, temperature=plan.temperature),
        )
        return loss, metrics, out.logprob_T.detach()

    def _mismatch(self, scored: Sequence[_Scored], logprobs: Sequence[Tensor], *, plan: UpdatePlan) -> dict[str, float]:
        """Compare the trainer's log-probs with the engine's on the first mini-batch, before any update."""
        batches = [part.batch for part in scored]
        offsets = [0]
        for batch in batches:
            offsets.append(offsets[-1] + batch.num_sequences)
        kept = [torch.ones_like(p.batch.is_sampled_T) if p.is_kept_T is None else p.is_kept_T for p in scored]
        return mismatch_metrics(
            torch.cat(list(logprobs)),
            torch.cat([b.behaviour_logprob_T for b in batches]),
            is_active_T=torch.cat([b.policy_weight_T != 0 for b in batches]),
            is_kept_T=torch.cat(kept),
            sequence_T=torch.cat([b.sequence_T + start for b, start in zip(batches, offsets, strict=False)]),
            num_sequences=offsets[-1],
            advantage_T=torch.cat([b.advantage_T for b in batches]),
            version_T=torch.cat([b.version_T for b in batches]),
            current_version=plan.version,
        )


def _needed(batch: PackedBatch) -> Tensor:
    """Return bool[T]: tokens whose log-prob enters some loss."""
    return (batch.policy_weight_T != 0) | (batch.cross_entropy_weight_T != 0) | (batch.kl_weight_T != 0)


def _has_policy(batch: PackedBatch) -> bool:
    return bool((batch.policy_weight_T != 0).any())


def _mini_batches(samples: Sequence[Sample], *, plan: UpdatePlan, epoch: int) -> list[list[Sample]]:
    """Cut a batch into mini-batches of equal size, in an order named by (seed, epoch)."""
    if plan.num_mini_batches == 1:
        return [list(samples)]
    generator = torch.Generator().manual_seed(derive_seed(plan.seed, "mini-batches", epoch))
    order = torch.randperm(len(samples), generator=generator).tolist()
    size = math.ceil(len(order) / plan.num_mini_batches)
    return [[samples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
