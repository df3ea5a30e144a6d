"""Turns trajectories into samples: one per token sequence that the policy wrote in, with its columns filled.

Shapes: T tokens of one sequence, B trajectories, K turns, N tokens of turns in the order they were played.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from agentenv.errors import DataError, UsageError, did_you_mean
from agentenv.trainers.credit import ADVANTAGES, AdvantageName, AdvantageOptions, Episodes
from agentenv.trainers.sample import BoolArray, FloatArray, IntArray, Sample
from agentenv.trajectory import Group, Trajectory

NO_TURN = -1
UNKNOWN_VERSION = -1


def assign(
    groups: Sequence[Group],
    *,
    advantage: AdvantageName,
    divide_by_std: bool = True,
    drop_zero_variance: bool = False,
) -> list[Sample]:
    """Turn finished groups into samples that carry their advantage.

    Only scored trajectories count, for the baseline and as samples. Every sampled token of a trajectory gets its
    advantage (for `turn_rtg_loo` that of its turn), policy weight 1 and KL weight 1. For `gae` the advantages are 0
    until the trainer's critic fills them from the column of rewards.

    Args:
        groups: complete groups, each a comparison set of its own; of a game, each seat (a task of its own) is one.
        advantage: a key of `ADVANTAGES`.
        divide_by_std: for `grpo`.
        drop_zero_variance: leave out the groups in which every advantage is exactly 0.

    Returns:
        Samples in the order group, member, sequence; sequences without a sampled token are left out.

    Raises:
        UsageError: the estimator is unknown, or a sequence has images.
        DataError: a reward is not finite, turns and token sequences disagree, or a scripted policy, a person or an
            endpoint played: without the log-probs of weights of ours there is no policy gradient.
    """
    if advantage not in ADVANTAGES:
        raise UsageError(
            f"advantage is {advantage!r}; allowed are {', '.join(ADVANTAGES)}.{did_you_mean(advantage, ADVANTAGES)}"
        )
    options = AdvantageOptions(divide_by_std=divide_by_std)
    members = _compared(groups)
    if not members:
        return []
    episodes = _flatten(members)
    advantage_N = ADVANTAGES[advantage](episodes, options).to(torch.float32)
    group_N = episodes.group_B[episodes.trajectory_K].repeat_interleave(episodes.num_tokens_K)
    kept = set((group_N[advantage_N != 0] if drop_zero_variance else episodes.group_B).tolist())
    advantages = iter(np.split(advantage_N.numpy(), episodes.num_tokens_K.cumsum(0).numpy()))
    out: list[Sample] = []
    for index, trajectory in members:
        own = [next(advantages) for _ in trajectory.turns]
        if index in kept:
            out += _samples(trajectory, advantages=own, policy_weight=1.0, cross_entropy_weight=0.0)
    return out


def cross_entropy_samples(trajectories: Iterable[Trajectory]) -> list[Sample]:
    """Return samples for supervised fine-tuning: cross-entropy weight 1 on sampled tokens, all other weights 0.

    Every trajectory given is imitated, whatever its reward; the caller chooses which ones deserve it.

    Raises:
        DataError: turns and token sequences disagree.
        UsageError: a sequence has images.
    """
    out: list[Sample] = []
    for trajectory in trajectories:
        zeros = [np.zeros(turn.num_tokens, dtype=np.float32) for turn in trajectory.turns]
        out += _samples(trajectory, advantages=zeros, policy_weight=0.0, cross_entropy_weight=1.0)
    return out


def sample_id(trajectory: Trajectory, sequence: int) -> str:
    """Return `group/member/sequence`."""
    return f"{trajectory.group_id}/{trajectory.member}/{sequence}"


def _compared(groups: Sequence[Group]) -> list[tuple[int, Trajectory]]:
    """Return the scored trajectories in order, each with the number of its comparison set."""
    numbers: dict[tuple[int, str], int] = {}
    return [
        (numbers.setdefault((index, trajectory.task_id), len(numbers)), trajectory)
        for index, group in enumerate(groups)
        for trajectory in group.scored
    ]


def _flatten(members: Sequence[tuple[int, Trajectory]]) -> Episodes:
    """Lay the turns of (comparison set, scored trajectory) pairs end to end."""
    reward_K: list[float] = []
    for _, trajectory in members:
        _check_turns(trajectory)
        rewards = _turn_rewards(trajectory)
        if not np.isfinite([trajectory.reward, *rewards]).all():
            name = f"{trajectory.group_id}/{trajectory.member}"
            raise DataError(f"trajectory {name} has rewards {rewards}; a scored trajectory needs finite rewards")
        reward_K += rewards
    turns = [turn for _, trajectory in members for turn in trajectory.turns]
    num_turns = [len(trajectory.turns) for _, trajectory in members]
    return Episodes(
        group_B=torch.tensor([index for index, _ in members]),
        reward_B=torch.tensor([trajectory.reward for _, trajectory in members], dtype=torch.float64),
        trajectory_K=torch.arange(len(members)).repeat_interleave(torch.tensor(num_turns)),
        reward_K=torch.tensor(reward_K, dtype=torch.float64),
        num_tokens_K=torch.tensor([turn.num_tokens for turn in turns], dtype=torch.int64),
    )


def _turn_rewards(trajectory: Trajectory) -> list[float]:
    """Return the reward of each turn, the terminal one in the last."""
    rewards = [turn.reward for turn in trajectory.turns]
    if rewards:
        rewards[-1] += trajectory.terminal_reward
    return rewards


def _token_rewards(trajectory: Trajectory) -> list[FloatArray]:
    """Put each turn's reward on its last sampled token, in the sequence where that stands.

    The reward of a turn in which nothing was sampled goes to the last token sampled before it; where there is none, no
    action earned it, and it is left out.
    """
    rewards = [np.zeros(len(sequence), dtype=np.float32) for sequence in trajectory.sequences]
    earner: tuple[int, int] | None = None
    for turn, reward in zip(trajectory.turns, _turn_rewards(trajectory), strict=True):
        sampled = np.flatnonzero(trajectory.sequences[turn.sequence].is_sampled[turn.start : turn.end])
        if len(sampled):
            earner = turn.sequence, turn.start + int(sampled[-1])
        if earner is not None:
            rewards[earner[0]][earner[1]] += reward
    return rewards


def _samples(
    trajectory: Trajectory, *, advantages: Sequence[FloatArray], policy_weight: float, cross_entropy_weight: float
) -> list[Sample]:
    assert len(advantages) == len(trajectory.turns)
    _check_turns(trajectory)
    out: list[Sample] = []
    rewards = _token_rewards(trajectory)
    for index, sequence in enumerate(trajectory.sequences):
        if not sequence.is_sampled.any():
            continue  # nothing to learn from, and an empty row would count in the per-sequence means
        name = sample_id(trajectory, index)
        if sequence.images:
            raise UsageError(
                f"sample {name} has {len(sequence.images)} images in its prompt, and the trainer reads token ids only. "
                "Supported are training of text models, and playing and evaluating vision-language models; take an "
                "environment without images, or `agentenv eval`"
            )
        turn_T, version_T, advantage_T = _turn_columns(trajectory, index, advantages=advantages, name=name)
        if policy_weight:
            _check_is_ours(sequence.is_sampled & (version_T < 0), name=name)
        is_trained_T = sequence.is_sampled.copy()
        is_trained_T[0] = False  # nothing stands before position 0 that could predict it
        out.append(
            Sample(
                sample_id=name,
                token_ids_T=sequence.token_ids,
                is_sampled_T=sequence.is_sampled,
                behaviour_logprob_T=sequence.logprobs,
                version_T=version_T,
                turn_T=turn_T,
                advantage_T=advantage_T,
                policy_weight_T=_weights(is_trained_T, policy_weight),
                cross_entropy_weight_T=_weights(is_trained_T, cross_entropy_weight),
                kl_weight_T=_weights(is_trained_T, policy_weight),
                reward_T=rewards[index],
            )
        )
    return out


def _turn_columns(
    trajectory: Trajectory, index: int, *, advantages: Sequence[FloatArray], name: str
) -> tuple[IntArray, IntArray, FloatArray]:
    """Return turn_T, version_T and advantage_T of one sequence."""
    sequence = trajectory.sequences[index]
    turn_T = np.full(len(sequence), NO_TURN, dtype=np.int32)
    version_T = np.full(len(sequence), UNKNOWN_VERSION, dtype=np.int32)
    advantage_T = np.zeros(len(sequence), dtype=np.float32)
    for number, turn in enumerate(trajectory.turns):
        if turn.sequence != index:
            continue
        span = slice(turn.start, turn.end)
        turn_T[span] = number
        advantage_T[span] = advantages[number]
        for part in turn.weight_versions:
            version_T[turn.start + part.start : turn.start + part.end] = part.version
    is_observation_T = ~sequence.is_sampled
    turn_T[is_observation_T], version_T[is_observation_T] = NO_TURN, UNKNOWN_VERSION
    advantage_T[is_observation_T] = 0.0
    orphans = int(np.count_nonzero(sequence.is_sampled & (turn_T == NO_TURN)))
    if orphans:
        raise DataError(f"sample {name} has {orphans} sampled tokens outside every turn; each needs exactly one turn")
    return turn_T, version_T, advantage_T


def _check_is_ours(is_foreign_T: BoolArray, *, name: str) -> None:
    """Raise where tokens were not sampled by an engine that serves our weights."""
    count = int(np.count_nonzero(is_foreign_T))
    if count:
        raise DataError(
            f"sample {name} has {count} tokens of no weight version: a scripted policy, a person or an endpoint said "
            "them, so their log-probs are unknown. Play with an engine (hf, vllm, sglang), or imitate them (sft)"
        )


def _check_turns(trajectory: Trajectory) -> None:
    """Raise where a turn or one of its version spans lies outside its sequence."""
    for number, turn in enumerate(trajectory.turns):
        name = f"turn {number} of trajectory {trajectory.group_id}/{trajectory.member}"
        if not 0 <= turn.sequence < len(trajectory.sequences):
            raise DataError(f"{name} names sequence {turn.sequence}; there are {len(trajectory.sequences)}")
        length = len(trajectory.sequences[turn.sequence])
        if not 0 <= turn.start <= turn.end <= length:
            raise DataError(
                f"{name} covers tokens [{turn.start}, {turn.end}) of a sequence of {length}; "
                "expected 0 <= start <= end <= length"
            )
        if any(not 0 <= part.start <= part.end <= turn.num_tokens for part in turn.weight_versions):
            raise DataError(
                f"{name} has a weight version span outside its {turn.num_tokens} tokens; "
                "spans are relative to the turn's start"
            )


def _weights(is_trained_T: BoolArray, weight: float) -> FloatArray:
    return is_trained_T.astype(np.float32) * np.float32(weight)
