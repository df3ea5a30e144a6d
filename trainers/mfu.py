"""How well an update uses the machine: model FLOP/s utilisation, tokens per second, packing, peak memory.

Shapes: B sequences.
"""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PEAK_BF16_FLOPS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A40": 150e12,
    "RTX 4090": 165e12,
    "MI300X": 1307e12,
    "MI250": 362e12,
}
"""Dense bfloat16 FLOP/s by a part of the device's name, from the makers' data sheets; the first that fits counts."""

MACHINE_METRICS = frozenset({"update_s", "tokens_per_s", "packing_efficiency", "mfu", "peak_host_gib", "peak_gpu_gib"})
"""Metrics of an update that depend on the machine and on how work is shared out, not on what is learned."""

_GIB = 2**30
_CPU_PROBE_SIZE = 768


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What decides how many FLOPs a token costs.

    Attributes:
        trained: weights of the layers that multiply a token and are trained; of experts, those that a token visits.
        frozen: the same, not trained.
        head: weights of the output embedding.
        is_head_trained: whether those are trained.
        layers: attention layers.
        width: query heads times the size of a head.
    """

    trained: int
    frozen: int
    head: int
    is_head_trained: bool
    layers: int
    width: int

    def flops(self, lengths: Sequence[int], *, num_scored: int) -> float:
        """Return the FLOPs of one forward and backward pass over sequences of these lengths.

        With T tokens, of which `num_scored` reach the output embedding:

            6 T trained + 4 T frozen + 6 (or 4) num_scored head + 12 layers width sum_b length_b^2

        A weight costs 2 FLOPs in the forward pass, 2 for the gradient of its input, and 2 for its own, which frozen
        ones do not have. The last term is attention (scores and values, forward and backward) over the full square, as
        in PaLM (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B). Recomputation is not counted, nor
        are passes without gradient.
        """
        num_tokens = sum(lengths)
        head = (6 if self.is_head_trained else 4) * self.head * num_scored
        attention = 12 * self.layers * self.width * sum(length * length for length in lengths)
        return float(num_tokens * (6 * self.trained + 4 * self.frozen) + head + attention)


def model_shape(model: nn.Module) -> ModelShape:
    """Read the shape off a Hugging Face causal LM, with or without adapters.

    Vectors (norms, biases) cost next to nothing and are left out, and so is the input embedding, which is looked up.
    """
    hugging: Any = model
    config = hugging.config.get_text_config()
    embedding, head = hugging.get_input_embeddings(), hugging.get_output_embeddings()
    outside = {id(parameter) for module in (embedding, head) if module is not None for parameter in module.parameters()}
    visited = _visited_share(config)
    counts = {True: 0.0, False: 0.0}
    for name, parameter in model.named_parameters():
        if id(parameter) not in outside and parameter.ndim >= 2:
            counts[parameter.requires_grad] += parameter.numel() * (visited if ".experts." in name else 1.0)
    weight = head.weight if isinstance(head, nn.Linear) else None
    heads = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelShape(
        trained=round(counts[True]),
        frozen=round(counts[False]),
        head=0 if weight is None else weight.numel(),
        is_head_trained=weight is not None and weight.requires_grad,
        layers=int(config.num_hidden_layers),
        width=heads * int(head_dim),
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the FLOP/s that a device can reach at best in matrix products; None where that is not known.

    GPUs are looked up in `PEAK_BF16_FLOPS`, whatever `dtype` is: float32 weights may be computed with in bfloat16. A
    CPU is measured once, by a matrix product in `dtype` with the threads that torch has now.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((flops for part, flops in PEAK_BF16_FLOPS.items() if part in name), None)
    return _measured_peak(dtype, torch.get_num_threads()) if device.type == "cpu" else None


def update_efficiency(
    model: nn.Module,
    *,
    lengths: Sequence[int],
    num_scored: int,
    num_passes: int,
    num_micro_batches: int,
    num_ranks: int,
    token_budget: int,
    seconds: float,
) -> dict[str, float]:
    """Describe one update.

    Args:
        model: the causal LM that was trained.
        lengths: tokens of each sample of the batch, over all ranks.
        num_scored: tokens whose log-prob was taken, over all ranks.
        num_passes: forward and backward passes over the batch.
        num_micro_batches: over all ranks and passes.
        num_ranks: devices that computed.
        token_budget: tokens that a micro-batch may hold.
        seconds: the update's duration.

    Returns:
        `tokens_per_s`; `packing_efficiency`, tokens over (micro-batches times budget); `mfu`, `ModelShape.flops` over
        seconds, ranks and peak FLOP/s, left out where the peak is not known; `peak_host_gib`, the largest resident
        memory of this process so far; on a GPU `peak_gpu_gib`, the most that tensors took since the last call.
    """
    parameter = next(model.parameters())
    num_tokens = sum(lengths) * num_passes
    metrics = {
        "tokens_per_s": num_tokens / seconds,
        "packing_efficiency": num_tokens / (num_micro_batches * token_budget),
        "peak_host_gib": _peak_host_bytes() / _GIB,
    }
    peak = peak_flops(parameter.device, parameter.dtype)
    if peak is not None:
        flops = num_passes * model_shape(model).flops(lengths, num_scored=num_scored)
        metrics["mfu"] = flops / (seconds * num_ranks * peak)
    if parameter.device.type == "cuda":
        metrics["peak_gpu_gib"] = torch.cuda.max_memory_allocated(parameter.device) / _GIB
        torch.cuda.reset_peak_memory_stats(parameter.device)
    return metrics


def _visited_share(config: Any) -> float:
    """The share of a layer's experts that one token visits; 1 without experts."""
    chosen = getattr(config, "num_experts_per_tok", None)
    total = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    return chosen / total if chosen and total else 1.0


@functools.lru_cache
def _measured_peak(dtype: torch.dtype, num_threads: int) -> float:
    """Measure on the processor; the number of threads is part of the question, not of the answer."""
    left = torch.ones(_CPU_PROBE_SIZE, _CPU_PROBE_SIZE, dtype=dtype)
    best = float("inf")
    with torch.no_grad():
        torch.mm(left, left)
        for _ in range(3):
            started = time.perf_counter()
            torch.mm(left, left)
            best = min(best, time.perf_counter() - started)
    return 2 * _CPU_PROBE_SIZE**3 / best


def _peak_host_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
