"""Random causal LMs of several architectures, small enough for a test and rough enough to tell tokens apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB_SIZE = 97
_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def qwen3(*, seed: int = 0, tied: bool = True) -> PreTrainedModel:
    """Return a Qwen3 with norms on queries and keys."""
    return _rough(lambda: Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=16, tie_word_embeddings=tied)), seed=seed)


def llama(*, seed: int = 0) -> PreTrainedModel:
    """Return a Llama."""
    return _rough(lambda: LlamaForCausalLM(LlamaConfig(**_SIZES)), seed=seed)


def qwen2(*, seed: int = 0) -> PreTrainedModel:
    """Return a Qwen2, whose projections have biases."""
    return _rough(lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES)), seed=seed)


def mistral(*, seed: int = 0) -> PreTrainedModel:
    """Return a Mistral that sees the last 9 tokens only."""
    return _rough(lambda: MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=9)), seed=seed)


def gemma2(*, seed: int = 0) -> PreTrainedModel:
    """Return a Gemma 2: windows in every other layer, soft caps low enough to matter on scores and logits."""
    config = Gemma2Config(
        **_SIZES, head_dim=16, sliding_window=7, attn_logit_softcapping=0.5, final_logit_softcapping=2.0
    )
    model = _rough(lambda: Gemma2ForCausalLM(config), seed=seed)
    model.set_attn_implementation("eager")  # the default leaves the soft cap out
    return model


def gpt2(*, seed: int = 0) -> PreTrainedModel:
    """Return a GPT-2: learned positions, and no key-value groups."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=1
    )
    return _rough(lambda: GPT2LMHeadModel(config), seed=seed)


def gemma3(*, seed: int = 0) -> PreTrainedModel:
    """Return a Gemma 3: a layer with a window and one without, each with its own rotation base."""
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**_SIZES, head_dim=16, sliding_window=7, layer_types=layers)
    return _rough(lambda: Gemma3ForCausalLM(config), seed=seed)


def qwen3_moe(*, seed: int = 0) -> PreTrainedModel:
    """Return a Qwen3 whose tokens go to two of four experts."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
    return _with_plain_experts(
        _rough(lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**_SIZES, "head_dim": 16, **experts})), seed=seed)
    )


def gpt_oss(*, seed: int = 0) -> PreTrainedModel:
    """Return a GPT-OSS: experts, a learned sink per head, and a window in every other layer."""
    layers = ["sliding_attention", "full_attention"]
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    config = GptOssConfig(
        **{**_SIZES, "head_dim": 16},
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=7,
        layer_types=layers,
        rope_parameters=rope,
    )
    model = _with_plain_experts(_rough(lambda: GptOssForCausalLM(config), seed=seed))
    model.set_attn_implementation("eager")  # the only one with sinks
    return model


def phi3(*, seed: int = 0) -> PreTrainedModel:
    """Return a Phi-3, whose projections are fused."""
    return _rough(lambda: Phi3ForCausalLM(Phi3Config(**{**_SIZES, "pad_token_id": 0})), seed=seed)


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": qwen3,
    "llama": llama,
    "qwen2": qwen2,
    "mistral": mistral,
    "gemma2": gemma2,
    "gpt2": gpt2,
    "gemma3": gemma3,
    "qwen3_moe": qwen3_moe,
    "gpt_oss": gpt_oss,
    "phi3": phi3,
}


@torch.no_grad()
def reference_logprobs(model: PreTrainedModel, token_ids: Sequence[int], *, temperature: float = 1.0) -> Tensor:
    """Return log p(token t | tokens before it) of tokens 1, 2, ... of one sequence, by the model's own forward."""
    token_T = torch.tensor(list(token_ids))
    logit_TV = model(input_ids=token_T[None], use_cache=False).logits[0].double() / temperature
    return logit_TV[:-1].log_softmax(-1).gather(1, token_T[1:, None])[:, 0]


def _with_plain_experts(model: PreTrainedModel) -> PreTrainedModel:
    """Let experts be computed one by one: the grouped kernel takes no float64."""
    model.set_experts_implementation("eager")
    return model


def _rough(make: Callable[[], PreTrainedModel], *, seed: int) -> PreTrainedModel:
    """Build a model whose weights are large enough that its predictions differ from token to token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.15)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
