"""How well an update uses the machine: numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from agentenv.trainers.mfu import ModelShape, model_shape, peak_flops, update_efficiency

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
# of one layer: q and o 8 x 8, k and v 8 x 4; gate, up and down 8 x 16
LAYER = 2 * 64 + 2 * 32 + 3 * 128


def llama(**options):
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, intermediate_size=16, **SIZES, **options))


def test_flops_are_those_of_the_formula():
    shape = ModelShape(trained=100, frozen=10, head=50, is_head_trained=True, layers=2, width=8)

    # 5 tokens: 6 * 5 * 100 + 4 * 5 * 10; 3 scored: 6 * 3 * 50; attention 12 * 2 * 8 * (2^2 + 3^2)
    assert shape.flops([2, 3], num_scored=3) == 3000 + 200 + 900 + 2496


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_count_and_a_looked_up_embedding_does_not(tied):
    shape = model_shape(llama(tie_word_embeddings=tied))

    assert shape == ModelShape(trained=2 * LAYER, frozen=0, head=400, is_head_trained=True, layers=2, width=8)


def test_frozen_matrices_cost_four_and_adapters_six():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    shape = model_shape(model)

    # an adapter of q: 8 x 2 and 2 x 8, in both layers
    assert (shape.trained, shape.frozen, shape.head, shape.is_head_trained) == (2 * 32, 2 * LAYER, 400, False)


def test_a_token_visits_the_chosen_experts_only():
    options: dict[str, Any] = {"head_dim": 4, "moe_intermediate_size": 4, "num_experts": 4, "num_experts_per_tok": 1}
    config = Qwen3MoeConfig(vocab_size=50, **SIZES, **options)
    shape = model_shape(Qwen3MoeForCausalLM(config))

    # attention as above; router 4 x 8; one expert of three 8 x 4 matrices
    assert shape.trained == 2 * (2 * 64 + 2 * 32 + 32 + 96)


def test_an_update_is_described_by_its_tokens_and_seconds():
    model = llama()
    metrics = update_efficiency(
        model,
        lengths=[30, 50],
        num_scored=40,
        num_passes=2,
        num_micro_batches=4,
        num_ranks=1,
        token_budget=50,
        seconds=2.0,
    )
    peak = peak_flops(torch.device("cpu"), torch.float32)

    assert metrics["tokens_per_s"] == 80  # 160 tokens in 2 s
    assert metrics["packing_efficiency"] == 0.8  # 160 of 4 * 50
    assert peak is not None
    assert metrics["mfu"] == pytest.approx(model_shape(model).flops([30, 50], num_scored=40) / peak)
    assert 0.01 < metrics["peak_host_gib"] < 1000
    assert "peak_gpu_gib" not in metrics


def test_a_device_of_unknown_peak_has_no_mfu():
    assert peak_flops(torch.device("meta"), torch.bfloat16) is None
