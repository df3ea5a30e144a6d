"""Adapters: what trains, what the reference is, what engines and checkpoints get."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader

from agentenv.engine import weights
from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.protocol import LoraAdapter, SamplingParams, WeightManifest
from agentenv.engine.weights import weights_checksum
from agentenv.errors import ModelError, UsageError
from agentenv.trainers.config import AlgorithmConfig
from agentenv.trainers.correction import preset
from agentenv.trainers.lora import LoraConfig, adapter_off, adapter_weights, add_lora, lora_of, merge_in_place, merged
from agentenv.trainers.losses import LossConfig
from agentenv.trainers.model import PackedModel, named_weights
from agentenv.trainers.optimizer import OptimizerConfig
from agentenv.trainers.state import load_state, save_state
from agentenv.trainers.tiny import make_tiny_model
from agentenv.trainers.worker import UpdatePlan, Worker
from tests.engine.small_models import qwen3, reference_logprobs
from tests.trainers.samples import policy_sample

PLAN = UpdatePlan(token_budget=10_000, num_steps=10, seed=0, version=0)
LORA = LoraConfig(rank=4, alpha=8.0)


def tiny(*, dtype: torch.dtype = torch.float64) -> PackedModel:
    torch.set_num_threads(1)
    made: Any = make_tiny_model(40, seed=1, hidden_size=16, num_layers=2, num_heads=2)
    return PackedModel(made.to(dtype))


def worker_of(model: PackedModel, **options: Any) -> Worker:
    loss = LossConfig(policy="ppo_clip", kl_coefficient=options.pop("kl", 0.0), kl_estimator="k2")
    algorithm = AlgorithmConfig(loss=loss, correction=preset("none"))
    return Worker(model, optimizer=OptimizerConfig(learning_rate=1e-2), algorithm=algorithm, **options)


def adapted(config: LoraConfig = LORA) -> PackedModel:
    model = tiny()
    add_lora(model.causal_lm, config, seed=0)
    return model


def samples_of(count: int = 4) -> list[Any]:
    return [policy_sample(f"g/{i}/0", seed=i, length=8 + i, advantage=(-1.0) ** i) for i in range(count)]


def trained(model: PackedModel, *, updates: int = 3) -> Worker:
    worker = worker_of(model)
    for _ in range(updates):
        worker.update(samples_of(), plan=PLAN)
    return worker


def scores(worker: Worker) -> Tensor:
    scored = worker.logprobs(samples_of(), token_budget=10_000)
    return torch.cat(list(scored.values()))


def test_a_new_adapter_changes_nothing():
    assert torch.equal(scores(worker_of(tiny())), scores(worker_of(adapted())))


def test_only_the_adapter_trains():
    model = adapted()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    trained(model)

    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_all_linear_adapts_everything_but_the_output_layer():
    shape = lora_of(adapted().causal_lm)

    names = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert shape == LoraAdapter(rank=4, alpha=8.0, target_modules=names)


def test_named_modules_alone_are_adapted():
    model = adapted(LoraConfig(rank=2, target_modules=("q_proj", "v_proj")))

    names = {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"q_proj", "v_proj"}


@pytest.mark.parametrize("name", ["q_pro", "lm_head"])
def test_a_name_that_cannot_be_adapted_is_answered_with_those_that_can(name):
    with pytest.raises(ModelError, match=rf"target_modules names {name}; .* linear layers down_proj, .*v_proj"):
        adapted(LoraConfig(target_modules=(name,)))


def test_the_same_seed_gives_the_same_adapter_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)

    first, second = adapted(), adapted()

    assert torch.equal(torch.rand(1), expected)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_adapter_of_a_half_precision_model_is_kept_in_float32():
    model = tiny(dtype=torch.bfloat16)
    add_lora(model.causal_lm, LORA, seed=0)

    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.isfinite(scores(trained(model))).all()


def test_switched_off_the_model_is_what_it_was_and_switched_on_again_it_trains_on():
    model = adapted()
    worker, before = trained(model), scores(worker_of(tiny()))
    after = scores(worker)

    with adapter_off(model.causal_lm):
        off = scores(worker)

    assert not torch.allclose(after, before)
    assert torch.equal(off, before)
    assert torch.equal(scores(worker), after)
    assert any(p.requires_grad for p in model.parameters())


def test_a_kl_penalty_towards_the_adapter_switched_off_equals_one_towards_a_copy():
    reference, flat = tiny(), []
    for options in ({}, {"reference": reference}):
        model = trained(adapted()).model  # away from the reference, so that there is a KL
        worker = worker_of(model, kl=0.5, **options)
        kl = [worker.update(samples_of(), plan=PLAN)["kl"] for _ in range(2)]
        assert kl[0] > 0
        flat.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    assert torch.allclose(*flat, rtol=0, atol=1e-12)


def test_without_adapter_and_without_reference_a_kl_penalty_is_refused():
    with pytest.raises(UsageError, match="no reference policy"):
        worker_of(tiny(), kl=0.1)


def test_merged_weights_have_the_plain_names_and_compute_the_same():
    worker, plain = trained(adapted()), tiny()
    weights.load_weights(plain.causal_lm, worker.weights())

    assert set(worker.weights()) == set(named_weights(plain))
    assert torch.allclose(scores(worker), scores(worker_of(plain)), rtol=0, atol=1e-6)
    assert not torch.allclose(scores(worker), scores(worker_of(tiny())), rtol=0, atol=1e-3)


def test_merging_by_hand_numbers():
    down, up = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    out = merged(
        {
            "a.q.base_layer.weight": torch.eye(2),
            "a.q.lora_A.default.weight": down,
            "a.q.lora_B.default.weight": up,
            "a.q.base_layer.bias": torch.ones(2),
            "norm.weight": torch.ones(1),
        },
        LoraAdapter(rank=1, alpha=2.0, target_modules=("q",)),
    )

    # up @ down = [[3, 6], [4, 8]], twice that, plus the identity
    assert out["a.q.weight"].tolist() == [[7.0, 12.0], [8.0, 17.0]]
    assert set(out) == {"a.q.weight", "a.q.bias", "norm.weight"}


def test_merging_in_place_leaves_a_plain_model_that_trains_as_a_whole():
    worker = trained(adapted())
    before, sent = scores(worker), {name: t.clone() for name, t in worker.weights().items()}

    merge_in_place(worker.model.causal_lm)

    assert lora_of(worker.model.causal_lm) is None
    assert torch.allclose(scores(worker), before, rtol=0, atol=1e-6)
    assert weights_checksum(weights.named_weights(worker.model.causal_lm)) == weights_checksum(sent)
    assert all(p.requires_grad for p in worker.model.parameters())


def test_the_adapter_alone_is_sent_under_the_names_of_a_peft_checkpoint():
    model = adapted(LoraConfig(rank=2, target_modules=("q_proj",)))

    sent = worker_of(model, sends_adapter=True).weights()

    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    assert sent[f"{prefix}.lora_A.weight"].shape == (2, 16)
    assert sent[f"{prefix}.lora_B.weight"].shape == (16, 2)
    assert len(sent) == 4
    assert sent.keys() == adapter_weights(weights.named_weights(model.causal_lm)).keys()


def test_a_checkpoint_holds_the_adapter_and_its_optimizer_and_training_goes_on_bit_for_bit(tmp_path):
    first, second = trained(adapted()), worker_of(adapted())
    save_state(tmp_path, model=first.model, optimizer=first.optimizer)
    load_state(tmp_path, model=second.model, optimizer=second.optimizer)
    second.optimizer_steps = first.optimizer_steps
    for worker in (first, second):
        worker.update(samples_of(), plan=PLAN)

    assert torch.equal(scores(first), scores(second))
    stored = FileSystemReader(str(tmp_path)).read_metadata().state_dict_metadata
    assert stored
    assert [name for name in stored if "lora_" not in name and "param_groups" not in name] == []


async def test_the_embedded_engine_serves_the_merged_model_and_takes_its_updates():
    model = PackedModel(qwen3())
    add_lora(model.causal_lm, LORA, seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain = copy.deepcopy(model.causal_lm)
    merge_in_place(plain)
    engine = HFEngine(plain, config=HFEngineConfig(max_length=64), keeps_model=False)
    try:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        sent = named_weights(model)
        ack = await engine.update_weights(WeightManifest(version=1, tensors=sent))
        params = SamplingParams(max_tokens=12, seed=1)
        completion = await engine.generate([5, 6, 7], params, session_id="s", deadline_s=30)
    finally:
        await engine.close()

    assert ack.checksum == weights_checksum(sent)
    weights.load_weights(plain, sent)
    plain.set_attn_implementation("eager")
    expected_T = reference_logprobs(plain, [5, 6, 7, *completion.token_ids])[2:]
    assert torch.allclose(torch.tensor(list(completion.logprobs)).double(), expected_T, atol=1e-4)
