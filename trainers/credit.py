"""Advantage estimators: who gets the credit for an episode's rewards, on ragged, packed data.

Shapes: B trajectories, G groups, K turns of all trajectories (in `_BK`: turn indices), T packed tokens, N sampled
tokens, or tokens of all turns in the order they were played. Group statistics are taken per trajectory, never per
sequence or turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from agentenv.trainers.packing import segment_lengths

AdvantageName = Literal["grpo", "rloo", "turn_rtg_loo", "gae"]
STD_EPSILON = 1e-6
BLOCK_TOKENS = 1 << 17


def grpo(reward_B: Tensor, group_B: Tensor, *, is_scored_B: Tensor, divide_by_std: bool = True) -> Tensor:
    """Group-relative advantage, (R - mean) / (std + 1e-6) with the sample (n - 1) standard deviation.

    DeepSeekMath (arXiv 2402.03300), section 4.1; without the division it is the numerator of Dr. GRPO
    (arXiv 2503.20783). A group with one scored member has nothing to compare with: its advantage is 0.

    Args:
        reward_B: float[B]; episode returns.
        group_B: int[B]; any ids, in any order.
        is_scored_B: bool[B]; members that are False leave the statistics and get 0.
        divide_by_std: divide by the standard deviation of the group.

    Returns:
        float[B] in the dtype of `reward_B`; exactly 0 where all scored members of a group agree.
    """
    centred_B1, group_B, count_B = _centred(reward_B[:, None], group_B, is_scored_B=is_scored_B)
    advantage_B = centred_B1[:, 0]
    if divide_by_std:
        square_G = torch.zeros_like(advantage_B).index_add_(0, group_B, advantage_B.square())
        std_B = (square_G[group_B] / (count_B - 1).clamp(min=1)).sqrt()
        advantage_B = advantage_B / (std_B + STD_EPSILON)
    return advantage_B.to(reward_B.dtype)


def rloo(reward_B: Tensor, group_B: Tensor, *, is_scored_B: Tensor) -> Tensor:
    """Return minus the mean of the other members, n / (n - 1) (R - mean); 0 for a group of one.

    Ahmadian et al. (arXiv 2402.14740), equation 6. Arguments and result as in `grpo`.
    """
    centred_B1, _, count_B = _centred(reward_B[:, None], group_B, is_scored_B=is_scored_B)
    return (centred_B1[:, 0] * count_B / (count_B - 1).clamp(min=1)).to(reward_B.dtype)


def turn_rtg_loo(reward_K: Tensor, trajectory_K: Tensor, *, group_B: Tensor, is_scored_B: Tensor) -> Tensor:
    """Per-turn return-to-go minus the other members' mean return-to-go at the same turn index.

    An episode that has ended counts 0 at later indices: the baseline of a member then depends on the others
    alone, which keeps the policy gradient unbiased. A group of one has advantage 0.

    Args:
        reward_K: float[K]; reward of each turn, terminal rewards in the last one.
        trajectory_K: int64[K]; which trajectory a turn belongs to, 0..B-1, never decreasing.
        group_B: int[B]; any ids, in any order.
        is_scored_B: bool[B]; members that are False leave the baseline and get 0.

    Returns:
        float[K] in the dtype of `reward_K`.
    """
    if len(reward_K) == 0:
        return reward_K.clone()
    num_turns_B = segment_lengths(trajectory_K, num_sequences=len(group_B))
    turn_K = torch.arange(len(reward_K), device=reward_K.device) - (num_turns_B.cumsum(0) - num_turns_B)[trajectory_K]
    # Turns are few, so here alone a rectangle is cheaper than ragged rows; its zeros are the ended episodes.
    reward_BK = torch.zeros(len(group_B), int(num_turns_B.max()), dtype=torch.float64, device=reward_K.device)
    reward_BK[trajectory_K, turn_K] = reward_K.double()
    return_BK = reward_BK.flip(1).cumsum(1).flip(1)
    centred_BK, _, count_B = _centred(return_BK, group_B, is_scored_B=is_scored_B)
    advantage_BK = centred_BK * (count_B / (count_B - 1).clamp(min=1))[:, None]
    return advantage_BK[trajectory_K, turn_K].to(reward_K.dtype)


def gae(
    reward_T: Tensor,
    value_T: Tensor,
    *,
    sequence_T: Tensor,
    is_sampled_T: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten: bool = False,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the sampled tokens (Schulman et al., arXiv 1506.02438, equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, where t + 1 is the next *sampled* token
    of the sequence: observation tokens neither discount nor interrupt. A reward that stands on an observation token
    belongs to the last sampled token before it; one before the first sampled token was not earned by any action
    and is left out. The value after the last sampled token is 0.

    Args:
        reward_T: float[T].
        value_T: float[T]; read on sampled tokens only.
        sequence_T: int64[T], never decreasing. Trajectory ids carry the recurrence across rewritten history.
        is_sampled_T: bool[T].
        gamma: discount per sampled token, in [0, 1].
        lam: lambda, in [0, 1].
        whiten: bring the advantages of the sampled tokens to mean 0 and sample standard deviation 1.

    Returns:
        Advantages and returns (A + V, before whitening), float[T]; 0 on observation tokens.
    """
    advantage_T, return_T = torch.zeros_like(reward_T), torch.zeros_like(reward_T)
    next_sequence, next_value = sequence_T.new_full((1,), -1), value_T.new_zeros(1)
    next_advantage, head_sequence, head_reward = next_value, next_sequence, next_value
    for block in _blocks_from_the_back(len(reward_T)):
        index_N = _true_positions(is_sampled_T[block])
        sequence_N = sequence_T[block].index_select(0, index_N)
        earner_sequence = torch.cat([sequence_T[block][:1], sequence_N])  # [N + 1]; first the token before the block
        earned = _earned_rewards(
            reward_T[block],
            sequence_T[block],
            is_sampled=is_sampled_T[block],
            index_N=index_N,
            earner_sequence=earner_sequence,
        )
        earned[-1:].addcmul_(head_reward, (earner_sequence[-1:] == head_sequence).to(earned.dtype))
        head_sequence, head_reward = earner_sequence[:1], earned[:1]
        if len(index_N) == 0:
            continue
        value_N = value_T[block].index_select(0, index_N)
        continues_N = (torch.cat([sequence_N[1:], next_sequence]) == sequence_N).view(torch.int8).to(reward_T.dtype)
        delta_N = earned[1:].sub_(value_N).addcmul_(torch.cat([value_N[1:], next_value]), continues_N, value=gamma)
        delta_N[-1:].addcmul_(continues_N[-1:], next_advantage, value=gamma * lam)
        advantage_N = _backward_scan(delta_N, continues_N[:-1], factor=gamma * lam)
        next_sequence, next_value, next_advantage = sequence_N[:1], value_N[:1], advantage_N[:1]
        advantage_T[block].index_copy_(0, index_N, advantage_N)
        return_T[block].index_copy_(0, index_N, advantage_N + value_N)
    if whiten:
        index_N = _true_positions(is_sampled_T)
        advantage_T.index_copy_(0, index_N, whitened(advantage_T[index_N]))
    return advantage_T, return_T


