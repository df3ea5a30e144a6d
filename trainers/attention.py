"""Attention for packed batches: every linear layer sees flat tokens, and only attention knows sequence boundaries.

Shapes: T packed tokens, P padded places (T plus the padding inside attention), S sequences of a bucket, N their places,
H query heads, J key heads, D head size, C = sequences + 1 boundaries.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from agentenv.engine.attention import (
    Bucket,
    RaggedLayout,
    ScoreRule,
    attend,
    causal_bias,
    ragged_layout,
    score_rule,
)
from agentenv.trainers.sequence import SequenceSplit

PACKED_ATTENTION = "agentenv_packed"


def packed_layout(cu_seqlens_C: Tensor) -> RaggedLayout:
    """Sort the sequences of a pack into length buckets.

    Args:
        cu_seqlens_C: boundaries; sequence b covers `[cu_seqlens_C[b], cu_seqlens_C[b + 1])`.
    """
    boundary_C = cu_seqlens_C.cpu().numpy().astype(np.int64)
    return ragged_layout(boundary_C[:-1], np.diff(boundary_C), device=cu_seqlens_C.device)


class _ToPlaces(torch.autograd.Function):
    """Read each padded place's token; padding repeats a token but never sends a gradient back.

    Padding comes last in its sequence: causal attention hides it from every real query, and its own output is not
    read. So its gradient is 0, and the backward pass is a gather of the real places, not a scatter-add.
    """

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, token_P: Tensor, place_T: Tensor) -> Tensor:
        ctx.save_for_backward(place_T)
        return x_T.index_select(0, token_P)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (place_T,) = ctx.saved_tensors
        return grads[0].index_select(0, place_T), None, None


class _ToTokens(torch.autograd.Function):
    """Read each token's padded place; the backward pass fills padding with 0."""

    @staticmethod
    def forward(ctx: Any, x_P: Tensor, place_T: Tensor) -> Tensor:
        ctx.save_for_backward(place_T)
        ctx.num_places = x_P.shape[0]
        return x_P.index_select(0, place_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (place_T,) = ctx.saved_tensors
        grad_T = grads[0]
        return grad_T.new_zeros((ctx.num_places, *grad_T.shape[1:])).index_copy_(0, place_T, grad_T), None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of a pack; the signature is that of transformers' attention functions.

    Args:
        module: the attention module; unused.
        query: `[1, H, T, D]`.
        key: `[1, J, T, D]`.
        value: `[1, J, T, D]`.
        attention_mask: must be None; the layout says it all.
        scaling: factor on the scores.
        **kwargs: `packed_layout` from the model's forward call, what the architecture adds (window, soft cap), and
            `sequence_split` where T are only this rank's tokens of the pack.

    Returns:
        `[1, T, H, D]`, and None for the weights.
    """
    layout: RaggedLayout = kwargs["packed_layout"]
    split: SequenceSplit | None = kwargs.get("sequence_split")
    rule = score_rule(scaling=scaling, **kwargs)
    query_T, key_T, value_T = (x[0].transpose(0, 1) for x in (query, key, value))
    if split is not None:
        num_heads = query_T.shape[1]
        query_T = split.to_heads(query_T)
        key_T, value_T = (split.to_heads(split.repeat_keys(x, num_heads=num_heads)) for x in (key_T, value_T))
        if rule.sink_H is not None:
            rule = dataclasses.replace(rule, sink_H=split.own_heads(rule.sink_H))
    query_P, key_P, value_P = (_ToPlaces.apply(x, layout.token_P, layout.place_T) for x in (query_T, key_T, value_T))
    sizes = [bucket.stop - bucket.start for bucket in layout.buckets]
    parts = zip(layout.buckets, query_P.split(sizes), key_P.split(sizes), value_P.split(sizes), strict=True)
    output_P = torch.cat([_attend_bucket(bucket, *tensors, rule=rule) for bucket, *tensors in parts])
    output_T = _ToTokens.apply(output_P, layout.place_T)
    return (output_T if split is None else split.to_tokens(output_T))[None], None


def _attend_bucket(bucket: Bucket, query_P: Tensor, key_P: Tensor, value_P: Tensor, *, rule: ScoreRule) -> Tensor:
    """Attend within the sequences of one bucket; `[S * N, H, D]` in and out."""
    shape = (len(bucket.segments), bucket.width)
    query_SHND, key_SJND, value_SJND = (x.unflatten(0, shape).transpose(1, 2) for x in (query_P, key_P, value_P))
    bias = None
    if rule.window is not None and rule.window < bucket.width:
        position_SN = torch.arange(bucket.width, device=query_P.device)[None]
        bias = causal_bias(position_SN, num_keys=bucket.width, window=rule.window, dtype=query_P.dtype)
    output = attend(query_SHND, key_SJND, value_SJND, rule=rule, bias_S1NL=bias, is_causal=bias is None)
    return output.transpose(1, 2).flatten(0, 1)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
