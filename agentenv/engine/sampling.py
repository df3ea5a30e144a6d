"""Draw next tokens for many requests at once: inverse CDF with one counter-based uniform per token.

Shapes: B rows (one per request), V vocabulary, K blocks of the vocabulary, I tokens of one block, F rows that ask for
top-k or top-p, W the widest top-k among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_BLOCK = 64  # a block's sum is looked up first, so that no cumulative sum runs over a large vocabulary
_FLAT_SIZE = 1 << 16  # up to this many logits, one cumulative sum over all costs less than the block's kernels
_ALMOST_ONE = 1.0 - 1e-12  # keeps a target strictly inside the mass, so a token of probability 0 is never drawn

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)

UintArray = npt.NDArray[np.uint64]


def seed_state(seed: int, *, stream: int = 0) -> np.uint64:
    """Turn a seed of any size and sign into the well-mixed 64-bit state of a random stream.

    Args:
        seed: reduced modulo 2**64.
        stream: another number gives an independent stream of the same seed.
    """
    word = _mix(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
    return _mix(word + np.array([stream % 2**64], dtype=np.uint64) * _GOLDEN)[0]


def uniforms(state: UintArray, position: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return numbers in [0, 1), each a pure function of (state, position); the arguments broadcast.

    The stream is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014),
    read at index `position` instead of iterated, so a draw never depends on what was drawn before or beside it.
    """
    word = _mix(state + position.astype(np.uint64) * _GOLDEN)
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRows:
    """How each row of a batch is drawn, on the device of the logits. Build it with `sampling_rows`.

    Attributes:
        scale_B1: float32, 1 / temperature, 1 for greedy rows; None where all are 1.
        is_greedy_B: bool; None where no row is greedy.
        filtered_F: int64, indices of the rows that ask for top-k or top-p; None where none does.
        top_k_F1: int64; the vocabulary's size where off.
        top_p_F1: float64; 1 where off.
        widest_top_k: the largest entry of `top_k_F1`.
    """

    scale_B1: Tensor | None
    is_greedy_B: Tensor | None
    filtered_F: Tensor | None
    top_k_F1: Tensor | None
    top_p_F1: Tensor | None
    widest_top_k: int


