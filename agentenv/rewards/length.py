"""Rewards that shape how long an answer is, each by the formula of its paper; lengths are counts of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentenv.errors import UsageError
from agentenv.trajectory import Trajectory


def soft_overlong(length: int, *, max_length: int, buffer: int) -> float:
    """Return a penalty in [-1, 0] that grows linearly over the last `buffer` tokens before `max_length`.

    DAPO's soft overlong punishment (Yu et al. 2025, https://arxiv.org/abs/2503.14476, eq. 13).

    Args:
        length: of the answer.
        max_length: beyond it the penalty is -1.
        buffer: length of the slope before it.
    """
    if not 0 < buffer <= max_length:
        raise UsageError(f"buffer is {buffer}; it must lie in [1, max_length], which is {max_length}")
    start = max_length - buffer
    if length <= start:
        return 0.0
    return -1.0 if length > max_length else (start - length) / buffer


def cosine_length(
    length: int,
    *,
    is_right: bool,
    max_length: int,
    right: tuple[float, float] = (2.0, 1.0),
    wrong: tuple[float, float] = (-10.0, 0.0),
    exceeded: float = -10.0,
) -> float:
    """Return a reward that moves along half a cosine from an empty answer to one of `max_length`.

    The cosine reward of Yeo et al. 2025 (https://arxiv.org/abs/2502.03373, section 4.2), with its defaults: a right
    answer earns more the shorter it is, a wrong one loses less the longer it thinks.

    Args:
        length: of the answer.
        is_right: whether the answer is right.
        max_length: an answer that reaches it earns `exceeded`.
        right: rewards of a right answer at length 0 and at `max_length`.
        wrong: likewise of a wrong one.
        exceeded: reward of an answer that was cut off.
    """
    if max_length < 1:
        raise UsageError(f"max_length is {max_length}; at least 1 is needed")
    if length >= max_length:
        return exceeded
    first, last = right if is_right else wrong
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * length / max_length))


def shorter_in_group(trajectories: Sequence[Trajectory], *, success_reward: float = 1.0) -> list[float]:
    """Return, for a group, a reward in [-0.5, 0.5] that prefers the short among its members.

    The length reward of Kimi k1.5 (https://arxiv.org/abs/2501.12599, section 2.3.3): 0.5 - (len - min) / (max - min)
    for right answers, and the smaller of this and 0 for wrong ones; 0 where all are equally long.

    Args:
        trajectories: the scored members of a group.
        success_reward: return from which a member counts as right.
    """
    lengths = [trajectory.num_sampled_tokens for trajectory in trajectories]
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    preference = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [
        value if trajectory.reward >= success_reward else min(0.0, value)
        for value, trajectory in zip(preference, trajectories, strict=True)
    ]
