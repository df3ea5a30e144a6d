"""Activation checkpointing: layers that keep little from the forward pass and compute it again in the backward pass."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recomputation = Literal["none", "full", "selective"]

_aten = torch.ops.aten
_KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)
"""What costs much to compute; everything else is cheap element by element."""


def recompute(layer: nn.Module, kind: Recomputation) -> None:
    """Let a layer's forward pass be computed again in the backward pass; `none` leaves it alone.

    The layer keeps its class and the names of its parameters, so that checkpoints and exports do not change. Its
    gradients are the same (Chen et al., arXiv 1604.06174).

    Args:
        layer: a decoder layer without randomness.
        kind: `full` keeps only the layer's inputs; `selective` keeps matrix products and attention too.
    """
    if kind == "none":
        return
    arguments: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if kind == "selective":
        arguments["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    layer.forward = functools.partial(checkpoint, layer.forward, **arguments)


def _policy(ctx: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
