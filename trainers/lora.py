"""Low-rank adapters (LoRA) through peft: added to a model, switched off for the reference, merged for engines.

Hu et al., arXiv 2106.09685, equation 3: an adapted layer computes W x + (alpha / rank) B A x, and B begins at 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from agentenv.config import Config
from agentenv.engine.protocol import LoraAdapter
from agentenv.errors import ModelError, describe

ADAPTER = "default"
"""Name under which peft keeps the one adapter of a model."""
_BASE, _DOWN, _UP = ".base_layer.", f".lora_A.{ADAPTER}.", f".lora_B.{ADAPTER}."
_PEFT_PREFIX = "base_model.model."


class LoraConfig(Config):
    """A low-rank adapter; everything else of the model is frozen."""

    rank: int = Field(default=16, ge=1)
    """Rank (r) of the adapter's matrices."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers that are adapted, e.g. [q_proj, v_proj]; all-linear is all but the output layer.
    Experts of a mixture stay frozen."""


def add_lora(causal_lm: PreTrainedModel, config: LoraConfig, *, seed: int) -> None:
    """Put an adapter into a model, in place, and freeze everything else.

    The model computes what it did before until the adapter is trained. In half-precision models the adapter's matrices
    are float32, because small updates would be lost in half precision.

    Args:
        causal_lm: without an adapter.
        config: of the adapter.
        seed: of its random matrices; every rank and every replay gets the same ones.

    Raises:
        ModelError: no layer has one of the names, or a layer is not a plain linear one.
    """
    import peft

    made = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] - typed int, used as a factor
        target_modules=_targets(causal_lm, config.target_modules),
        task_type=peft.TaskType.CAUSAL_LM,
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(made, causal_lm, adapter_name=ADAPTER)
    except ValueError as error:
        raise ModelError(f"{type(causal_lm).__name__} takes no adapter: {describe(error)}") from error
    # set here as well, so that the shape of an adapter does not depend on what peft notes on a model
    causal_lm.peft_config = {ADAPTER: made}  # pyright: ignore[reportAttributeAccessIssue]
    for parameter in causal_lm.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def lora_of(causal_lm: nn.Module) -> LoraAdapter | None:
    """Return the shape of a model's adapter; None without one."""
    config: Any = getattr(causal_lm, "peft_config", {}).get(ADAPTER)
    if config is None:
        return None
    adapted = {name.rpartition(".")[2] for name, _ in _adapted_layers(causal_lm)}
    return LoraAdapter(rank=config.r, alpha=config.lora_alpha, target_modules=tuple(sorted(adapted)))


@contextmanager
def adapter_off(causal_lm: nn.Module) -> Iterator[None]:
    """Let a model compute without its adapter: what it was before the adapter was trained.

    peft's own switch also changes `requires_grad`, which a sharded model notes once and for all when it first runs.
    """
    layers = [layer for _, layer in _adapted_layers(causal_lm)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def merged(tensors: Mapping[str, Tensor], lora: LoraAdapter) -> dict[str, Tensor]:
    """Return the weights of the plain model: W + (alpha / rank) B A, under the names without adapter.

    Args:
        tensors: whole (not sharded) weights of a model with an adapter, by name; other tensors stay by reference.
        lora: the adapter's shape.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _DOWN in name or _UP in name:
            continue
        plain = name.replace(_BASE, ".")
        down = tensors.get(name.replace(_BASE, _DOWN)) if plain != name else None
        if down is None:
            out[plain] = tensor
            continue
        change = tensors[name.replace(_BASE, _UP)] @ down * (lora.alpha / lora.rank)
        out[plain] = (tensor.to(change.dtype) + change).to(tensor.dtype)
    return out


def adapter_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the adapter's matrices alone, under the names of a peft checkpoint.

    Args:
        tensors: weights of a model with an adapter, by name.
    """
    return {
        _PEFT_PREFIX + name.replace(f".{ADAPTER}.", "."): tensor
        for name, tensor in tensors.items()
        if _DOWN in name or _UP in name
    }


def merge_in_place(causal_lm: PreTrainedModel) -> None:
    """Add a model's adapter to its weights and take the adapter out: a plain model that computes the same.

    All parameters can be trained again. A model without an adapter stays as it is.
    """
    lora = lora_of(causal_lm)
    if lora is None:
        return
    for name, layer in list(_adapted_layers(causal_lm)):
        base, own = layer.get_base_layer(), dict(layer.named_parameters())
        parts = {f"x.{key}": value for key, value in own.items()}
        base.weight.data = merged(parts, lora)["x.weight"]
        causal_lm.set_submodule(name, base)
    del causal_lm.peft_config
    causal_lm.requires_grad_(True)


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "_disable_adapters"))


def _targets(causal_lm: PreTrainedModel, wanted: str | tuple[str, ...]) -> list[str]:
    """Return the full names of the layers to adapt.

    Refuse names that no linear layer has, and the output layer, whose matrix the chunked head reads itself. Experts
    are no linear layers but stacked matrices; peft would adapt them together with layers that have their names.
    """
    if any(isinstance(module, Conv1D) for module in causal_lm.modules()):
        raise ModelError(
            f"{type(causal_lm).__name__} keeps its matrices transposed (Conv1D), and adapters are for plain linear "
            "layers; train the whole model (model.lora: null), or take a newer family"
        )
    head = causal_lm.get_output_embeddings()
    linear = [n for n, module in causal_lm.named_modules() if isinstance(module, nn.Linear) and module is not head]
    last = {name: name.rpartition(".")[2] for name in linear}
    if isinstance(wanted, str):
        return linear
    unknown = [name for name in wanted if name not in last.values()]
    if unknown:
        raise ModelError(
            f"model.lora.target_modules names {', '.join(unknown)}; {type(causal_lm).__name__} has the linear layers "
            f"{', '.join(sorted(set(last.values())))}, or take all-linear"
        )
    return [name for name in linear if last[name] in wanted]
