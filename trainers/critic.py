"""PPO's critic: its configuration, and how its values become advantages and returns.

Shapes: T tokens of one sample, N sampled tokens of all samples in the order in which they were written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from agentenv.config import Config
from agentenv.trainers.credit import gae
from agentenv.trainers.model import PackedModel
from agentenv.trainers.packing import trajectory_id
from agentenv.trainers.sample import Sample
from agentenv.trainers.value import CriticKind, ValueModel

DISCOUNT, LAMBDA = 1.0, 0.95


class CriticConfig(Config):
    """The critic of `advantage: gae`; other estimators have none."""

    clip: ClassVar[float | None] = 0.2
    """The value loss takes the worse of a value and one that moved at most this far; None is off."""
    coefficient: ClassVar[float] = 0.5
    """Weight of the value loss beside the policy loss."""

    kind: CriticKind = "head"
    """head: a linear layer on the policy's hidden states; separate: a model of its own, copied from the policy."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of the critic's own parameters; the schedule is the optimizer's."""


def add_critic(model: PackedModel, config: CriticConfig) -> None:
    """Give a policy a critic, in place; before its optimizer is made."""
    model.critic = ValueModel(model.causal_lm, kind=config.kind)


def with_advantages(
    samples: Sequence[Sample],
    values: Mapping[str, Tensor],
    *,
    whiten: bool,
    gamma: float = DISCOUNT,
    lam: float = LAMBDA,
) -> tuple[list[Sample], dict[str, float]]:
    """Fill the columns advantage, value and return by generalised advantage estimation.

    The recurrence runs over the sampled tokens of a whole trajectory in the order of its turns, whatever observation
    tokens lie between them and in however many sequences they stand.

    Args:
        samples: with rewards; all sequences of a trajectory, or it is cut short.
        values: `sample_id` to float[T], from the critic before the update.
        whiten: bring the advantages of all sampled tokens to mean 0 and standard deviation 1.
        gamma: discount per sampled token.
        lam: lambda.

    Returns:
        The samples, and metrics: `value_mean`, `return_mean`, and `explained_variance`,
        1 - Var(return - value) / Var(return); it is left out where all returns are equal.
    """
    names = [trajectory_id(sample.sample_id) for sample in samples]
    index_of = {name: index for index, name in enumerate(dict.fromkeys(names))}
    places = [np.flatnonzero(sample.is_sampled_T) for sample in samples]
    trajectory_N = np.repeat([index_of[name] for name in names], [len(place) for place in places])
    turn_N = _joined([sample.turn_T[place] for sample, place in zip(samples, places, strict=True)])
    order_N = np.lexsort((_joined(places), turn_N, trajectory_N))
    reward_N = _joined([sample.reward_T[place] for sample, place in zip(samples, places, strict=True)])
    value_N = _joined([values[s.sample_id].numpy()[place] for s, place in zip(samples, places, strict=True)])
    advantage_N, return_N = gae(
        torch.from_numpy(reward_N[order_N].astype(np.float64)),
        torch.from_numpy(value_N[order_N].astype(np.float64)),
        sequence_T=torch.from_numpy(trajectory_N[order_N].astype(np.int64)),
        is_sampled_T=torch.ones(len(order_N), dtype=torch.bool),
        gamma=gamma,
        lam=lam,
        whiten=whiten,
    )
    back_N = np.argsort(order_N)
    sizes = np.cumsum([len(place) for place in places])[:-1]
    advantages = np.split(advantage_N.numpy()[back_N], sizes)
    returns = np.split(return_N.numpy()[back_N], sizes)
    filled = [
        dataclasses.replace(
            sample,
            advantage_T=_column(sample, place, advantage),
            value_T=_column(sample, place, values[sample.sample_id].numpy()[place]),
            return_T=_column(sample, place, goal),
        )
        for sample, place, advantage, goal in zip(samples, places, advantages, returns, strict=True)
    ]
    return filled, _fit(value_N[order_N], return_N.numpy())


def _fit(value_N: np.ndarray, return_N: np.ndarray) -> dict[str, float]:
    metrics = {"value_mean": float(value_N.mean()), "return_mean": float(return_N.mean())}
    spread = float(return_N.var())
    if spread > 0:
        metrics["explained_variance"] = 1.0 - float((return_N - value_N).var()) / spread
    return metrics


def _column(sample: Sample, place_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
    column_T = np.zeros(len(sample), dtype=np.float32)
    column_T[place_N] = value_N
    return column_T


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts)
