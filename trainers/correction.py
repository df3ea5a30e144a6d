"""Corrects for sampling with other weights than those that are trained: importance weights, rejection masks, metrics.

Shapes: T packed tokens, B sequences, N active tokens (those with a policy-gradient weight and a finite log mu).
mu is the policy that sampled, pi the policy under which the trainer scores the tokens, rho = pi / mu. All bounds are on
rho, in this direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from agentenv.config import Config
from agentenv.errors import UsageError, did_you_mean
from agentenv.trainers.packing import segment_sum

CorrectionMode = Literal["bypass", "decoupled"]
CorrectionName = Literal["none", "token_tis", "geo_rs", "k3_rs"]
WeightRule = Literal["none", "truncate"]
MaskRule = Literal["none", "ratio", "k3"]
Level = Literal["token", "sum", "mean"]

LOG_RATIO_LIMIT = 20.0


class CorrectionConfig(Config):
    """One point of the family (weight rule, mask rule, level)."""

    mode: CorrectionMode = "bypass"
    """decoupled scores the batch once before the first update: this pi_old anchors the loss ratio pi / pi_old, and rho
    is pi_old / mu. bypass takes mu for pi_old: the loss ratio itself is rho = pi / mu."""
    weight: WeightRule = "truncate"
    """none, or truncate: min(rho, weight_cap)."""
    weight_level: Level = "token"
    """rho of the token, or exp of the sum or mean of log rho over its sequence."""
    weight_cap: float = Field(default=2.0, gt=0)
    """Upper bound of the weight."""
    mask: MaskRule = "none"
    """none; ratio keeps mask_low <= rho <= mask_high; k3 keeps mask_low <= rho - log rho - 1 <= mask_high."""
    mask_level: Level = "token"
    """The token's own statistic, or the sum or mean over its sequence, which then stays or goes as a whole. Ratios are
    summed and averaged as logarithms."""
    mask_low: float = Field(default=0.0, ge=0)
    """Lower bound, inclusive."""
    mask_high: float | None = Field(default=None, ge=0)
    """Upper bound, inclusive; null is none."""

    @property
    def needs_old_logprob(self) -> bool:
        """True when a no-grad pass must precede the first backward: to anchor the ratio, or to know which tokens count.

        A mask must be known before the global denominators are counted, also in bypass mode.
        """
        return self.mode == "decoupled" or self.mask != "none"


PRESETS: dict[CorrectionName, CorrectionConfig] = {
    "none": CorrectionConfig(weight="none"),
    "token_tis": CorrectionConfig(weight="truncate", weight_level="token", weight_cap=2.0),
    "geo_rs": CorrectionConfig(weight="none", mask="ratio", mask_level="mean", mask_low=0.999, mask_high=1.001),
    "k3_rs": CorrectionConfig(weight="none", mask="k3", mask_level="mean", mask_high=0.01),
}


def preset(name: CorrectionName, *, mode: CorrectionMode = "bypass") -> CorrectionConfig:
    """Return a named point of the family.

    Raises:
        UsageError: there is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"correction is {name!r}; allowed are {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}")
    return PRESETS[name].model_copy(update={"mode": mode})


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What the loss needs.

    Attributes:
        weight_T: float[T], detached; factor of the policy-gradient loss; 1 on inactive tokens.
        is_kept_T: bool[T]; False removes the token from numerator and denominator.
    """

    weight_T: Tensor
    is_kept_T: Tensor


def correct(
    logprob_T: Tensor,
    behaviour_logprob_T: Tensor,
    *,
    is_active_T: Tensor,
    sequence_T: Tensor,
    num_sequences: int,
    config: CorrectionConfig,
) -> Correction:
    """Compute weights and mask; identical log-probs give weights of exactly 1 and keep everything.

    In decoupled mode call it once per step, with the log-probs of the no-grad pass. In bypass mode the weight follows
    pi and is computed in every forward pass; since the loss ratio is rho already, the factor returned is weight / rho,
    so that the token's total importance is the weight that the rule names, never rho squared. A mask is taken from
    the no-grad pass in both modes.

    Args:
        logprob_T: float[T]; log pi (bypass) or log pi_old (decoupled). No gradient flows through it.
        behaviour_logprob_T: float[T]; log mu. Tokens on which it is not finite are inactive.
        is_active_T: bool[T]; tokens with a policy-gradient weight.
        sequence_T: int64[T], never decreasing.
        num_sequences: B.
        config: the point of the family.
    """
    is_active_T = is_active_T & behaviour_logprob_T.isfinite()
    log_rho_T = log_ratio(logprob_T.detach(), behaviour_logprob_T, is_active_T=is_active_T)

    def at_level(value_T: Tensor, level: Level) -> Tensor:
        if level == "token":
            return value_T
        return _over_sequence(
            value_T, level, is_active_T=is_active_T, sequence_T=sequence_T, num_sequences=num_sequences
        )

    weight_T = WEIGHT_RULES[config.weight](at_level(log_rho_T, config.weight_level), config)
    if config.mode == "bypass" and config.weight != "none":
        weight_T = weight_T / log_rho_T.exp()
    weight_T = torch.where(is_active_T, weight_T, 1.0)
    is_kept_T = MASK_RULES[config.mask](log_rho_T, config, at_level)
    return Correction(weight_T=weight_T, is_kept_T=is_kept_T)


def log_ratio(logprob_T: Tensor, other_T: Tensor, *, is_active_T: Tensor) -> Tensor:
    """Return log pi - log other in at least float32, clamped to +-20; 0 on inactive tokens, whatever stands there."""
    difference_T = _wide(logprob_T) - _wide(other_T)
    return torch.where(is_active_T, difference_T, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def mismatch_metrics(
    logprob_T: Tensor,
    behaviour_logprob_T: Tensor,
    *,
    is_active_T: Tensor,
    is_kept_T: Tensor,
    sequence_T: Tensor,
    num_sequences: int,
    advantage_T: Tensor,
    version_T: Tensor,
    current_version: int,
) -> dict[str, float]:
    """Measure how far pi is from mu, before any truncation.

    Call it once per step over the whole batch: a percentile or a correlation cannot be averaged over micro-batches.

    Args:
        logprob_T: float[T]; log pi.
        behaviour_logprob_T: float[T]; log mu.
        is_active_T: bool[T]; tokens with a policy-gradient weight.
        is_kept_T: bool[T]; of `Correction`.
        sequence_T: int64[T], never decreasing.
        num_sequences: B.
        advantage_T: float[T].
        version_T: int[T]; weight version that sampled the token, -1 where unknown.
        current_version: the trainer's version.

    Returns:
        `k1` = mean(-log rho); `k3` = mean(rho - 1 - log rho), both estimates of KL(mu || pi) per token; `chi2_token` =
        mean(rho^2) - 1 and `chi2_sequence`, the same of the sequences' products; `ess` = 1 / mean(w^2) with w = rho /
        mean(rho), in (0, 1]; `rho_min`, `rho_mean`, `rho_p99`, `rho_max`; `log_ppl_difference`, the mean over
        sequences of log perplexity under pi minus under mu; `probability_correlation` (Pearson);
        `dropped_positive` and `dropped_negative`, the fraction of tokens with such an advantage that the mask removes;
        `non_finite`, the fraction of tokens without a finite log mu; `age_oldest` and `age_newest` in versions, where
        versions are known; `k3_fresh`, k3 of the tokens that the current version sampled, which no update explains.
        Empty when no token is active.
    """
    finite_T = is_active_T & behaviour_logprob_T.isfinite()
    index_N = finite_T.nonzero().squeeze(1)
    if len(index_N) == 0:
        return {}

    def active(column_T: Tensor) -> Tensor:
        return column_T.detach().index_select(0, index_N)

    logprob_N = _wide(active(logprob_T))
    behaviour_N = active(behaviour_logprob_T).to(logprob_N.dtype)
    log_rho_N = (logprob_N - behaviour_N).clamp_(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    advantage_N, is_dropped_N = active(advantage_T), ~active(is_kept_T)
    return {
        **_token_metrics(log_rho_N),
        **_sequence_metrics(log_rho_N, active(sequence_T), num_sequences=num_sequences),
        "probability_correlation": _correlation(logprob_N.exp(), behaviour_N.exp()),
        "dropped_positive": _fraction(is_dropped_N, among=advantage_N > 0),
        "dropped_negative": _fraction(is_dropped_N, among=advantage_N < 0),
        "non_finite": 1.0 - len(index_N) / int(is_active_T.sum()),
        **_age_metrics(active(version_T), current_version=current_version),
        **_fresh_metrics(log_rho_N, active(version_T), current_version=current_version),
    }


def _no_weight(statistic_T: Tensor, config: CorrectionConfig) -> Tensor:
    return torch.ones_like(statistic_T)


def _truncated_weight(statistic_T: Tensor, config: CorrectionConfig) -> Tensor:
    return statistic_T.exp().clamp(max=config.weight_cap)


WEIGHT_RULES: dict[WeightRule, Callable[[Tensor, CorrectionConfig], Tensor]] = {
    "none": _no_weight,
    "truncate": _truncated_weight,
}
"""From log rho at the configured level to the weight."""

AtLevel = Callable[[Tensor, Level], Tensor]


def _keep_all(log_rho_T: Tensor, config: CorrectionConfig, at_level: AtLevel) -> Tensor:
    return torch.ones_like(log_rho_T, dtype=torch.bool)


def _keep_ratio(log_rho_T: Tensor, config: CorrectionConfig, at_level: AtLevel) -> Tensor:
    return _within_bounds(at_level(log_rho_T, config.mask_level).exp(), config)


def _keep_k3(log_rho_T: Tensor, config: CorrectionConfig, at_level: AtLevel) -> Tensor:
    return _within_bounds(at_level(_k3(log_rho_T), config.mask_level), config)


MASK_RULES: dict[MaskRule, Callable[[Tensor, CorrectionConfig, AtLevel], Tensor]] = {
    "none": _keep_all,
    "ratio": _keep_ratio,
    "k3": _keep_k3,
}
"""From log rho of the tokens to the tokens that stay."""


def _within_bounds(statistic_T: Tensor, config: CorrectionConfig) -> Tensor:
    high = math.inf if config.mask_high is None else config.mask_high
    return (statistic_T >= config.mask_low) & (statistic_T <= high)


def _k3(log_rho: Tensor) -> Tensor:
    """Return rho - 1 - log rho; `expm1`, because rho - 1 would lose small differences to rounding."""
    return log_rho.expm1() - log_rho


def _over_sequence(
    value_T: Tensor, level: Level, *, is_active_T: Tensor, sequence_T: Tensor, num_sequences: int
) -> Tensor:
    """Return float[T]: the sum or mean of a sequence's active tokens on each of its tokens; inactive values are 0."""
    statistic_B = segment_sum(value_T, sequence_T, num_sequences=num_sequences)
    if level == "mean":
        count_B = segment_sum(is_active_T.to(value_T.dtype), sequence_T, num_sequences=num_sequences)
        statistic_B = statistic_B / count_B.clamp(min=1)
    else:
        statistic_B = statistic_B.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return statistic_B[sequence_T]


