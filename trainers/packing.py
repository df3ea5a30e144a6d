"""Packed batches: ragged samples laid end to end, and how samples are cut into micro-batches by a token budget.

Shapes: T packed tokens, B sequences (one per sample), C = B + 1 sequence boundaries. No padding exists.
"""

from __future__ import annotations

import dataclasses
import heapq
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agentenv.errors import UsageError
from agentenv.trainers.sample import Sample


class TokenBudgetWarning(UserWarning):
    """A sample is longer than the token budget and became a micro-batch of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Samples laid end to end; token columns are those of `Sample`.

    Attributes:
        sample_ids: one per sequence.
        token_ids_T: int64[T].
        position_T: int64[T]; counts from 0 in every sequence.
        sequence_T: int64[T]; which sequence a token belongs to, 0..B-1, never decreasing.
        cu_seqlens_C: int32[B + 1]; sequence b covers tokens `[cu_seqlens_C[b], cu_seqlens_C[b + 1])`, the layout
            that variable-length attention kernels take.
        trajectory_B: int64[B]; which trajectory of this batch a sequence comes from. Sequences of one trajectory
            share the part of their `sample_id` before the last slash.
        max_length: tokens of the longest sequence.
        is_sampled_T: bool[T]; True where the policy wrote the token.
        behaviour_logprob_T: float32[T]; log mu.
        version_T: int64[T]; weight version that sampled the token, -1 elsewhere.
        turn_T: int64[T]; assistant turn, -1 elsewhere.
        advantage_T: float32[T].
        policy_weight_T: float32[T].
        cross_entropy_weight_T: float32[T].
        kl_weight_T: float32[T].
        value_T: float32[T]; the critic's values before the update; 0 without a critic.
        return_T: float32[T]; what the critic learns to predict; 0 without a critic.
    """

    sample_ids: tuple[str, ...]
    token_ids_T: Tensor
    position_T: Tensor
    sequence_T: Tensor
    cu_seqlens_C: Tensor
    trajectory_B: Tensor
    max_length: int
    is_sampled_T: Tensor
    behaviour_logprob_T: Tensor
    version_T: Tensor
    turn_T: Tensor
    advantage_T: Tensor
    policy_weight_T: Tensor
    cross_entropy_weight_T: Tensor
    kl_weight_T: Tensor
    value_T: Tensor
    return_T: Tensor

    def __len__(self) -> int:
        return len(self.token_ids_T)

    @property
    def num_sequences(self) -> int:
        """Number of sequences, B."""
        return len(self.sample_ids)

    @property
    def num_trajectories(self) -> int:
        """Number of different trajectories that the sequences come from."""
        return len({trajectory_id(sample_id) for sample_id in self.sample_ids})

    def to(self, device: torch.device | str) -> PackedBatch:
        """Return the batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)


def pack(samples: Sequence[Sample]) -> PackedBatch:
    """Lay samples end to end in the order given.

    Raises:
        UsageError: there is no sample, or one has no token.
    """
    if not samples:
        raise UsageError("cannot pack 0 samples; at least one is needed")
    lengths_B = np.array([len(sample) for sample in samples], dtype=np.int64)
    if not lengths_B.all():
        empty = samples[int(np.argmin(lengths_B))].sample_id
        raise UsageError(f"sample {empty!r} has no token; leave empty samples out before packing")
    boundary_C = np.concatenate([[0], np.cumsum(lengths_B)])
    trajectory_ids = [trajectory_id(sample.sample_id) for sample in samples]
    index_of = {name: index for index, name in enumerate(dict.fromkeys(trajectory_ids))}

    def column(name: str, dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(sample, name) for sample in samples]).astype(dtype, copy=False))

    def critic_column(name: str) -> Tensor:
        columns = [getattr(sample, name) for sample in samples]
        filled = [c if len(c) else np.zeros(n, np.float32) for c, n in zip(columns, lengths_B, strict=True)]
        return torch.from_numpy(np.concatenate(filled).astype(np.float32, copy=False))

    return PackedBatch(
        sample_ids=tuple(sample.sample_id for sample in samples),
        token_ids_T=column("token_ids_T", np.int64),
        position_T=torch.from_numpy(np.arange(boundary_C[-1]) - np.repeat(boundary_C[:-1], lengths_B)),
        sequence_T=torch.from_numpy(np.repeat(np.arange(len(samples)), lengths_B)),
        cu_seqlens_C=torch.from_numpy(boundary_C.astype(np.int32)),
        trajectory_B=torch.tensor([index_of[name] for name in trajectory_ids], dtype=torch.int64),
        max_length=int(lengths_B.max()),
        is_sampled_T=column("is_sampled_T", np.bool_),
        behaviour_logprob_T=column("behaviour_logprob_T", np.float32),
        version_T=column("version_T", np.int64),
        turn_T=column("turn_T", np.int64),
        advantage_T=column("advantage_T", np.float32),
        policy_weight_T=column("policy_weight_T", np.float32),
        cross_entropy_weight_T=column("cross_entropy_weight_T", np.float32),
        kl_weight_T=column("kl_weight_T", np.float32),
        value_T=critic_column("value_T"),
        return_T=critic_column("return_T"),
    )


def micro_batches(samples: Sequence[Sample], *, token_budget: int, num_shares: int = 1) -> list[list[Sample]]:
    """Cut samples into micro-batches of at most `token_budget` tokens, balanced by attention cost.

    The cut depends on the lengths alone, and samples keep their order inside a micro-batch. Losses divide by
    global denominators, so the cut never changes the gradient beyond rounding.

    Args:
        samples: what one optimizer step trains on.
        token_budget: tokens that fit into memory at once.
        num_shares: ranks that take a share each; the number of micro-batches that fit the budget is a multiple of it
            where there are enough samples, so that no rank waits for another.

    Returns:
        Micro-batches, ordered by their first sample. A sample longer than the budget stands alone, and a
        `TokenBudgetWarning` is issued.

    Raises:
        UsageError: the budget is not positive.
    """
    too_long = [sample for sample in samples if len(sample) > token_budget]
    parts = balance([len(sample) for sample in samples], token_budget=token_budget, multiple_of=num_shares)
    if too_long:
        worst = max(too_long, key=len)
        warnings.warn(
            f"{len(too_long)} of {len(samples)} samples are longer than token_budget {token_budget} (the longest, "
            f"{worst.sample_id!r}, has {len(worst)} tokens); each becomes a micro-batch of its own and may not fit "
            "into memory. Raise token_budget or bound the episode length.",
            TokenBudgetWarning,
            stacklevel=2,
        )
    return [[samples[index] for index in part] for part in parts]


def balance(lengths: Sequence[int], *, token_budget: int, multiple_of: int = 1) -> list[list[int]]:
    """Distribute items over as few bins as the budget allows, with even sums of squared lengths.

    Longest item first, into the bin with the least attention cost (sum of L^2) that still has room; one more bin is
    tried where an item fits nowhere. Deterministic.

    Args:
        lengths: tokens per item.
        token_budget: largest sum of lengths of a bin; an item above it gets a bin of its own.
        multiple_of: the number of bins that are filled is one of its multiples; bins left empty are not returned.

    Returns:
        Indices of each bin, ascending; bins are ordered by their first index.

    Raises:
        UsageError: the budget is not positive.
    """
    if token_budget < 1:
        raise UsageError(f"token_budget is {token_budget}; at least 1 token is needed")
    alone = [[index] for index, length in enumerate(lengths) if length > token_budget]
    fitting = [index for index, length in enumerate(lengths) if length <= token_budget]
    fitting.sort(key=lambda index: (-lengths[index], index))
    num_bins = -(-sum(lengths[index] for index in fitting) // (token_budget * multiple_of)) * multiple_of
    bins: list[list[int]] | None = [] if not fitting else None
    while bins is None:
        bins = _fill(fitting, lengths, num_bins=max(num_bins, 1), token_budget=token_budget)
        num_bins += multiple_of
    return sorted(sorted(part) for part in bins + alone if part)


def share_out(costs: Sequence[int], *, num_shares: int) -> list[list[int]]:
    """Spread items over shares with even sums of costs, none with more items than a fair share rounded up.

    The most expensive item goes first, to the cheapest share that still has room. Deterministic.

    Args:
        costs: per item, e.g. the sum of L^2 of a micro-batch.
        num_shares: ranks that take a share each.

    Returns:
        Indices of each share, ascending.
    """
    most = -(-len(costs) // num_shares)
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    totals = [0] * num_shares
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        with_room = (number for number, share in enumerate(shares) if len(share) < most)
        chosen = min(with_room, key=lambda number: (totals[number], number))
        shares[chosen].append(index)
        totals[chosen] += costs[index]
    return [sorted(share) for share in shares]


def _fill(order: list[int], lengths: Sequence[int], *, num_bins: int, token_budget: int) -> list[list[int]] | None:
    """Place items into exactly `num_bins` bins, or return None where one has no room."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    heap = [(0, number, token_budget) for number in range(num_bins)]  # (cost, bin, free tokens)
    for index in order:
        length = lengths[index]
        passed_over: list[tuple[int, int, int]] = []
        while heap and heap[0][2] < length:
            passed_over.append(heapq.heappop(heap))
        if not heap:
            return None
        cost, number, free = heap[0]
        heapq.heapreplace(heap, (cost + length * length, number, free - length))
        bins[number].append(index)
        for entry in passed_over:
            heapq.heappush(heap, entry)
    return bins


def segment_lengths(sequence_T: Tensor, *, num_sequences: int) -> Tensor:
    """Return int64[B], the number of tokens of each sequence.

    Args:
        sequence_T: int64[T], never decreasing; a sequence may be absent.
        num_sequences: B.
    """
    boundary_C = torch.arange(num_sequences + 1, device=sequence_T.device)
    return torch.searchsorted(sequence_T.contiguous(), boundary_C).diff()


def segment_sum(value_T: Tensor, sequence_T: Tensor, *, num_sequences: int) -> Tensor:
    """Return float[B], the sum over each sequence's tokens; an absent sequence has sum 0.

    Sorted segments are summed without atomics, so the result is the same on every run.
    """
    lengths_B = segment_lengths(sequence_T, num_sequences=num_sequences)
    return torch.segment_reduce(value_T, "sum", lengths=lengths_B, initial=0.0, unsafe=True)


def trajectory_id(sample_id: str) -> str:
    """Return which trajectory a sample comes from: its id up to the last slash."""
    head, slash, _ = sample_id.rpartition("/")
    return head if slash else sample_id
