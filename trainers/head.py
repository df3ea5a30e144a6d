"""Log-prob and entropy of chosen tokens from hidden states, without ever holding `[T, V]` logits.

Shapes: N positions that are scored, M hidden size, V vocabulary, C positions of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DEFAULT_CHUNK_BYTES = 16 * 2**20
"""Bytes of one chunk's logits. A few times the processor's cache is fast on a CPU; a GPU likes 16 times as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitRule:
    """What a model does to `hidden @ weight` before the softmax.

    Attributes:
        scale: factor (Cohere, Granite).
        softcap: logits become `softcap * tanh(logit / softcap)`, after the factor (Gemma 2).
    """

    scale: float = 1.0
    softcap: float | None = None


def chunked_logprobs(
    hidden_NM: Tensor,
    *,
    weight_VM: Tensor,
    target_N: Tensor,
    bias_V: Tensor | None = None,
    temperature_N: Tensor | None = None,
    rule: LogitRule | None = None,
    with_entropy: bool = False,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> tuple[Tensor, Tensor | None]:
    """Score one token per position under softmax(logits / temperature).

    Logits live one chunk at a time, in float32 (float64 for float64 inputs); the backward pass computes them again.

    Args:
        hidden_NM: final hidden states, after the model's last norm.
        weight_VM: the output embedding.
        target_N: int64, the token to score at each position.
        bias_V: the output layer's bias.
        temperature_N: per position, > 0, not differentiated; None is 1.
        rule: what the model does to its logits; None is nothing.
        with_entropy: also return the entropy of each distribution, in nats, from the same logits.
        chunk_bytes: upper bound on one chunk's logits.

    Returns:
        log-prob[N] and entropy[N] or None; gradients reach hidden states, weight and bias from both.
    """
    dtype = torch.promote_types(hidden_NM.dtype, torch.float32)
    rows = max(1, chunk_bytes // (weight_VM.shape[0] * dtype.itemsize))
    recipe = _Recipe(rule=LogitRule() if rule is None else rule, rows=rows, dtype=dtype, with_entropy=with_entropy)
    logprob_N, entropy_N = _ChunkedLogprobs.apply(hidden_NM, weight_VM, bias_V, target_N, temperature_N, recipe)
    return logprob_N, entropy_N if with_entropy else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    rule: LogitRule
    rows: int
    dtype: torch.dtype
    with_entropy: bool


class _ChunkedLogprobs(torch.autograd.Function):
    """Chunked forward and recomputed backward of `chunked_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NM: Tensor,
        weight_VM: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        temperature_N: Tensor | None,
        recipe: _Recipe,
    ) -> tuple[Tensor, Tensor]:
        count = hidden_NM.shape[0]
        logprob_N = hidden_NM.new_empty(count, dtype=recipe.dtype)
        normaliser_N = torch.empty_like(logprob_N)
        entropy_N = torch.zeros_like(logprob_N)
        for start in range(0, count, recipe.rows):
            at = slice(start, min(start + recipe.rows, count))
            logit_CV = _logits(hidden_NM[at], weight_VM, bias_V=bias_V, rule=recipe.rule, dtype=recipe.dtype)
            if temperature_N is not None:
                logit_CV /= temperature_N[at, None]
            target_logit_C = logit_CV.gather(1, target_N[at, None])[:, 0]
            best_C1 = logit_CV.amax(-1, keepdim=True)
            weight_CV = logit_CV.sub_(best_C1)
            # entropy = log Z - sum p * logit, where both are relative to the best logit
            exp_CV = weight_CV.exp() if recipe.with_entropy else weight_CV.exp_()
            total_C = exp_CV.sum(-1)
            if recipe.with_entropy:
                entropy_N[at] = total_C.log() - (exp_CV.mul_(weight_CV)).sum(-1) / total_C
            normaliser_N[at] = total_C.log() + best_C1[:, 0]
            logprob_N[at] = target_logit_C - normaliser_N[at]
        ctx.recipe = recipe
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_NM, weight_VM, bias_V, target_N, temperature_N, normaliser_N, entropy_N)
        return logprob_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_NM, weight_VM, bias_V, target_N, temperature_N, normaliser_N, entropy_N = ctx.saved_tensors
        recipe: _Recipe = ctx.recipe
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden_NM = torch.empty_like(hidden_NM) if needs_hidden else None
        # sums over all positions are kept in the wide dtype, or bfloat16 would round them chunk by chunk
        grad_weight_VM = torch.zeros_like(weight_VM, dtype=recipe.dtype) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=recipe.dtype) if needs_bias else None
        for start in range(0, hidden_NM.shape[0], recipe.rows):
            at = slice(start, start + recipe.rows)
            grad_CV = _grad_logits(
                _logits(hidden_NM[at], weight_VM, bias_V=bias_V, rule=recipe.rule, dtype=recipe.dtype),
                target_C=target_N[at],
                temperature_C=None if temperature_N is None else temperature_N[at],
                normaliser_C=normaliser_N[at],
                entropy_C=entropy_N[at],
                grads_C=[None if grad is None else grad[at] for grad in grads],
                rule=recipe.rule,
            )
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0)
            grad_CV = grad_CV.to(weight_VM.dtype)
            if grad_hidden_NM is not None:
                grad_hidden_NM[at] = grad_CV @ weight_VM
            if grad_weight_VM is not None:
                _add_product(grad_weight_VM, grad_CV=grad_CV, hidden_CM=hidden_NM[at])
        grad_weight = None if grad_weight_VM is None else grad_weight_VM.to(weight_VM.dtype)
        grad_bias = None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype)
        return grad_hidden_NM, grad_weight, grad_bias, None, None, None


def _logits(
    hidden_CM: Tensor, weight_VM: Tensor, *, bias_V: Tensor | None, rule: LogitRule, dtype: torch.dtype
) -> Tensor:
    """The model's logits of one chunk, freshly allocated."""
    logit_CV = torch.nn.functional.linear(hidden_CM, weight_VM, bias_V).to(dtype)
    if rule.scale != 1.0:
        logit_CV *= rule.scale
    if rule.softcap is not None:
        logit_CV = logit_CV.div_(rule.softcap).tanh_().mul_(rule.softcap)
    return logit_CV


def _grad_logits(
    logit_CV: Tensor,
    *,
    target_C: Tensor,
    temperature_C: Tensor | None,
    normaliser_C: Tensor,
    entropy_C: Tensor,
    grads_C: list[Tensor | None],
    rule: LogitRule,
) -> Tensor:
    """Gradient with respect to `hidden @ weight`; overwrites `logit_CV`.

    With z the logits over temperature, p their softmax and H its entropy:
    d log p(target) / dz = onehot - p, and dH / dz = -p (log p + H).
    """
    grad_logprob_C, grad_entropy_C = grads_C
    capped_CV = logit_CV.clone() if rule.softcap is not None else None
    if temperature_C is not None:
        logit_CV /= temperature_C[:, None]
    logprob_CV = logit_CV.sub_(normaliser_C[:, None])
    if grad_entropy_C is None:
        grad_CV = logprob_CV.exp_()
        factor_C = torch.zeros_like(normaliser_C) if grad_logprob_C is None else -grad_logprob_C
        grad_CV *= factor_C[:, None]
    else:
        prob_CV = logprob_CV.exp()
        grad_CV = logprob_CV.add_(entropy_C[:, None]).mul_(-grad_entropy_C[:, None])
        if grad_logprob_C is not None:
            grad_CV -= grad_logprob_C[:, None]
        grad_CV *= prob_CV
    if grad_logprob_C is not None:
        grad_CV.scatter_add_(1, target_C[:, None], grad_logprob_C[:, None].to(grad_CV.dtype))
    if temperature_C is not None:
        grad_CV /= temperature_C[:, None]
    if capped_CV is not None and rule.softcap is not None:
        # d (cap tanh(y / cap)) / dy = 1 - tanh^2
        grad_CV *= 1 - (capped_CV / rule.softcap).square_()
    if rule.scale != 1.0:
        grad_CV *= rule.scale
    return grad_CV


def _add_product(total_VM: Tensor, *, grad_CV: Tensor, hidden_CM: Tensor) -> None:
    """total += grad^T hidden, in one kernel where the dtypes agree."""
    if total_VM.dtype == grad_CV.dtype:
        total_VM.addmm_(grad_CV.t(), hidden_CM)
    else:
        total_VM += (grad_CV.t() @ hidden_CM).to(total_VM.dtype)