def _token_metrics(log_rho_N: Tensor) -> dict[str, float]:
    rho_N = log_rho_N.exp()
    mean, mean_square = float(rho_N.mean()), float(rho_N.square().mean())
    rank = max(1, math.ceil(0.99 * len(rho_N)))
    return {
        "k1": -float(log_rho_N.mean()),
        "k3": float(_k3(log_rho_N).mean()),
        "chi2_token": mean_square - 1.0,
        "ess": mean * mean / mean_square,
        "rho_min": float(rho_N.min()),
        "rho_mean": mean,
        "rho_p99": float(rho_N.kthvalue(rank).values),
        "rho_max": float(rho_N.max()),
    }


def _sequence_metrics(log_rho_N: Tensor, sequence_N: Tensor, *, num_sequences: int) -> dict[str, float]:
    count_B = segment_sum(torch.ones_like(log_rho_N), sequence_N, num_sequences=num_sequences)
    sum_B = segment_sum(log_rho_N, sequence_N, num_sequences=num_sequences)
    sum_B, count_B = sum_B[count_B > 0].double(), count_B[count_B > 0]
    rho_B = sum_B.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return {
        "chi2_sequence": float(rho_B.square().mean()) - 1.0,
        "log_ppl_difference": -float((sum_B / count_B).mean()),
    }


def _fresh_metrics(log_rho_N: Tensor, version_N: Tensor, *, current_version: int) -> dict[str, float]:
    fresh_M = log_rho_N[version_N == current_version]
    return {"k3_fresh": float((fresh_M.exp() - 1 - fresh_M).mean())} if len(fresh_M) else {}


def _age_metrics(version_N: Tensor, *, current_version: int) -> dict[str, float]:
    oldest, newest = int(torch.where(version_N < 0, current_version + 1, version_N).min()), int(version_N.max())
    if newest < 0:
        return {}
    return {"age_oldest": float(current_version - oldest), "age_newest": float(current_version - newest)}


def _correlation(left_N: Tensor, right_N: Tensor) -> float:
    """Pearson correlation; where one side is constant: 1 if both are equal, else 0."""
    left, right = left_N - left_N.mean(), right_N - right_N.mean()
    spread = float(left @ left) * float(right @ right)
    if spread == 0.0:
        return 1.0 if torch.equal(left_N, right_N) else 0.0
    return float(left @ right) / math.sqrt(spread)


def _fraction(is_true_N: Tensor, *, among: Tensor) -> float:
    return int((is_true_N & among).sum()) / max(int(among.sum()), 1)


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
