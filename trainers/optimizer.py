"""AdamW and its learning-rate schedule, which is a pure function of the step so that resuming needs no state."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from agentenv.config import Config

_CRITIC = "critic."


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    learning_rate: float = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after warm-up, to zero at the phase's last step."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises from zero."""
    weight_decay: float = 0.0
    """Decoupled weight decay; biases and norms are spared."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decay rates."""
    eps: float = 1e-8
    """AdamW's epsilon; 1e-5 keeps directions with almost no gradient, such as rare tokens, from drifting."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, *, critic_learning_rate: float | None = None
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters (Loshchilov and Hutter, arXiv 1711.05101).

    Args:
        model: its parameters under `critic.` are the critic's.
        config: of the optimizer.
        critic_learning_rate: peak rate of the critic's own parameters; None takes the same as everywhere.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = _groups([p for name, p in trainable if not name.startswith(_CRITIC)], config, peak=config.learning_rate)
    rate = config.learning_rate if critic_learning_rate is None else critic_learning_rate
    groups += _groups([p for name, p in trainable if name.startswith(_CRITIC)], config, peak=rate)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def follow_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, *, step: int, num_steps: int) -> float:
    """Set the rate of every group for optimizer step `step`; returns the policy's. See `learning_rate`."""
    for group in optimizer.param_groups:
        peak = config.model_copy(update={"learning_rate": group["peak_learning_rate"]})
        group["lr"] = learning_rate(peak, step=step, num_steps=num_steps)
    return learning_rate(config, step=step, num_steps=num_steps)


def learning_rate(config: OptimizerConfig, *, step: int, num_steps: int) -> float:
    """Return the rate of optimizer step `step` (from 0) of `num_steps`.

    Warm-up is linear and reaches the peak at its last step; then the rate is constant, falls linearly, or follows half
    a cosine (Loshchilov and Hutter, arXiv 1608.03983, equation 5), reaching zero after the last step.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    done = min(1.0, done)
    if config.schedule == "linear":
        return config.learning_rate * (1 - done)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _groups(parameters: list[nn.Parameter], config: OptimizerConfig, *, peak: float) -> list[dict[str, Any]]:
    """Return parameter groups with and without weight decay."""
    matrices = {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay}
    vectors = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    return [{**group, "lr": peak, "peak_learning_rate": peak} for group in (matrices, vectors)]