def whitened(advantage_N: Tensor) -> Tensor:
    """Return the advantages with mean 0 and sample standard deviation 1; a single one becomes 0."""
    centred_N = advantage_N - advantage_N.mean()
    return centred_N / (centred_N.square().sum() / max(len(centred_N) - 1, 1)).sqrt().add(1e-8)


def to_tokens(advantage_B: Tensor, sequence_T: Tensor, *, is_sampled_T: Tensor) -> Tensor:
    """Return float[T]: each trajectory's advantage on its sampled tokens, 0 on observation tokens.

    Args:
        advantage_B: float[B].
        sequence_T: int64[T]; index into `advantage_B`.
        is_sampled_T: bool[T].
    """
    # int8 and bool have the same bytes, but torch converts int8 to float twice as fast
    return advantage_B.index_select(0, sequence_T).mul_(is_sampled_T.view(torch.int8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """What the estimators of `ADVANTAGES` see: the scored trajectories of some groups, flattened.

    Attributes:
        group_B: int64[B]; index of the trajectory's group.
        reward_B: float64[B]; episode returns.
        trajectory_K: int64[K]; never decreasing.
        reward_K: float64[K]; turn rewards, terminal rewards in the last turn.
        num_tokens_K: int64[K]; tokens of each turn, their sum is N.
    """

    group_B: Tensor
    reward_B: Tensor
    trajectory_K: Tensor
    reward_K: Tensor
    num_tokens_K: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageOptions:
    """Settings of the estimators; each reads those that its definition names."""

    divide_by_std: bool = True


def _everyone(episodes: Episodes) -> Tensor:
    """Return bool[B], True throughout: failed members were left out before."""
    return torch.ones_like(episodes.group_B, dtype=torch.bool)


def _per_trajectory(advantage_B: Tensor, episodes: Episodes) -> Tensor:
    return advantage_B[episodes.trajectory_K].repeat_interleave(episodes.num_tokens_K)


def _assign_grpo(episodes: Episodes, options: AdvantageOptions) -> Tensor:
    advantage_B = grpo(
        episodes.reward_B,
        episodes.group_B,
        is_scored_B=_everyone(episodes),
        divide_by_std=options.divide_by_std,
    )
    return _per_trajectory(advantage_B, episodes)


def _assign_rloo(episodes: Episodes, options: AdvantageOptions) -> Tensor:
    return _per_trajectory(rloo(episodes.reward_B, episodes.group_B, is_scored_B=_everyone(episodes)), episodes)


def _assign_turn_rtg_loo(episodes: Episodes, options: AdvantageOptions) -> Tensor:
    advantage_K = turn_rtg_loo(
        episodes.reward_K,
        episodes.trajectory_K,
        group_B=episodes.group_B,
        is_scored_B=_everyone(episodes),
    )
    return advantage_K.repeat_interleave(episodes.num_tokens_K)


def _assign_nothing(episodes: Episodes, options: AdvantageOptions) -> Tensor:
    """`gae` needs the critic's values, so the advantages are filled where the critic is: in the worker."""
    return torch.zeros(int(episodes.num_tokens_K.sum()))


Estimator = Callable[[Episodes, AdvantageOptions], Tensor]
"""Returns float[N], one advantage per token of every turn."""

ADVANTAGES: dict[AdvantageName, Estimator] = {
    "grpo": _assign_grpo,
    "rloo": _assign_rloo,
    "turn_rtg_loo": _assign_turn_rtg_loo,
    "gae": _assign_nothing,
}


def _centred(value_BK: Tensor, group_B: Tensor, *, is_scored_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return float64 values minus the mean of their group's scored members, dense group indices and member counts.

    Values are first shifted by one member's, so that equal values give exactly 0 and not a rounding error, which
    the division by a standard deviation of 0 + 1e-6 would blow up.
    """
    _, group_B = torch.unique(group_B, return_inverse=True)
    num_groups, size = int(group_B.max()) + 1 if len(group_B) else 0, len(group_B)
    scored_B1 = is_scored_B[:, None]
    position_B = torch.where(is_scored_B, torch.arange(size, device=group_B.device), size)
    first_G = torch.full((num_groups,), size, device=group_B.device).scatter_reduce_(0, group_B, position_B, "amin")
    reference_BK = value_BK.double()[first_G.clamp(max=size - 1)][group_B]
    # where, not a product: the reward of a failed member may be NaN
    shifted_BK = torch.where(scored_B1, value_BK.double() - reference_BK, 0.0)
    count_G = torch.zeros(num_groups, dtype=torch.float64, device=group_B.device)
    count_B = count_G.index_add_(0, group_B, is_scored_B.double())[group_B]
    sum_GK = shifted_BK.new_zeros(num_groups, shifted_BK.shape[1]).index_add_(0, group_B, shifted_BK)
    centred_BK = torch.where(scored_B1, shifted_BK - sum_GK[group_B] / count_B.clamp(min=1)[:, None], 0.0)
    return centred_BK, group_B, count_B


def _earned_rewards(
    reward: Tensor, sequence: Tensor, *, is_sampled: Tensor, index_N: Tensor, earner_sequence: Tensor
) -> Tensor:
    """Return float[N + 1]: rewards of a block's sampled tokens, each with those of the observation tokens after it.

    The first entry belongs to the last sampled token before the block, if its sequence reaches into the block.

    Args:
        reward: of the block's tokens.
        sequence: of the block's tokens.
        is_sampled: of the block's tokens.
        index_N: where that is True.
        earner_sequence: int64[N + 1]; of those who may earn.
    """
    if bool((reward * (~is_sampled).view(torch.int8)).abs().sum() == 0):
        return torch.nn.functional.pad(reward.index_select(0, index_N), (1, 0))
    rank = is_sampled.cumsum(0)  # which entry a token counts towards
    is_earned = (earner_sequence.index_select(0, rank) == sequence).view(torch.int8)
    return reward.new_zeros(len(earner_sequence)).scatter_add_(0, rank, reward * is_earned)


def _backward_scan(delta_N: Tensor, continues: Tensor, *, factor: float) -> Tensor:
    """Solve A_t = delta_t + factor continues_t A_{t+1}; each pass doubles the reach.

    Before the pass with `step`, A_t sums the terms up to t + step - 1, and the carry is factor^step, or 0 where the
    sequence ends on the way. Terms that the factor has pushed below the resolution of the dtype are left out.

    Args:
        delta_N: float[N].
        continues: float[N - 1]; 1 where t + 1 belongs to the sequence of t, else 0.
        factor: gamma lambda.
    """
    size, negligible = len(delta_N), torch.finfo(delta_N.dtype).eps / 1000
    steps = [1 << k for k in range((size - 1).bit_length()) if factor ** (1 << k) > negligible]
    room = size + max(steps, default=0)  # zeros behind the end, so that every pass runs over the whole length
    total, next_total, carry, next_carry = delta_N.new_zeros(4, room).unbind()
    total[:size] = delta_N
    torch.mul(continues, factor, out=carry[: size - 1])
    for step in steps:
        if not bool(carry.sum() > 0):
            break
        torch.addcmul(total[:size], carry[:size], total[step : step + size], out=next_total[:size])
        torch.mul(carry[:size], carry[step : step + size], out=next_carry[:size])
        total, next_total, carry, next_carry = next_total, total, next_carry, carry
    return total[:size]


def _blocks_from_the_back(size: int) -> list[slice]:
    """Cut a long column into blocks that stay in the processor's cache."""
    return [slice(max(end - BLOCK_TOKENS, 0), end) for end in range(size, 0, -BLOCK_TOKENS)]


def _true_positions(is_true: Tensor) -> Tensor:
    """Return int64[N]; on a CPU numpy finds them several times faster than torch."""
    if is_true.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(is_true.numpy()))
    return is_true.nonzero().squeeze(1)
