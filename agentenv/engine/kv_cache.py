"""Keys and values of all slots, and how one step of mixed prefill and decode attends to them.

A slot is one row of the cache. Running requests always occupy the first slots, so decoding reads plain views.

Shapes: T flat tokens of a step, H query heads, J key heads, G = H / J, D head size, R slots that a decode view spans,
L key places, S segments of a prefill bucket, N their query places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agentenv.engine.attention import (
    Bucket,
    RaggedLayout,
    ScoreRule,
    attend,
    causal_bias,
    length_buckets,
    ragged_layout,
)

IntArray = npt.NDArray[np.int64]

_LENGTH_STEP = 32  # decode views end at a multiple of this: few different shapes, and masks that kernels like


class LayerStore(NamedTuple):
    """One layer's storage: keys and values `[slots, places, J, D]`, and the same memory as `[slots * places, J, D]`."""

    keys: Tensor
    values: Tensor
    flat_keys: Tensor
    flat_values: Tensor


class SlotCache:
    """Key and value storage per layer, made on first use and grown by doubling.

    Args:
        max_slots: rows at most.
        max_length: places per row at most.
    """

    def __init__(self, *, max_slots: int, max_length: int) -> None:
        self._max_slots, self._max_length = max_slots, max_length
        self._num_slots, self._num_places = 0, 0
        self._layers: dict[int, LayerStore] = {}

    @property
    def num_places(self) -> int:
        """Places allocated per slot; (slot, position) is the flat place `slot * num_places + position`."""
        return self._num_places

    def reserve(self, *, num_slots: int, num_places: int) -> None:
        """Make room for `num_slots` rows of `num_places` each; what is stored stays."""
        assert num_slots <= self._max_slots
        assert num_places <= self._max_length
        if num_slots <= self._num_slots and num_places <= self._num_places:
            return
        self._num_slots = _grown(self._num_slots, needed=num_slots, limit=self._max_slots)
        self._num_places = _grown(self._num_places, needed=num_places, limit=self._max_length, least=_LENGTH_STEP)
        for layer, old in self._layers.items():
            self._layers[layer] = _layer_store(self._enlarged(old.keys), self._enlarged(old.values))

    def write(self, layer: int, *, key_TJD: Tensor, value_TJD: Tensor, place_T: Tensor) -> LayerStore:
        """Store new keys and values at flat places and return the layer's whole storage."""
        store = self._layers.get(layer)
        if store is None:
            shape = (self._num_slots, self._num_places)
            # zeros, because a masked place still multiplies its value by 0, and 0 * NaN is NaN
            keys = key_TJD.new_zeros((*shape, *key_TJD.shape[1:]))
            values = value_TJD.new_zeros((*shape, *value_TJD.shape[1:]))
            store = self._layers[layer] = _layer_store(keys, values)
        store.flat_keys.index_copy_(0, place_T, key_TJD)
        store.flat_values.index_copy_(0, place_T, value_TJD)
        return store

    def move(self, source: IntArray, target: IntArray, *, num_places: int) -> None:
        """Copy the first `num_places` places of slots `source` to slots `target`, all at once, so swaps are fine."""
        self.reserve(num_slots=int(max(source.max(), target.max())) + 1, num_places=num_places)
        for store in self._layers.values():
            for tensor in (store.keys, store.values):
                source_index = torch.from_numpy(source).to(tensor.device)
                tensor[torch.from_numpy(target).to(tensor.device), :num_places] = tensor[source_index, :num_places]

    def erase(self, slot: int) -> None:
        """Zero one slot, after something that is not finite may have been written to it."""
        for store in self._layers.values():
            store.keys[slot].zero_()
            store.values[slot].zero_()

    def free(self) -> None:
        """Give all memory back; the cache may be used again."""
        self._layers.clear()
        self._num_slots, self._num_places = 0, 0

    def _enlarged(self, old: Tensor) -> Tensor:
        new = old.new_zeros((self._num_slots, self._num_places, *old.shape[2:]))
        new[: old.shape[0], : old.shape[1]] = old
        return new


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRows:
    """The part of a step where every slot adds one token.

    Attributes:
        num_tokens: how many slots decode; their tokens come first in the step.
        span: R, slots `[0, span)` are attended as one view.
        row_T: int64[num_tokens], which slot of the view each token belongs to; None where it is simply 0, 1, 2, ...
        position_R1: int64[R, 1], each slot's newest position; slots that do not decode now have 0.
        shortest: tokens that the shortest decoding slot attends to.
        longest: tokens that the longest one attends to.
        num_keys: L, places of the view.
        needs_bias: False where every slot sees the whole view.
    """

    num_tokens: int
    span: int
    row_T: Tensor | None
    position_R1: Tensor
    shortest: int
    longest: int

    num_keys: int
    needs_bias: bool

    def following(self, *, num_places: int) -> DecodeRows:
        """Return the same slots one position further."""
        return _decode_rows(
            num_tokens=self.num_tokens,
            span=self.span,
            row_T=self.row_T,
            position_R1=self.position_R1 + 1,
            shortest=self.shortest + 1,
            longest=self.longest + 1,
            num_places=num_places,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillSegments:
    """The part of a step where slots add several tokens each.

    Attributes:
        slot_S: slot of each segment.
        past_S: tokens that the slot already holds.
        layout: segments in buckets; those with and without a past are never in one bucket.
    """

    slot_S: IntArray
    past_S: IntArray
    layout: RaggedLayout

    def is_fresh(self, bucket: Bucket) -> bool:
        """True where the bucket's slots hold nothing yet."""
        return self.past_S[bucket.segments[0]] == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Where the tokens of one forward pass go in the cache and what they attend to; shared by all layers.

    Attributes:
        cache: keys and values.
        place_T: int64[T], flat cache place of each token.
        decode: None where no slot decodes.
        prefill: None where no slot prefills; its tokens follow the decoded ones.
    """

    cache: SlotCache
    place_T: Tensor
    decode: DecodeRows | None
    prefill: PrefillSegments | None
    _biases: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def attend(self, query_THD: Tensor, key_TJD: Tensor, value_TJD: Tensor, *, layer: int, rule: ScoreRule) -> Tensor:
        """Store the step's keys and values and return the attention's output `[T, H, D]`."""
        store = self.cache.write(layer, key_TJD=key_TJD, value_TJD=value_TJD, place_T=self.place_T)
        if self.prefill is None:
            assert self.decode is not None
            return self._attend_decode(query_THD, store, rows=self.decode, rule=rule)
        prefill_THD = [
            self._attend_fresh(bucket, (query_THD, key_TJD, value_TJD), rule=rule)
            if self.prefill.is_fresh(bucket)
            else self._attend_with_past(bucket, query_THD, store=store, rule=rule)
            for bucket in self.prefill.layout.buckets
        ]
        output_THD = torch.cat(prefill_THD).index_select(0, self.prefill.layout.place_T)
        if self.decode is None:
            return output_THD
        decoded_THD = self._attend_decode(query_THD, store, rows=self.decode, rule=rule)
        return torch.cat((decoded_THD, output_THD))

    def following(self) -> StepPlan | None:
        """Return the plan in which the same slots decode one position further; None where that takes a new layout."""
        rows = self.decode
        if self.prefill is not None or rows is None or rows.longest >= self.cache.num_places:
            return None
        return StepPlan(
            cache=self.cache,
            place_T=self.place_T + 1,
            decode=rows.following(num_places=self.cache.num_places),
            prefill=None,
        )

    def _attend_decode(self, query_THD: Tensor, store: LayerStore, *, rows: DecodeRows, rule: ScoreRule) -> Tensor:
        """One query per slot against a view of the cache, so nothing stored is copied."""
        query_RHD = query_THD[: rows.num_tokens] if self.prefill is not None else query_THD
        _, num_heads, head_size = query_RHD.shape
        if rows.row_T is not None:
            # slots that do not decode now take part with a query of 0; copying the cache would cost more
            query_RHD = query_RHD.new_zeros((rows.span, num_heads, head_size)).index_copy_(0, rows.row_T, query_RHD)
        key_RJLD = _view(store.keys, num_slots=rows.span, num_places=rows.num_keys)
        value_RJLD = _view(store.values, num_slots=rows.span, num_places=rows.num_keys)
        # the G heads of a group become G query places, which reads each key once instead of G times
        num_groups = num_heads if rule.sink_H is not None else key_RJLD.shape[1]
        output = attend(
            query_RHD.reshape(rows.span, num_groups, num_heads // num_groups, head_size),
            key_RJLD,
            value_RJLD,
            rule=rule,
            bias_S1NL=self._decode_bias(rows, window=rule.window, dtype=query_RHD.dtype),
        )
        output_RHD = output.reshape(rows.span, num_heads, value_RJLD.shape[-1])
        return output_RHD if rows.row_T is None else output_RHD.index_select(0, rows.row_T)

    def _attend_fresh(self, bucket: Bucket, tensors: tuple[Tensor, Tensor, Tensor], *, rule: ScoreRule) -> Tensor:
        """Segments without a past attend to themselves: queries, keys and values of the flat tokens in."""
        assert self.prefill is not None
        token_P = self.prefill.layout.token_P[bucket.start : bucket.stop]
        num_segments = len(bucket.segments)
        query, key, value = (
            x.index_select(0, token_P).unflatten(0, (num_segments, bucket.width)).transpose(1, 2) for x in tensors
        )
        bias = None
        if rule.window is not None and rule.window < bucket.width:
            bias = self._prefill_bias(bucket, num_keys=bucket.width, window=rule.window, dtype=query.dtype)
        output = attend(query, key, value, rule=rule, bias_S1NL=bias, is_causal=bias is None)
        return output.transpose(1, 2).flatten(0, 1)

    def _attend_with_past(self, bucket: Bucket, query_THD: Tensor, *, store: LayerStore, rule: ScoreRule) -> Tensor:
        """Segments that extend what their slots already hold."""
        assert self.prefill is not None
        token_P = self.prefill.layout.token_P[bucket.start : bucket.stop]
        query = query_THD.index_select(0, token_P).unflatten(0, (len(bucket.segments), bucket.width)).transpose(1, 2)
        num_keys = bucket.width + int(self.prefill.past_S[bucket.segments].max())
        num_keys = min(num_keys, self.cache.num_places)
        slot_S = torch.from_numpy(self.prefill.slot_S[bucket.segments]).to(query_THD.device)
        output = attend(
            query,
            store.keys[slot_S, :num_keys].transpose(1, 2),
            store.values[slot_S, :num_keys].transpose(1, 2),
            rule=rule,
            bias_S1NL=self._prefill_bias(bucket, num_keys=num_keys, window=rule.window, dtype=query.dtype),
        )
        return output.transpose(1, 2).flatten(0, 1)

    def _decode_bias(self, rows: DecodeRows, *, window: int | None, dtype: torch.dtype) -> Tensor | None:
        is_windowed = window is not None and window < rows.num_keys
        if not (rows.needs_bias or is_windowed):
            return None
        key = (-1, window if is_windowed else None)
        if key not in self._biases:
            self._biases[key] = causal_bias(rows.position_R1, num_keys=rows.num_keys, window=key[1], dtype=dtype)
        return self._biases[key]

    def _prefill_bias(self, bucket: Bucket, *, num_keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
        assert self.prefill is not None
        key = (bucket.start, window)
        if key not in self._biases:
            past_S1 = torch.from_numpy(self.prefill.past_S[bucket.segments])[:, None]
            position_SN = (past_S1 + torch.arange(bucket.width)).to(self.place_T.device)
            self._biases[key] = causal_bias(position_SN, num_keys=num_keys, window=window, dtype=dtype)
        return self._biases[key]


def plan_step(
    cache: SlotCache,
    *,
    slot_D: IntArray,
    position_D: IntArray,
    slot_S: IntArray,
    past_S: IntArray,
    new_S: IntArray,
    device: torch.device,
) -> StepPlan:
    """Lay out a step whose flat tokens are the decoding slots' and then the prefill segments'.

    Args:
        cache: already reserved for every position of the step.
        slot_D: slots that decode, ascending.
        position_D: position of each one's token.
        slot_S: slots that prefill.
        past_S: tokens that each already holds.
        new_S: tokens that each adds.
        device: of the cache.
    """
    offset = np.arange(new_S.sum()) - np.repeat(np.cumsum(new_S) - new_S, new_S)
    slot_T = np.concatenate((slot_D, np.repeat(slot_S, new_S)))
    position_T = np.concatenate((position_D, np.repeat(past_S, new_S) + offset))
    return StepPlan(
        cache=cache,
        place_T=torch.from_numpy(slot_T * cache.num_places + position_T).to(device, non_blocking=True),
        decode=_lay_out_decode(slot_D, position_D, num_places=cache.num_places, device=device) if len(slot_D) else None,
        prefill=_prefill_segments(slot_S, past_S=past_S, new_S=new_S, start=len(slot_D), device=device)
        if len(slot_S)
        else None,
    )


def _lay_out_decode(slot_D: IntArray, position_D: IntArray, *, num_places: int, device: torch.device) -> DecodeRows:
    span = int(slot_D[-1]) + 1
    is_whole = span == len(slot_D)
    position_R = position_D
    if not is_whole:
        position_R = np.zeros(span, dtype=np.int64)
        position_R[slot_D] = position_D
    return _decode_rows(
        num_tokens=len(slot_D),
        span=span,
        row_T=None if is_whole else torch.from_numpy(slot_D).to(device, non_blocking=True),
        position_R1=torch.from_numpy(position_R)[:, None].to(device, non_blocking=True),
        shortest=int(position_D.min()) + 1,
        longest=int(position_D.max()) + 1,
        num_places=num_places,
    )


def _decode_rows(
    *,
    num_tokens: int,
    span: int,
    row_T: Tensor | None,
    position_R1: Tensor,
    shortest: int,
    longest: int,
    num_places: int,
) -> DecodeRows:
    needs_bias = shortest != longest or row_T is not None
    rounded = min(-(-longest // _LENGTH_STEP) * _LENGTH_STEP, num_places)
    return DecodeRows(
        num_tokens=num_tokens,
        span=span,
        row_T=row_T,
        position_R1=position_R1,
        shortest=shortest,
        longest=longest,
        num_keys=rounded if needs_bias else longest,
        needs_bias=needs_bias,
    )


def _prefill_segments(
    slot_S: IntArray, *, past_S: IntArray, new_S: IntArray, start: int, device: torch.device
) -> PrefillSegments:
    groups: list[IntArray] = []
    for members in (np.flatnonzero(past_S == 0), np.flatnonzero(past_S)):
        groups.extend(members[bucket] for bucket in length_buckets(new_S[members]))
    start_S = start + np.cumsum(new_S) - new_S
    return PrefillSegments(
        slot_S=slot_S, past_S=past_S, layout=ragged_layout(start_S, new_S, groups=groups, device=device)
    )


def _view(stored: Tensor, *, num_slots: int, num_places: int) -> Tensor:
    """`stored[:num_slots, :num_places]` with heads before places, in one call: this runs per layer and token."""
    _, _, num_heads, head_size = stored.shape
    slot_stride, place_stride, head_stride, _ = stored.stride()
    return stored.as_strided((num_slots, num_heads, num_places, head_size), (slot_stride, head_stride, place_stride, 1))


def _layer_store(keys: Tensor, values: Tensor) -> LayerStore:
    return LayerStore(keys=keys, values=values, flat_keys=keys.flatten(0, 1), flat_values=values.flatten(0, 1))


def _grown(size: int, *, needed: int, limit: int, least: int = 1) -> int:
    """Return `size` doubled until it holds `needed`."""
    if size >= needed:
        return size
    return min(max(2 * size, needed, least), limit)