def sampling_rows(
    *,
    temperature_B: npt.NDArray[np.float64],
    top_p_B: npt.NDArray[np.float64],
    top_k_B: npt.NDArray[np.int64],
    vocab_size: int,
    device: torch.device,
) -> SamplingRows:
    """Decide on the host which rows need what, so that the device never has to be asked.

    Args:
        temperature_B: 0 is greedy.
        top_p_B: nucleus mass in (0, 1]; 1 is off.
        top_k_B: 0 is off.
        vocab_size: number of logits per row.
        device: where the logits are.
    """
    is_greedy_B = temperature_B == 0
    scale_B = (1.0 / np.where(is_greedy_B, 1.0, temperature_B)).astype(np.float32)
    filtered_F = np.flatnonzero((top_p_B < 1) | (top_k_B > 0))
    top_k_F = np.where(top_k_B[filtered_F] > 0, np.minimum(top_k_B[filtered_F], vocab_size), vocab_size)
    is_filtered = len(filtered_F) > 0

    def put(array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return SamplingRows(
        scale_B1=put(scale_B)[:, None] if (scale_B != 1).any() else None,
        is_greedy_B=put(is_greedy_B) if is_greedy_B.any() else None,
        filtered_F=put(filtered_F) if is_filtered else None,
        top_k_F1=put(top_k_F)[:, None] if is_filtered else None,
        top_p_F1=put(top_p_B[filtered_F])[:, None] if is_filtered else None,
        widest_top_k=int(top_k_F.max()) if is_filtered else vocab_size,
    )


def draw(logit_BV: Tensor, rows: SamplingRows, *, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    Args:
        logit_BV: float32; overwritten.
        rows: how each row is drawn.
        uniform_B: float64 in [0, 1).

    Returns:
        int64[B] tokens, and float32[B] log-probs under softmax(logits / T) before top-k and top-p; greedy
        rows take T as 1. A row whose logits are not finite has a log-prob that is not finite.
    """
    best_B = None if rows.is_greedy_B is None else logit_BV.argmax(-1)
    weight_BV = logit_BV.sub_(logit_BV.amax(-1, keepdim=True))
    if rows.scale_B1 is not None:
        weight_BV.mul_(rows.scale_B1)
    weight_BV.exp_()
    target_B1 = (uniform_B * _ALMOST_ONE)[:, None]
    token_B1, total_B1 = (_draw_flat if weight_BV.numel() <= _FLAT_SIZE else _draw_blockwise)(weight_BV, target_B1)
    if rows.filtered_F is not None:
        filtered_F = rows.filtered_F
        token_B1[filtered_F] = _draw_filtered(weight_BV[filtered_F], rows, target_F1=target_B1[filtered_F])
    if best_B is not None and rows.is_greedy_B is not None:
        token_B1 = torch.where(rows.is_greedy_B, best_B, token_B1[:, 0])[:, None]
    logprob_B1 = (weight_BV.gather(1, token_B1) / total_B1).log_()
    return token_B1[:, 0], logprob_B1[:, 0].float()


def _mix(word: UintArray) -> UintArray:
    word = (word ^ (word >> np.uint64(30))) * _MIX_A
    word = (word ^ (word >> np.uint64(27))) * _MIX_B
    return word ^ (word >> np.uint64(31))


def _draw_flat(weight_BV: Tensor, target_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Search the whole cumulative sum: the fewest kernels, best where there is little to sum."""
    cumulative_BV = weight_BV.cumsum(-1, dtype=torch.float64)
    total_B1 = cumulative_BV[:, -1:]
    # "right" skips tokens of weight 0; the clamp only matters for rows of NaN
    token_B1 = torch.searchsorted(cumulative_BV, target_B1 * total_B1, right=True).clamp_(max=weight_BV.shape[1] - 1)
    return token_B1, total_B1


def _draw_blockwise(weight_BV: Tensor, target_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Pick the block by its sum, then the token inside it: no cumulative sum over the whole vocabulary."""
    vocab_size = weight_BV.shape[1]
    sum_BK = _block_sums(weight_BV).double()
    cumulative_BK = sum_BK.cumsum(-1)
    total_B1 = cumulative_BK[:, -1:]
    target_B1 = target_B1 * total_B1
    block_B1 = torch.searchsorted(cumulative_BK, target_B1, right=True).clamp_(max=sum_BK.shape[1] - 1)
    mass_B1 = sum_BK.gather(1, block_B1)
    # where in the block the target falls, as a fraction: the block is summed again below, with another rounding
    fraction_B1 = ((target_B1 - cumulative_BK.gather(1, block_B1) + mass_B1) / mass_B1).clamp_(0.0, _ALMOST_ONE)
    id_BI = block_B1 * _BLOCK + torch.arange(_BLOCK, device=weight_BV.device)
    inner_BI = weight_BV.gather(1, id_BI.clamp(max=vocab_size - 1)).double()
    if vocab_size % _BLOCK:
        inner_BI.masked_fill_(id_BI >= vocab_size, 0.0)
    cumulative_BI = inner_BI.cumsum_(-1)
    inside_B1 = torch.searchsorted(cumulative_BI, fraction_B1 * cumulative_BI[:, -1:], right=True)
    return (block_B1 * _BLOCK + inside_B1).clamp_(max=vocab_size - 1), total_B1


def _block_sums(weight_BV: Tensor) -> Tensor:
    """Sum blocks of the vocabulary; the last block may be short."""
    whole = weight_BV.shape[1] // _BLOCK * _BLOCK
    sum_BK = weight_BV[:, :whole].unflatten(1, (whole // _BLOCK, _BLOCK)).sum(-1)
    if whole == weight_BV.shape[1]:
        return sum_BK
    return torch.cat((sum_BK, weight_BV[:, whole:].sum(-1, keepdim=True)), dim=1)


def _draw_filtered(weight_FV: Tensor, rows: SamplingRows, *, target_F1: Tensor) -> Tensor:
    """Sort each row, keep its top-k and of that its nucleus, and draw from what is left."""
    assert rows.top_k_F1 is not None
    assert rows.top_p_F1 is not None
    width = rows.widest_top_k
    if width < weight_FV.shape[1]:
        sorted_FW, order_FW = weight_FV.topk(width)
    else:
        sorted_FW, order_FW = weight_FV.sort(descending=True, stable=True)
    rank_W = torch.arange(width, device=weight_FV.device)
    sorted_FW = sorted_FW.double().masked_fill_(rank_W >= rows.top_k_F1, 0.0)
    cumulative_FW = sorted_FW.cumsum(-1)
    # a token stays while the mass before it is short of p, so the first always stays
    is_outside_FW = cumulative_FW - sorted_FW >= rows.top_p_F1 * cumulative_FW[:, -1:]
    # p = 1 keeps the whole top-k even where rounding says otherwise
    sorted_FW.masked_fill_(is_outside_FW & (rows.top_p_F1 < 1), 0.0)
    cumulative_FW = sorted_FW.cumsum_(-1)
    rank_F1 = torch.searchsorted(cumulative_FW, target_F1 * cumulative_FW[:, -1:], right=True).clamp_(max=width - 1)
    return order_FW.gather(1, rank_F1)
