"""AdamW and its learning-rate schedule, which is a pure function of the step so that resuming needs no state."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from agentenv.config import Config


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


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters (Loshchilov and Hutter, arXiv 1711.05101)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


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
