"""The trainer alone on fake data: model FLOP/s utilisation, tokens per second and peak memory of one GPU.

    python -m tests.bench.gpu_train            four cases on a GPU: full fine-tuning and LoRA, at 16k and 65k tokens
    python -m tests.bench.gpu_train --tiny     the same code with tiny shapes, on a CPU too

Shapes are those of Qwen3-0.6B (full fine-tuning) and Qwen3-4B (LoRA r16 on all linear layers) with random weights, in
bfloat16, with full recomputation, 2 micro-batches of one sequence each a step: "16k" is one sequence of 16,384 tokens
in each micro-batch. Every token is scored. The first steps warm up, the median of the others counts. Needs torch and
transformers, and no network. Prints one JSON line per case; exits 1 where a case misses its target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from agentenv.trainers.config import AlgorithmConfig
from agentenv.trainers.mfu import ModelShape, model_shape, peak_flops
from agentenv.trainers.model import PackedModel
from agentenv.trainers.optimizer import OptimizerConfig
from agentenv.trainers.sample import Sample
from agentenv.trainers.worker import UpdatePlan, Worker

FORMULA = (
    "mfu = (6 T N_trained + 4 T N_frozen + 6 S N_head (4 if frozen) + 12 layers heads head_size sum length^2) "
    "/ (seconds * peak); no recomputation"
)
WARM_UPS, REPEATS, MICRO_BATCHES = 2, 5, 2
_COMMON = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
_ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}
QWEN3_06B = {
    **_COMMON,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
}
QWEN3_4B = {
    **_COMMON,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
}
TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}
LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement.

    Attributes:
        name: printed.
        sizes: of the model.
        tokens: of a micro-batch.
        lora_rank: None is full fine-tuning.
        least_mfu: the target; None has none.
    """

    name: str
    sizes: dict[str, Any]
    tokens: int
    lora_rank: int | None = None
    least_mfu: float | None = None


CASES = (
    Case(name="full_0.6b_16k", sizes=QWEN3_06B, tokens=16_384, least_mfu=0.22),
    Case(name="full_0.6b_65k", sizes=QWEN3_06B, tokens=65_536, least_mfu=0.32),
    Case(name="lora_r16_4b_16k", sizes=QWEN3_4B, tokens=16_384, lora_rank=16, least_mfu=0.26),
    Case(name="lora_r16_4b_65k", sizes=QWEN3_4B, tokens=65_536, lora_rank=16, least_mfu=0.38),
)
TINY_CASES = (
    Case(name="full_tiny", sizes=TINY, tokens=128),
    Case(name="lora_r16_tiny", sizes=TINY, tokens=128, lora_rank=16),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that it runs")
    parser.add_argument("--case", help="one case by its name")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not options.tiny and device == "cpu":
        print("no GPU here; --tiny runs the same code with tiny shapes on a CPU", file=sys.stderr)
        return 2
    cases = [c for c in (TINY_CASES if options.tiny else CASES) if options.case in (None, c.name)]
    if not cases:
        print(f"no case {options.case}; there are {', '.join(c.name for c in CASES)}", file=sys.stderr)
        return 2
    is_good = True
    for case in cases:
        line = measure(case, device=torch.device(device))
        print(json.dumps(line), flush=True)
        is_good &= line["ok"]
    return 0 if is_good else 1


def measure(case: Case, *, device: torch.device) -> dict[str, Any]:
    """Train on fake samples and describe the median step."""
    is_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if is_gpu else torch.float32
    worker, shape = _worker(case, device=device, dtype=dtype)
    samples = [fake_sample(index, length=case.tokens, vocab=case.sizes["vocab_size"]) for index in range(MICRO_BATCHES)]
    plan = UpdatePlan(token_budget=case.tokens, num_steps=100, seed=0, version=0)
    seconds: list[float] = []
    metrics: dict[str, float] = {}
    for step in range(WARM_UPS + REPEATS):
        if is_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        metrics = worker.update(samples, plan=plan)
        if is_gpu:
            torch.cuda.synchronize()
        if step >= WARM_UPS:
            seconds.append(time.perf_counter() - started)
    assert metrics["non_finite_steps"] == 0
    return _line(case, shape, seconds=statistics.median(seconds), device=device, dtype=dtype, metrics=metrics)


def fake_sample(index: int, *, length: int, vocab: int) -> Sample:
    """Return a sample of random tokens, all sampled by the policy, with log-probs near those of random weights."""
    rng = np.random.default_rng(index)
    ones, zeros = np.ones(length, np.float32), np.zeros(length, np.float32)
    return Sample(
        sample_id=f"fake/{index}/0",
        token_ids_T=rng.integers(0, vocab, length).astype(np.int32),
        is_sampled_T=np.ones(length, np.bool_),
        behaviour_logprob_T=np.full(length, -np.log(vocab), np.float32),
        version_T=np.zeros(length, np.int32),
        turn_T=np.zeros(length, np.int32),
        advantage_T=rng.normal(size=length).astype(np.float32),
        policy_weight_T=ones,
        cross_entropy_weight_T=zeros,
        kl_weight_T=zeros,
    )


def _worker(case: Case, *, device: torch.device, dtype: torch.dtype) -> tuple[Worker, ModelShape]:
    config = Qwen3Config(**case.sizes, max_position_embeddings=case.tokens, rope_parameters=_ROPE)
    torch.manual_seed(0)
    with torch.device(device):
        causal_lm: Any = Qwen3ForCausalLM(config)
        causal_lm.to(dtype)
    model = PackedModel(causal_lm)
    if case.lora_rank is not None:
        from peft import LoraConfig, inject_adapter_in_model

        causal_lm.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=case.lora_rank, target_modules=LORA_LAYERS), causal_lm)
    # transformers recomputes each layer in the backward pass; inputs need a gradient for that where layers are frozen
    causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    causal_lm.train()
    return Worker(model, optimizer=OptimizerConfig(), algorithm=AlgorithmConfig()), model_shape(causal_lm)


def _line(
    case: Case,
    shape: ModelShape,
    *,
    seconds: float,
    device: torch.device,
    dtype: torch.dtype,
    metrics: dict[str, float],
) -> dict[str, Any]:
    num_tokens = MICRO_BATCHES * case.tokens
    peak = peak_flops(device, dtype)
    lengths = [case.tokens] * MICRO_BATCHES
    mfu = None if peak is None else shape.flops(lengths, num_scored=num_tokens) / (seconds * peak)
    return {
        "name": case.name,
        "mfu": None if mfu is None else round(mfu, 4),
        "target": "" if case.least_mfu is None else f">= {case.least_mfu:g}",
        "ok": case.least_mfu is None or (mfu is not None and mfu >= case.least_mfu),
        "tokens_per_s": round(num_tokens / seconds, 1),
        "step_s": round(seconds, 4),
        "peak_gpu_gib": round(metrics.get("peak_gpu_gib", 0.0), 2),
        "peak_host_gib": round(metrics["peak_host_gib"], 2),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "peak_tflops": None if peak is None else round(peak / 1e12, 3),
        "torch": str(torch.__version__),
        "formula": FORMULA,
    }


if __name__ == "__main__":
    sys.exit(main())
