"""Owns model and optimizer: scores samples and takes optimizer steps. The same class serves every placement.

With several ranks each holds a worker, all are given the same samples and make the same calls, and each takes its share
of the micro-batches. What a call returns is the same on every rank, and the same as one rank alone would return.

Shapes: T packed tokens of one micro-batch.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from agentenv.engine.weights import named_weights as plain_names
from agentenv.errors import UsageError
from agentenv.seeds import derive_seed
from agentenv.trainers.config import AlgorithmConfig
from agentenv.trainers.correction import Correction, correct, mismatch_metrics
from agentenv.trainers.critic import with_advantages
from agentenv.trainers.lora import adapter_off, adapter_weights, lora_of, merged
from agentenv.trainers.losses import (
    Denominators,
    MetricSums,
    active_tokens,
    count_denominators,
    mean_metrics,
    packed_loss,
)
from agentenv.trainers.mfu import update_efficiency
from agentenv.trainers.model import PackedModel, TokenScores
from agentenv.trainers.optimizer import OptimizerConfig, follow_schedule, make_optimizer
from agentenv.trainers.packing import PackedBatch, micro_batches, pack, share_out
from agentenv.trainers.parallel import Ranks, whole
from agentenv.trainers.sample import Sample
from agentenv.trainers.timeline import WORKER, span

T = TypeVar("T")

IDLE = "idle"
"""Sample id of a pass that a rank makes only because the others still work."""


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
        model: the policy, with its critic where the algorithm has one; sharded already where there are ranks.
        optimizer: its optimizer's configuration.
        algorithm: loss and correction.
        reference: the frozen policy that a KL penalty pulls towards, sharded as the policy is; a policy with an adapter
            needs none, it is its own reference with the adapter off.
        ranks: who trains it together; None is this process alone.
        sends_adapter: `weights` returns the adapter's matrices alone, not the merged model.

    Raises:
        UsageError: a KL penalty without a reference, or advantage `gae` without a critic.
    """

    def __init__(
        self,
        model: PackedModel,
        *,
        optimizer: OptimizerConfig,
        algorithm: AlgorithmConfig,
        reference: PackedModel | None = None,
        ranks: Ranks | None = None,
        sends_adapter: bool = False,
    ) -> None:
        if algorithm.advantage == "gae" and model.critic is None:
            raise UsageError("advantage is gae, but the policy has no critic; call add_critic before")
        has_adapter = lora_of(model.causal_lm) is not None
        if algorithm.loss.kl_coefficient and reference is None and not has_adapter:
            raise UsageError(f"kl_coefficient is {algorithm.loss.kl_coefficient}, but there is no reference policy")
        self.model = model
        self.reference = reference if algorithm.loss.kl_coefficient else None
        self.algorithm = algorithm
        self.optimizer_config = optimizer
        self.optimizer = make_optimizer(model, optimizer, critic_learning_rate=algorithm.critic.learning_rate)
        self.sends_adapter = sends_adapter
        self.optimizer_steps = 0
        self.ranks = ranks
        self.device = next(model.parameters()).device if ranks is None else ranks.device

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
        useful, fit = self._credited(useful, plan=plan)
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
        seconds = time.perf_counter() - started
        finite = [norm for norm in norms if math.isfinite(norm)]
        return {
            **mean_metrics(part for parts in self._gather(sums) for part in parts),
            **{f"mismatch/{name}": value for name, value in mismatch.items()},
            **{f"critic/{name}": value for name, value in fit.items()},
            "grad_norm": sum(finite) / len(finite) if finite else math.nan,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "non_finite_steps": float(len(norms) - len(finite)),
            "tokens": float(sum(map(len, useful))),
            "skipped": 0.0,
            "update_s": seconds,
            **self._efficiency(useful, plan=plan, num_micro_batches=len(sums), seconds=seconds),
        }

    def logprobs(self, samples: Sequence[Sample], *, token_budget: int, temperature: float = 1.0) -> dict[str, Tensor]:
        """Score samples without gradient: sample id -> log-prob per token, float32[T], 0 where nothing was asked."""
        return self._each(
            samples, lambda part: self._forward(part, temperature=temperature).logprob_T, token_budget=token_budget
        )

    def values(self, samples: Sequence[Sample], *, token_budget: int) -> dict[str, Tensor]:
        """Ask the critic, without gradient: sample id -> value per token, float[T], 0 at first tokens."""

        def values_of(part: PackedBatch) -> Tensor:
            value_T = self._forward(part, temperature=1.0, with_values=True).value_T
            assert value_T is not None
            return value_T

        return self._each(samples, values_of, token_budget=token_budget)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the whole parameters by name: by reference, or gathered in the host memory of rank 0.

        Every rank must call this. The tensors are gathered one by one, and the other ranks' result is empty. An adapter
        is merged, or alone where `sends_adapter` is set.
        """
        tensors = plain_names(self.model.causal_lm)
        if self.sends_adapter:
            tensors = adapter_weights(tensors)
        if self.ranks is not None:
            tensors = self._gathered(tensors, rank=self.ranks.rank)
        lora = lora_of(self.model.causal_lm)
        return tensors if lora is None or self.sends_adapter else merged(tensors, lora)

    def _gathered(self, tensors: Mapping[str, Tensor], *, rank: int) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            gathered = whole(tensor.to(self.device))
            if rank == 0:
                out[name] = gathered.cpu()
        return out

    def _each(
        self, samples: Sequence[Sample], column: Callable[[PackedBatch], Tensor], *, token_budget: int
    ) -> dict[str, Tensor]:
        """Compute a column without gradient: sample id -> float[T]."""
        out: dict[str, Tensor] = {}
        for part in self._packs(samples, token_budget=token_budget):
            with torch.no_grad():
                column_T = column(part)
            bounds = part.cu_seqlens_C.tolist()
            for index, sample_id in enumerate(part.sample_ids):
                out[sample_id] = column_T[bounds[index] : bounds[index + 1]].cpu()
        out.pop(IDLE, None)
        return {name: row for part in self._gather(out) for name, row in part.items()}

    def _credited(self, samples: list[Sample], *, plan: UpdatePlan) -> tuple[list[Sample], dict[str, float]]:
        """Fill advantages and returns by the critic, where the algorithm has one; see `with_advantages`."""
        if self.algorithm.advantage != "gae" or not any(sample.policy_weight_T.any() for sample in samples):
            return samples, {}
        values = self.values(samples, token_budget=plan.token_budget)
        return with_advantages(samples, values, whiten=self.algorithm.divide_by_std)

    def _efficiency(
        self, samples: Sequence[Sample], *, plan: UpdatePlan, num_micro_batches: int, seconds: float
    ) -> dict[str, float]:
        return update_efficiency(
            self.model.causal_lm,
            lengths=[len(sample) for sample in samples],
            num_scored=sum(sample.num_scored for sample in samples),
            num_passes=plan.num_epochs,
            num_micro_batches=num_micro_batches * (1 if self.ranks is None else self.ranks.num_shares),
            num_ranks=1 if self.ranks is None else self.ranks.world_size,
            token_budget=plan.token_budget,
            seconds=seconds,
        )

    def _old_logprobs(self, samples: Sequence[Sample], *, plan: UpdatePlan) -> dict[str, Tensor]:
        """Take the no-grad pass where the correction needs one before denominators are counted."""
        has_policy = any(sample.policy_weight_T.any() for sample in samples)
        if not self.algorithm.correction.needs_old_logprob or not has_policy:
            return {}
        return self.logprobs(samples, token_budget=plan.token_budget, temperature=plan.temperature)

    def _scored(self, batch: PackedBatch, *, old: Mapping[str, Tensor]) -> _Scored:
        if not old or batch.sample_ids == (IDLE,):
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
        if not self.algorithm.loss.kl_coefficient:
            return None
        with torch.no_grad(), adapter_off(self.model.causal_lm):
            return self._forward(batch, temperature=temperature, model=self.reference).logprob_T

    def _forward(
        self,
        batch: PackedBatch,
        *,
        temperature: float,
        with_entropy: bool = False,
        with_values: bool = False,
        model: PackedModel | None = None,
    ) -> TokenScores:
        return (model or self.model).forward_logprobs(
            batch.token_ids_T,
            cu_seqlens_C=batch.cu_seqlens_C,
            position_T=batch.position_T,
            is_scored_T=_needed(batch),
            temperature=temperature,
            with_entropy=with_entropy,
            with_values=with_values,
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
        """Return this rank's micro-batches; every rank makes as many passes, idle ones where it has less to do."""
        num_shares = 1 if self.ranks is None else self.ranks.num_shares
        parts = micro_batches(samples, token_budget=token_budget, num_shares=num_shares)
        if self.ranks is not None:
            shares = share_out([sum(len(s) ** 2 for s in part) for part in parts], num_shares=num_shares)
            own = [parts[index] for index in shares[self.ranks.share]]
            num_passes = max(map(len, shares))
            parts = own + [[_idle(min(samples, key=len))]] * (num_passes - len(own))
        return [pack(part).to(self.device) for part in parts]

    def _gather(self, value: T) -> list[T]:
        """Return every share's value, in order of shares; all ranks call this."""
        return [value] if self.ranks is None else self.ranks.gather(value)

    def _step(
        self, scored: Sequence[_Scored], *, plan: UpdatePlan, sums: list[MetricSums]
    ) -> tuple[list[Tensor], float]:
        """Take one optimizer step; returns the log-probs per micro-batch and the gradient norm before clipping."""
        own = sum((count_denominators(s.batch, is_kept_T=s.is_kept_T) for s in scored), Denominators())
        denominators = sum(self._gather(own), Denominators())
        logprobs: list[Tensor] = []
        for index, part in enumerate(scored):
            if isinstance(self.model, FSDPModule):
                # gradients add up on each rank, and are exchanged once, in the last backward pass
                self.model.set_requires_gradient_sync(index == len(scored) - 1)
            with span("forward", track=WORKER):
                loss, metrics, logprob_T = self._loss(part, plan=plan, denominators=denominators)
            with span("backward", track=WORKER):
                loss.backward()
            sums.append(metrics if self.ranks is None else {name: value.cpu() for name, value in metrics.items()})
            logprobs.append(logprob_T)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer_config.max_grad_norm)
        follow_schedule(self.optimizer, self.optimizer_config, step=self.optimizer_steps, num_steps=plan.num_steps)
        value = float(whole(norm))
        with span("optimizer", track=WORKER):
            if math.isfinite(value):
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_steps += 1
        return logprobs, value

    def _loss(
        self, part: _Scored, *, plan: UpdatePlan, denominators: Denominators
    ) -> tuple[Tensor, MetricSums, Tensor]:
        batch = part.batch
        with_entropy = _has_policy(batch) or bool(self.algorithm.loss.entropy_coefficient)
        # an idle pass asks for values too: every rank must run the same modules
        with_values = self.algorithm.advantage == "gae"
        out = self._forward(batch, temperature=plan.temperature, with_entropy=with_entropy, with_values=with_values)
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
            value_T=out.value_T,
            critic=self.algorithm.critic,
        )
        return loss, metrics, out.logprob_T.detach()

    def _mismatch(self, scored: Sequence[_Scored], logprobs: Sequence[Tensor], *, plan: UpdatePlan) -> dict[str, float]:
        """Compare the trainer's log-probs with the engine's on the first mini-batch, before any update."""
        own = [_mismatch_columns(part, logprob_T) for part, logprob_T in zip(scored, logprobs, strict=True)]
        if self.ranks is not None:
            own = [{name: column.cpu() for name, column in columns.items()} for columns in own]
        parts = [columns for share in self._gather(own) for columns in share]
        counts = [int(columns["sequence_T"][-1]) + 1 for columns in parts]
        for columns, start in zip(parts, np.cumsum([0, *counts[:-1]]).tolist(), strict=True):
            columns["sequence_T"] = columns["sequence_T"] + start
        together = {name: torch.cat([columns[name] for columns in parts]) for name in parts[0]}
        return mismatch_metrics(
            together.pop("logprob_T"),
            together.pop("behaviour_logprob_T"),
            num_sequences=sum(counts),
            current_version=plan.version,
            **together,
        )


def _mismatch_columns(part: _Scored, logprob_T: Tensor) -> dict[str, Tensor]:
    """Return what `mismatch_metrics` reads of one micro-batch, by the names of its arguments."""
    batch = part.batch
    return {
        "logprob_T": logprob_T,
        "behaviour_logprob_T": batch.behaviour_logprob_T,
        "is_active_T": batch.policy_weight_T != 0,
        "is_kept_T": torch.ones_like(batch.is_sampled_T) if part.is_kept_T is None else part.is_kept_T,
        "sequence_T": batch.sequence_T,
        "advantage_T": batch.advantage_T,
        "version_T": batch.version_T,
    }


def _idle(sample: Sample) -> Sample:
    """Return a sample without a token to learn from, for a pass that adds nothing to the gradient."""
    nothing = np.zeros(len(sample), dtype=np.float32)
    return dataclasses.replace(
        sample,
        sample_id=IDLE,
        policy_weight_T=nothing,
        cross_entropy_weight_T=nothing,
        kl_weight_T=nothing,
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
