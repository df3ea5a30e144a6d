"""Attention over ragged segments: length buckets, and one call for masks, grouped heads, soft caps and sinks.

Shapes: S segments, N query places, L key places, H query heads, J key heads (H is a multiple of J), D head size,
T flat tokens, P padded places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from agentenv.errors import ModelError

IntArray = npt.NDArray[np.int64]

_FILL = 0.85  # a bucket takes segments at least this full, so padding stays under 15 % of attention's work
_SLACK = 8  # and short ones that waste few places in absolute numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRule:
    """How a layer turns queries and keys into attention weights.

    Attributes:
        scale: factor on the scores; None is 1 / sqrt(D).
        window: a query sees the last `window` positions, its own included; None for all.
        softcap: scores become `softcap * tanh(score / softcap)` (Gemma 2).
        sink_H: a learned score per head that takes weight and gives no value (gpt-oss).
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sink_H: Tensor | None = None


def score_rule(*, scaling: float | None, **kwargs: object) -> ScoreRule:
    """Read what a transformers attention module passes to its attention function.

    Raises:
        ModelError: the model adds something to its scores that is not implemented here.
    """
    if kwargs.get("position_bias") is not None:
        raise ModelError(
            "this model adds a learned bias to its attention scores, which neither engine nor trainer supports; "
            "choose a model without relative position bias"
        )
    return ScoreRule(
        scale=scaling,
        window=cast("int | None", kwargs.get("sliding_window")),
        softcap=cast("float | None", kwargs.get("softcap")),
        sink_H=cast("Tensor | None", kwargs.get("s_aux")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Segments of similar length that are attended in one call.

    Attributes:
        segments: int64[S], which segments.
        width: N, the longest of them.
        start: first padded place; the bucket covers `S * width` places.
        stop: one past its last padded place.
    """

    segments: IntArray
    width: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedLayout:
    """How flat tokens are laid into padded buckets and back.

    Attributes:
        buckets: in the order of their padded places.
        token_P: int64[P], the flat token that each padded place reads; padding repeats its segment's last token.
        place_T: int64[T], the padded place of each flat token.
    """

    buckets: tuple[Bucket, ...]
    token_P: Tensor
    place_T: Tensor


def length_buckets(lengths: Sequence[int] | IntArray) -> list[IntArray]:
    """Group segments of similar length; the longest come first.

    Args:
        lengths: tokens per segment.

    Returns:
        Index arrays that together hold every segment once.
    """
    length_S = np.asarray(lengths, dtype=np.int64)
    order_S = np.argsort(-length_S, kind="stable")
    sorted_S = length_S[order_S]
    buckets: list[IntArray] = []
    start = 0
    while start < len(order_S):
        width = int(sorted_S[start])
        shortest = min(math.ceil(width * _FILL), width - _SLACK)
        stop = start + int(np.searchsorted(-sorted_S[start:], -shortest, side="right"))
        buckets.append(order_S[start:stop])
        start = stop
    return buckets


def ragged_layout(
    starts: Sequence[int] | IntArray,
    lengths: Sequence[int] | IntArray,
    *,
    groups: Sequence[IntArray] | None = None,
    device: torch.device,
) -> RaggedLayout:
    """Lay segments into padded buckets.

    Args:
        starts: first flat token of each segment; the segments lie end to end and cover tokens from the first start.
        lengths: tokens per segment, at least 1 each.
        groups: which segments are attended together; by default `length_buckets`.
        device: where the index tensors go.
    """
    start_S, length_S = np.asarray(starts, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
    place_T = np.empty(int(length_S.sum()), dtype=np.int64)
    tokens: list[IntArray] = []
    buckets: list[Bucket] = []
    total = 0
    for segments in length_buckets(length_S) if groups is None else groups:
        width = int(length_S[segments].max())
        offset_N = np.arange(width)
        is_token_SN = offset_N < length_S[segments, None]
        token_SN = start_S[segments, None] + np.minimum(offset_N, length_S[segments, None] - 1)
        place_SN = total + np.arange(token_SN.size).reshape(token_SN.shape)
        place_T[token_SN[is_token_SN] - start_S.min()] = place_SN[is_token_SN]
        tokens.append(token_SN.reshape(-1))
        buckets.append(Bucket(segments=segments, width=width, start=total, stop=total + token_SN.size))
        total += token_SN.size
    return RaggedLayout(
        buckets=tuple(buckets),
        token_P=torch.from_numpy(np.concatenate(tokens)).to(device),
        place_T=torch.from_numpy(place_T).to(device),
    )


def causal_bias(position_SN: Tensor, *, num_keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return the additive mask `[S, 1, N, L]`: 0 where a query may look, -inf elsewhere.

    Args:
        position_SN: each query's position in its segment; key place l has position l.
        num_keys: L.
        window: a query sees the last `window` positions, its own included; None for all.
        dtype: of the attention.
    """
    key_L = torch.arange(num_keys, device=position_SN.device)
    is_hidden_SNL = key_L > position_SN[..., None]
    if window is not None:
        is_hidden_SNL |= key_L <= position_SN[..., None] - window
    bias_SNL = torch.zeros(is_hidden_SNL.shape, dtype=dtype, device=position_SN.device)
    return bias_SNL.masked_fill_(is_hidden_SNL, -math.inf)[:, None]


def attend(
    query_SHND: Tensor,
    key_SJLD: Tensor,
    value_SJLD: Tensor,
    *,
    rule: ScoreRule,
    bias_S1NL: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Attend; the window of `rule` must already be in the bias.

    Args:
        query_SHND: H heads that share the J key heads in groups.
        key_SJLD: keys.
        value_SJLD: values.
        rule: how scores are formed.
        bias_S1NL: additive mask.
        is_causal: query place n sees the key places up to n; only without `bias_S1NL`.

    Returns:
        `[S, H, N, D]`.
    """
    if rule.softcap is None and rule.sink_H is None:
        return functional.scaled_dot_product_attention(
            query_SHND,
            key_SJLD,
            value_SJLD,
            attn_mask=bias_S1NL,
            is_causal=is_causal,
            scale=rule.scale,
            enable_gqa=query_SHND.shape[1] != key_SJLD.shape[1],
        )
    return _attend_written_out(query_SHND, key_SJLD, value_SJLD, rule=rule, bias_S1NL=bias_S1NL, is_causal=is_causal)


def _attend_written_out(
    query_SHND: Tensor,
    key_SJLD: Tensor,
    value_SJLD: Tensor,
    *,
    rule: ScoreRule,
    bias_S1NL: Tensor | None,
    is_causal: bool,
) -> Tensor:
    """Attention with the scores in memory, in float32 or wider, for rules that no fused kernel knows."""
    groups = query_SHND.shape[1] // key_SJLD.shape[1]
    key_SHLD, value_SHLD = (x.repeat_interleave(groups, dim=1) for x in (key_SJLD, value_SJLD))
    scale = query_SHND.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    score_SHNL = query_SHND @ key_SHLD.transpose(-1, -2) * scale
    score_SHNL = score_SHNL.to(torch.promote_types(score_SHNL.dtype, torch.float32))
    if rule.softcap is not None:
        score_SHNL = rule.softcap * torch.tanh(score_SHNL / rule.softcap)
    if is_causal:
        position_SN = torch.arange(query_SHND.shape[2], device=query_SHND.device)[None]
        bias_S1NL = causal_bias(position_SN, num_keys=key_SJLD.shape[2], window=None, dtype=score_SHNL.dtype)
    if bias_S1NL is not None:
        score_SHNL = score_SHNL + bias_S1NL
    if rule.sink_H is not None:
        sink_SHN1 = rule.sink_H[:, None, None].expand(*score_SHNL.shape[:-1], 1)
        score_SHNL = torch.cat((score_SHNL, sink_SHN1.to(score_SHNL.dtype)), dim=-1)
    weight_SHNL = torch.softmax(score_SHNL, dim=-1)[..., : key_SJLD.shape[2]]
    return weight_SHNL.to(value_SHLD.dtype) @ value_SHLD
