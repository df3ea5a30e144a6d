"""Sequence parallelism: the tokens of one pack are split over ranks, and attention trades tokens for heads.

Every layer but attention works on tokens one by one, so a rank keeps its slice of the pack from the embedding to the
log-prob. Around attention, an all-to-all gives each rank all tokens of its share of the heads, and a second one gives
the tokens back (DeepSpeed-Ulysses, Jacobs et al., arXiv 2309.14509, section 3).

Shapes: T packed tokens, K = ceil(T / Q) tokens of one of the Q ranks' slices, H query heads, J key heads, D head size,
N scored tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.nn import functional

from agentenv.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceGroup:
    """The ranks that share the tokens of a pack.

    Attributes:
        group: their process group.
        size: Q.
        index: of this rank among them.
    """

    group: ProcessGroup
    size: int
    index: int

    def split(self, num_tokens: int) -> SequenceSplit:
        """Return how a pack of T tokens is split."""
        return SequenceSplit(of=self, num_tokens=num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSplit:
    """One pack, cut into equal slices; the last ones are filled up with tokens that nobody reads.

    Attributes:
        of: the ranks.
        num_tokens: T.
    """

    of: SequenceGroup
    num_tokens: int

    @property
    def width(self) -> int:
        """Tokens of a slice, K."""
        return -(-self.num_tokens // self.of.size)

    def own(self, value_T: Tensor) -> Tensor:
        """Return this rank's slice `[K]` of a column."""
        padded = functional.pad(value_T, (0, self.width * self.of.size - self.num_tokens))
        return padded[self.of.index * self.width : (self.of.index + 1) * self.width]

    def own_scored(self, scored_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens that this rank scores, and where in its slice the hidden state before each one stands."""
        before_N = scored_N - 1 - self.of.index * self.width
        is_own_N = (before_N >= 0) & (before_N < self.width)
        return scored_N[is_own_N], before_N[is_own_N]

    def merge(self, value_T: Tensor) -> Tensor:
        """Add up rows that are 0 outside each rank's own tokens, so that every rank holds the whole pack's.

        Every rank then computes the same loss from them; the backward pass hands each its own part of the gradient.
        """
        return _Merge.apply(value_T, self.of.group)

    def to_heads(self, x_KHD: Tensor) -> Tensor:
        """Give all T tokens of this rank's heads for all heads of its tokens: `[T, H / Q, D]`."""
        size = self.of.size
        sent = x_KHD.unflatten(1, (size, x_KHD.shape[1] // size)).transpose(0, 1)  # [Q, K, H / Q, D]
        return _Exchange.apply(sent, self.of.group).flatten(0, 1)[: self.num_tokens]

    def to_tokens(self, x_THD: Tensor) -> Tensor:
        """Undo `to_heads`: `[K, H, D]`."""
        size = self.of.size
        padded = functional.pad(x_THD, (0, 0, 0, 0, 0, self.width * size - self.num_tokens))
        received = _Exchange.apply(padded.unflatten(0, (size, self.width)), self.of.group)  # [Q, K, H / Q, D]
        return received.transpose(0, 1).flatten(1, 2)

    def repeat_keys(self, x_KJD: Tensor, *, num_heads: int) -> Tensor:
        """Repeat key heads, as few times as needed, so that every rank gets those of its query heads."""
        num_keys = x_KJD.shape[1]
        times = next(n for n in range(1, num_heads + 1) if num_keys * n % self.of.size == 0)
        return x_KJD if times == 1 else x_KJD.repeat_interleave(times, dim=1)

    def own_heads(self, value_H: Tensor) -> Tensor:
        """Return this rank's heads of a value per query head."""
        return value_H.chunk(self.of.size)[self.of.index]


def check_heads(num_heads: int, *, size: int) -> None:
    """Refuse a number of ranks that the heads cannot be shared out over.

    Raises:
        UsageError: says which numbers work.
    """
    if num_heads % size:
        allowed = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
        raise UsageError(
            f"trainer.parallel.sequence is {size}, but the model has {num_heads} attention heads, which are shared out "
            f"over that many ranks; allowed are {', '.join(map(str, allowed))}"
        )


class _Exchange(torch.autograd.Function):
    """All-to-all of equal parts along the first axis; its own transpose, so the backward pass is the same exchange."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchange(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _exchange(grads[0], ctx.group), None


def _exchange(x: Tensor, group: ProcessGroup) -> Tensor:
    sent = x.contiguous()
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent, group=group)
    return received


class _Merge(torch.autograd.Function):
    """Sum over ranks whose loss after it is the same, so the gradient passes through as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
