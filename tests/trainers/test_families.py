"""Every supported model family, with small random weights: scores, gradients, training, saving and adapters."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from agentenv.byte_tokenizer import byte_backend
from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.protocol import SamplingParams
from agentenv.errors import ModelError
from agentenv.trainers.config import AlgorithmConfig
from agentenv.trainers.lora import LoraConfig, add_lora, merge_in_place
from agentenv.trainers.model import PackedModel, Policy, save_policy
from agentenv.trainers.optimizer import OptimizerConfig
from agentenv.trainers.worker import UpdatePlan, Worker
from tests.engine.small_models import ARCHITECTURES, VOCAB_SIZE, gpt2, reference_logprobs
from tests.trainers.samples import policy_sample
from tests.trainers.test_model import LENGTHS, boundaries, score, sequences_of

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "qwen3_moe", "gpt_oss", "phi3"]
# transformers rounds attention weights (Gemma, GPT-OSS) to float32 whatever the model's dtype
ROUNDED = {"gemma2": 1e-6, "gemma3": 1e-6, "gpt_oss": 5e-6}
PLAN = UpdatePlan(token_budget=60, num_steps=10, seed=0, version=0)


def double(name: str) -> PreTrainedModel:
    torch.set_num_threads(1)
    made: Any = ARCHITECTURES[name]()
    return made.double()


def single(name: str) -> PreTrainedModel:
    torch.set_num_threads(1)
    return ARCHITECTURES[name]()


@torch.no_grad()
def padded_logprobs(model: PreTrainedModel, sequences: list[Tensor]) -> Tensor:
    """Log-probs of all sequences by transformers' own padded forward, laid end to end; 0 at first tokens.

    Padding comes last, where causal attention hides it, so a mask is not needed. With one, transformers' Gemma 2 gives
    NaN: padding beyond the window sees nothing at all.
    """
    width = max(map(len, sequences))
    token_BT = torch.stack([torch.cat((ids, ids.new_zeros(width - len(ids)))) for ids in sequences])
    is_token_BT = torch.stack([torch.arange(width) < len(ids) for ids in sequences])
    logit_BTV = model(input_ids=token_BT, use_cache=False).logits
    logprob_BT = logit_BTV[:, :-1].log_softmax(-1).gather(2, token_BT[:, 1:, None])[:, :, 0]
    logprob_BT = torch.cat((logprob_BT.new_zeros(len(sequences), 1), logprob_BT), dim=1)
    return logprob_BT[is_token_BT]


def imitated(count: int = 4) -> list[Any]:
    samples = [policy_sample(f"g/{i}/0", seed=i, length=16 + 5 * i, advantage=0.0) for i in range(count)]
    return [
        replace(
            s,
            token_ids_T=np.random.default_rng(i).integers(0, VOCAB_SIZE, len(s)).astype(np.int32),
            policy_weight_T=np.zeros(len(s), dtype=np.float32),
            kl_weight_T=np.zeros(len(s), dtype=np.float32),
            cross_entropy_weight_T=s.is_sampled_T.astype(np.float32),
        )
        for i, s in enumerate(samples)
    ]


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_backend(), eos_token="<|im_end|>", chat_template="{{ messages }}"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pack_scores_like_transformers_own_padded_batch_in_float64(name):
    plain, sequences = double(name), sequences_of()

    scores = score(PackedModel(copy.deepcopy(plain)), sequences)

    gap = (scores.logprob_T - padded_logprobs(plain, sequences)).abs().max()
    assert gap < ROUNDED.get(name, 1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_reaches_every_parameter(name):
    model = PackedModel(double(name))

    score(model, sequences_of((60, 40, 50))).logprob_T.sum().backward()

    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
        if "experts" in parameter_name and parameter.ndim == 3:
            assert (parameter.grad.abs().sum((1, 2)) > 0).all(), f"an expert of {parameter_name} has no gradient"


@pytest.mark.parametrize("name", FAMILIES)
def test_three_steps_lower_the_loss(name):
    worker = Worker(
        PackedModel(single(name)), optimizer=OptimizerConfig(learning_rate=3e-3), algorithm=AlgorithmConfig()
    )

    losses = [worker.update(imitated(), plan=PLAN)["cross_entropy"] for _ in range(4)]

    assert losses == sorted(losses, reverse=True)
    assert losses[3] < 0.98 * losses[0]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_policy_loads_in_transformers_with_the_same_logits(tmp_path: Path, name, lora):
    model = PackedModel(single(name))
    if lora:
        add_lora(model.causal_lm, LoraConfig(rank=2), seed=0)
    worker = Worker(model, optimizer=OptimizerConfig(learning_rate=1e-2), algorithm=AlgorithmConfig())
    worker.update(imitated(), plan=PLAN)

    save_policy(Policy(model=model, tokenizer=tokenizer()), tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")

    expected = model.causal_lm
    if lora:
        merge_in_place(expected)  # what was saved: merging changes the order of sums, and so the last bits
    for each in (loaded, expected):
        each.set_attn_implementation("eager")
        each.set_experts_implementation("eager")
    token_T = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(token_T).logits, expected(token_T).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_trains_alone_and_lowers_the_loss(name):
    model = PackedModel(single(name))
    add_lora(model.causal_lm, LoraConfig(rank=4), seed=0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    worker = Worker(model, optimizer=OptimizerConfig(learning_rate=1e-2), algorithm=AlgorithmConfig())

    losses = [worker.update(imitated(), plan=PLAN)["cross_entropy"] for _ in range(4)]

    assert losses[3] < losses[0]
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if "lora_" in n}


@pytest.mark.parametrize("name", FAMILIES)
async def test_the_embedded_engine_serves_the_family_with_the_trainers_log_probs(name):
    plain = single(name)
    packed = PackedModel(copy.deepcopy(plain))
    engine = HFEngine(packed.causal_lm, config=HFEngineConfig(max_length=128))
    try:
        prompt = list(range(3, 20))
        params = SamplingParams(max_tokens=40, seed=1)
        completion = await engine.generate(prompt, params, session_id="s", deadline_s=60)
    finally:
        await engine.close()

    ids = [*prompt, *completion.token_ids]
    own_T = score(packed, [torch.tensor(ids)]).logprob_T[len(prompt) :]
    got_T = torch.tensor(list(completion.logprobs))
    assert torch.allclose(got_T, own_T.detach(), atol=1e-4)
    assert torch.allclose(got_T.double(), reference_logprobs(plain, ids)[len(prompt) - 1 :], atol=1e-4)


def test_a_window_really_hides_what_lies_before_it():
    model = PackedModel(double("mistral"))  # 2 layers that see 9 tokens: 17 tokens in all
    (ids,) = sequences_of((40,))
    changed = ids.clone()
    changed[0] = (changed[0] + 1) % VOCAB_SIZE

    one, other = (score(model, [x]).logprob_T for x in (ids, changed))

    reach = 2 * (9 - 1)
    assert torch.equal(one[reach + 2 :], other[reach + 2 :])
    assert not torch.isclose(one[2 : reach + 2], other[2 : reach + 2]).all()


def test_experts_get_no_auxiliary_loss():
    """The gradient of the router is that of the log-probs alone."""
    plain = double("qwen3_moe")
    packed = PackedModel(copy.deepcopy(plain))
    (ids,) = sequences_of((40,))

    score(packed, [ids]).logprob_T.sum().backward()
    logit_TV = plain(input_ids=ids[None], use_cache=False).logits[0]
    logit_TV[:-1].log_softmax(-1).gather(1, ids[1:, None]).sum().backward()

    gates = {n: p.grad for n, p in packed.causal_lm.named_parameters() if n.endswith("mlp.gate.weight")}
    own = dict(plain.named_parameters())
    assert len(gates) == 2
    for name, gradient in gates.items():
        assert gradient is not None
        assert torch.allclose(gradient, torch.as_tensor(own[name].grad), atol=1e-10)


def test_a_family_with_transposed_matrices_takes_no_adapter():
    with pytest.raises(ModelError, match="GPT2LMHeadModel keeps its matrices transposed"):
        add_lora(gpt2(), LoraConfig(), seed=0)


def test_lengths_of_the_pack_cover_windows_and_single_tokens():
    assert min(LENGTHS) == 1
    assert max(LENGTHS) > 9
    assert int(boundaries(sequences_of())[-1]) == sum(LENGTHS)
