"""Policy, value, cross-entropy, KL and entropy losses on packed batches, with denominators of the whole global batch.

Shapes: T packed tokens, B sequences. mu sampled the tokens, pi_old anchors the ratio, pi is being trained, and
r = pi / pi_old. In bypass mode pi_old is mu.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from agentenv.config import Config
from agentenv.errors import UsageError
from agentenv.trainers.correction import log_ratio
from agentenv.trainers.critic import CriticConfig
from agentenv.trainers.packing import PackedBatch, segment_sum

PolicyLossName = Literal["ppo_clip", "dppo_tv"]
KLName = Literal["k1", "k2", "k3"]
AggregationName = Literal["token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm"]
MetricSums = dict[str, Tensor]
"""Metric name to float64[2]: a sum over tokens and the number of tokens. Add them over micro-batches and ranks."""


class LossConfig(Config):
    """How the columns of a batch become one number."""

    dual_clip: ClassVar[float | None] = 3.0
    """ppo_clip bounds the loss of a negative advantage at this ratio; None is off."""

    policy: PolicyLossName = "dppo_tv"
    """Policy loss."""
    clip_low: float = Field(default=0.2, ge=0, le=1)
    """ppo_clip bounds the ratio below by 1 - clip_low."""
    clip_high: float = Field(default=0.28, ge=0)
    """ppo_clip bounds the ratio above by 1 + clip_high; 0.2 and 0.28 are the range [0.8, 1.28]."""
    tv_limit: float = Field(default=0.2, ge=0)
    """Trust region (delta) of dppo_tv, a difference of probabilities."""
    log_ratio_penalty: float = Field(default=1e-3, ge=0)
    """Weight (tau) of the squared log ratio in dppo_tv."""
    aggregation: AggregationName = "token_mean"
    """How token losses become one number; the same for every component."""
    length_norm: int | None = Field(default=None, ge=1)
    """Constant number of tokens that seq_mean_token_sum_norm divides by."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference policy; 0 needs no reference."""
    kl_estimator: KLName = "k3"
    """Estimator of that KL. As a loss, the expected gradient of k1 is 0, and that of k2 is the gradient of the KL."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus on policy tokens."""

    @model_validator(mode="after")
    def _length_norm_goes_with_its_aggregation(self) -> LossConfig:
        if (self.aggregation == "seq_mean_token_sum_norm") != (self.length_norm is not None):
            raise ValueError(
                f"length_norm is {self.length_norm} with aggregation {self.aggregation!r}; give length_norm (a number "
                "of tokens, e.g. the longest generation allowed) with 'seq_mean_token_sum_norm' and with no other"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveTokens:
    """Which tokens enter which component; bool[T] each."""

    policy_T: Tensor
    cross_entropy_T: Tensor
    kl_T: Tensor


def active_tokens(batch: PackedBatch, *, is_kept_T: Tensor | None = None) -> ActiveTokens:
    """Return the tokens with a weight; those of policy and KL must also be kept and have a finite log mu.

    Args:
        batch: the packed batch.
        is_kept_T: bool[T]; the rejection mask of `Correction`; None keeps everything.
    """
    is_usable_T = batch.behaviour_logprob_T.isfinite()
    if is_kept_T is not None:
        is_usable_T = is_usable_T & is_kept_T
    return ActiveTokens(
        policy_T=(batch.policy_weight_T != 0) & is_usable_T,
        cross_entropy_T=batch.cross_entropy_weight_T != 0,
        kl_T=(batch.kl_weight_T != 0) & is_usable_T,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Denominators:
    """Tokens and sequences that enter each component of the loss, over the whole global batch.

    Tokens count 1 whatever their weight: half the weight is half the loss. Add the counts of all micro-batches
    and all ranks before the first backward pass. Where gradients are *averaged* over ranks, the loss must be
    multiplied by their number.
    """

    policy_tokens: int = 0
    policy_sequences: int = 0
    cross_entropy_tokens: int = 0
    cross_entropy_sequences: int = 0
    kl_tokens: int = 0
    kl_sequences: int = 0

    def __add__(self, other: Denominators) -> Denominators:
        return Denominators(
            policy_tokens=self.policy_tokens + other.policy_tokens,
            policy_sequences=self.policy_sequences + other.policy_sequences,
            cross_entropy_tokens=self.cross_entropy_tokens + other.cross_entropy_tokens,
            cross_entropy_sequences=self.cross_entropy_sequences + other.cross_entropy_sequences,
            kl_tokens=self.kl_tokens + other.kl_tokens,
            kl_sequences=self.kl_sequences + other.kl_sequences,
        )


def count_denominators(batch: PackedBatch, *, is_kept_T: Tensor | None = None) -> Denominators:
    """Count one micro-batch, with rejected tokens left out; see `Denominators`."""
    active = active_tokens(batch, is_kept_T=is_kept_T)

    def tokens_and_sequences(is_active_T: Tensor) -> tuple[int, int]:
        return int(is_active_T.sum()), len(batch.sequence_T[is_active_T].unique_consecutive())

    policy, cross_entropy, kl = map(tokens_and_sequences, (active.policy_T, active.cross_entropy_T, active.kl_T))
    return Denominators(
        policy_tokens=policy[0],
        policy_sequences=policy[1],
        cross_entropy_tokens=cross_entropy[0],
        cross_entropy_sequences=cross_entropy[1],
        kl_tokens=kl[0],
        kl_sequences=kl[1],
    )


def packed_loss(
    batch: PackedBatch,
    *,
    logprob_T: Tensor,
    denominators: Denominators,
    config: LossConfig,
    old_logprob_T: Tensor | None = None,
    weight_T: Tensor | None = None,
    is_kept_T: Tensor | None = None,
    entropy_T: Tensor | None = None,
    ref_logprob_T: Tensor | None = None,
    value_T: Tensor | None = None,
    critic: CriticConfig | None = None,
) -> tuple[Tensor, MetricSums]:
    """Return the micro-batch's share of the loss; the shares of all micro-batches add up to the loss of the step.

    Args:
        batch: the micro-batch.
        logprob_T: float[T]; log pi with gradient; anything finite on tokens without a weight.
        denominators: counts of the whole global batch, with the same masks.
        config: which losses.
        old_logprob_T: float[T]; log pi_old of the no-grad pass (decoupled); None is bypass: log mu takes its place.
        weight_T: float[T]; factor of the policy loss from `Correction`; None is 1.
        is_kept_T: bool[T]; rejection mask from `Correction`; None keeps everything.
        entropy_T: float[T]; entropy of pi, with gradient where there is an entropy bonus.
        ref_logprob_T: float[T]; log-probs of the reference policy.
        value_T: float[T]; the critic's values, with gradient; None without a critic.
        critic: clip and weight of the value loss, which runs over the tokens of the policy loss; goes with `value_T`.

    Returns:
        A scalar with gradient, and metrics as sums with their counts; `mean_metrics` averages them.

    Raises:
        UsageError: a coefficient asks for a column that was not given.
    """
    if config.kl_coefficient and ref_logprob_T is None:
        raise UsageError(f"kl_coefficient is {config.kl_coefficient} but there are no reference log-probs; set it to 0")
    if config.entropy_coefficient and entropy_T is None:
        raise UsageError(f"entropy_coefficient is {config.entropy_coefficient} but there is no entropy; set it to 0")
    active = active_tokens(batch, is_kept_T=is_kept_T)
    policy_T, metrics = _policy_term(
        batch, logprob_T, old_logprob_T=old_logprob_T, weight_T=weight_T, is_active_T=active.policy_T, config=config
    )
    if entropy_T is not None:
        metrics["entropy"] = _sums(entropy_T, active.policy_T)
        if config.entropy_coefficient:
            policy_T = policy_T - config.entropy_coefficient * entropy_T
    components = [
        _policy_component(batch, policy_T, active=active, denominators=denominators),
        _cross_entropy_component(batch, -logprob_T, active=active, denominators=denominators),
    ]
    metrics["cross_entropy"] = _sums(-logprob_T, active.cross_entropy_T)
    if ref_logprob_T is not None:
        kl_T = KL_ESTIMATORS[config.kl_estimator](log_ratio(logprob_T, ref_logprob_T, is_active_T=active.kl_T))
        metrics["kl"] = _sums(kl_T, active.kl_T)
        components.append(_kl_component(batch, kl_T * config.kl_coefficient, active=active, denominators=denominators))
    if value_T is not None and critic is not None:
        loss_T, is_clipped_T = value_loss(value_T, old_value_T=batch.value_T, return_T=batch.return_T, clip=critic.clip)
        metrics["value_loss"] = _sums(loss_T, active.policy_T)
        metrics["value_clipped"] = _sums(is_clipped_T.double(), active.policy_T)
        components.append(dataclasses.replace(components[0], value_T=critic.coefficient * loss_T))
    parts = [AGGREGATIONS[config.aggregation](component, batch, config) for component in components]
    return torch.stack(parts).sum(), metrics


def _policy_component(
    batch: PackedBatch, value_T: Tensor, *, active: ActiveTokens, denominators: Denominators
) -> Component:
    return Component(
        value_T=value_T,
        weight_T=batch.policy_weight_T,
        is_active_T=active.policy_T,
        num_tokens=denominators.policy_tokens,
        num_sequences=denominators.policy_sequences,
    )


def _cross_entropy_component(
    batch: PackedBatch, value_T: Tensor, *, active: ActiveTokens, denominators: Denominators
) -> Component:
    return Component(
        value_T=value_T,
        weight_T=batch.cross_entropy_weight_T,
        is_active_T=active.cross_entropy_T,
        num_tokens=denominators.cross_entropy_tokens,
        num_sequences=denominators.cross_entropy_sequences,
    )


def _kl_component(
    batch: PackedBatch, value_T: Tensor, *, active: ActiveTokens, denominators: Denominators
) -> Component:
    return Component(
        value_T=value_T,
        weight_T=batch.kl_weight_T,
        is_active_T=active.kl_T,
        num_tokens=denominators.kl_tokens,
        num_sequences=denominators.kl_sequences,
    )


def mean_metrics(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Average metric sums over micro-batches; a metric without a token is left out."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, sums in part.items():
            total[name] = total[name] + sums if name in total else sums
    return {name: float(sums[0] / sums[1]) for name, sums in total.items() if sums[1] > 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTerms:
    """What a policy loss sees; float[T] each, finite everywhere, 0 on inactive tokens.

    Attributes:
        log_ratio_T: log r = log pi - log pi_old, with gradient.
        log_rho_T: log pi - log mu, with gradient; the same as `log_ratio_T` in bypass mode.
        probability_gap_T: pi - mu, detached.
        advantage_T: A.
        weight_T: importance weight, detached.
    """

    log_ratio_T: Tensor
    log_rho_T: Tensor
    probability_gap_T: Tensor
    advantage_T: Tensor
    weight_T: Tensor


def ppo_clip(terms: PolicyTerms, config: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, -min(r A, clip(r, 1 - low, 1 + high) A), times the importance weight.

    Schulman et al. (arXiv 1707.06347), equation 7; separate bounds from DAPO (arXiv 2503.14476), equation 10; for A < 0
    the objective is at least c A with c = `dual_clip` (Ye et al., arXiv 1912.09729, equation 5).

    Returns:
        Loss per token, float[T], and where each bound stopped the gradient, bool[T].
    """
    ratio_T, advantage_T = terms.log_ratio_T.exp(), terms.advantage_T
    clipped_T = ratio_T.clamp(1 - config.clip_low, 1 + config.clip_high)
    loss_T = -torch.minimum(ratio_T * advantage_T, clipped_T * advantage_T)
    stopped = {
        "clip_low": (advantage_T < 0) & (ratio_T < 1 - config.clip_low),
        "clip_high": (advantage_T > 0) & (ratio_T > 1 + config.clip_high),
    }
    if config.dual_clip is not None:
        bounded_T = torch.minimum(loss_T, -config.dual_clip * advantage_T)
        loss_T = torch.where(advantage_T < 0, bounded_T, loss_T)
        stopped["dual_clip"] = (advantage_T < 0) & (ratio_T > config.dual_clip)
    return terms.weight_T * loss_T, stopped


def dppo_tv(terms: PolicyTerms, config: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Ratio loss -r A with a trust region in total variation, plus tau log^2 rho.

    A token is dropped from the ratio loss where sign(A) (pi - mu) > delta: its probability has already moved that far
    in the direction in which the advantage pushes. It stays in the denominator, like a clipped token, and keeps
    its penalty, which pulls it back.

    Returns:
        Loss per token, float[T], and which tokens were dropped, bool[T].
    """
    is_dropped_T = terms.advantage_T.sign() * terms.probability_gap_T > config.tv_limit
    surrogate_T = -terms.weight_T * terms.log_ratio_T.exp() * terms.advantage_T
    penalty_T = config.log_ratio_penalty * terms.log_rho_T.square()
    return torch.where(is_dropped_T, 0.0, surrogate_T) + penalty_T, {"tv_dropped": is_dropped_T}


def value_loss(value_T: Tensor, *, old_value_T: Tensor, return_T: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Half the squared error of the value, or of the value moved by at most `clip`, whichever is larger.

    The clipping is that of PPO's reference code (Engstrom et al., arXiv 2005.12729, section 2, "value function
    clipping"): a value that has already moved by more than `clip` towards its return has no gradient.

    Returns:
        Loss per token, float[T], and where the clipped error was the larger one, bool[T].
    """
    error_T = (value_T - return_T).square()
    if clip is None:
        return error_T / 2, torch.zeros_like(error_T, dtype=torch.bool)
    clipped_T = old_value_T + (value_T - old_value_T).clamp(-clip, clip)
    clipped_error_T = (clipped_T - return_T).square()
    return torch.maximum(error_T, clipped_error_T) / 2, clipped_error_T > error_T


POLICY_LOSSES: dict[PolicyLossName, Callable[[PolicyTerms, LossConfig], tuple[Tensor, dict[str, Tensor]]]] = {
    "ppo_clip": ppo_clip,
    "dppo_tv": dppo_tv,
}

KL_ESTIMATORS: dict[KLName, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_ratio_T: log_ratio_T,
    "k2": lambda log_ratio_T: log_ratio_T.square() / 2,
    "k3": lambda log_ratio_T: torch.expm1(-log_ratio_T) + log_ratio_T,
}
"""From log pi - log pi_ref on tokens that pi sampled to estimates of KL(pi || pi_ref); http://joschu.net/blog/kl-approx.html.

k1 is unbiased as a number, but as a loss its expected gradient is 0; the expected gradient of k2 is that of the KL.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One component of the loss before it is summed.

    Attributes:
        value_T: float[T]; loss per token, meaningful on active tokens.
        weight_T: float[T]; the batch's weight column.
        is_active_T: bool[T].
        num_tokens: active tokens of the whole global batch.
        num_sequences: sequences with an active token in the whole global batch.
    """

    value_T: Tensor
    weight_T: Tensor
    is_active_T: Tensor
    num_tokens: int
    num_sequences: int

    def weighted(self) -> Tensor:
        """Return float[T]: weighted loss per token, exactly 0 on inactive tokens."""
        return torch.where(self.is_active_T, self.value_T, 0.0) * self.weight_T


def _token_mean(component: Component, batch: PackedBatch, config: LossConfig) -> Tensor:
    return component.weighted().sum() / max(component.num_tokens, 1)


def _seq_mean_token_sum(component: Component, batch: PackedBatch, config: LossConfig) -> Tensor:
    return component.weighted().sum() / max(component.num_sequences, 1)


def _seq_mean_token_mean(component: Component, batch: PackedBatch, config: LossConfig) -> Tensor:
    """A sequence is never split, so its own token count is known inside the micro-batch."""
    is_active_T = component.is_active_T.to(component.value_T.dtype)
    count_B = segment_sum(is_active_T, batch.sequence_T, num_sequences=batch.num_sequences)
    share_T = component.weighted() / count_B.clamp(min=1)[batch.sequence_T]
    return share_T.sum() / max(component.num_sequences, 1)


def _seq_mean_token_sum_norm(component: Component, batch: PackedBatch, config: LossConfig) -> Tensor:
    assert config.length_norm is not None  # the config's validator demands it
    return component.weighted().sum() / (max(component.num_sequences, 1) * config.length_norm)


AGGREGATIONS: dict[AggregationName, Callable[[Component, PackedBatch, LossConfig], Tensor]] = {
    "token_mean": _token_mean,
    "seq_mean_token_sum": _seq_mean_token_sum,
    "seq_mean_token_mean": _seq_mean_token_mean,
    "seq_mean_token_sum_norm": _seq_mean_token_sum_norm,
}


def _policy_term(
    batch: PackedBatch,
    logprob_T: Tensor,
    *,
    old_logprob_T: Tensor | None,
    weight_T: Tensor | None,
    is_active_T: Tensor,
    config: LossConfig,
) -> tuple[Tensor, MetricSums]:
    """Return the policy loss per token, before the batch's weights, and its metrics."""
    log_rho_T = log_ratio(logprob_T, batch.behaviour_logprob_T, is_active_T=is_active_T)
    log_ratio_T = log_rho_T if old_logprob_T is None else log_ratio(logprob_T, old_logprob_T, is_active_T=is_active_T)
    gap_T = logprob_T.detach().exp() - batch.behaviour_logprob_T.exp()
    terms = PolicyTerms(
        log_ratio_T=log_ratio_T,
        log_rho_T=log_rho_T,
        probability_gap_T=torch.where(is_active_T, gap_T, 0.0),
        advantage_T=torch.where(is_active_T, batch.advantage_T, 0.0),
        weight_T=torch.ones_like(log_rho_T.detach()) if weight_T is None else weight_T.detach(),
    )
    loss_T, stopped = POLICY_LOSSES[config.policy](terms, config)
    metrics = {"policy_loss": _sums(loss_T, is_active_T), "ratio": _sums(log_ratio_T.exp(), is_active_T)}
    metrics |= {name: _sums(is_stopped_T.double(), is_active_T) for name, is_stopped_T in stopped.items()}
    return loss_T, metrics


def _sums(value_T: Tensor, is_active_T: Tensor) -> Tensor:
    """Return float64[2]: the sum over active tokens and their number, detached."""
    total = torch.where(is_active_T, value_T.detach(), 0.0).sum(dtype=torch.float64)
    return torch.stack([total, is_active_T.sum().double()])
