"""Export: a checkpoint becomes a folder whose logits are the trainer's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentenv.errors import CheckpointError, RunFolderError, UsageError
from agentenv.trainers.command import train
from agentenv.trainers.critic import CriticConfig, add_critic
from agentenv.trainers.export import export_run, read_weights
from agentenv.trainers.lora import LoraConfig, add_lora
from agentenv.trainers.model import PackedModel, load_policy
from agentenv.trainers.state import save_state
from tests.engine.small_models import qwen3
from tests.trainers.processes import run_ranks

CONFIG = """
num_threads: 1
env: {id: agentenv/GuessNumber-v0}
model: {tiny: {hidden_size: 32, num_heads: 2}}
engine: {max_slots: 16, max_length: 256}
runner: {limits: {max_turn_tokens: 24, max_context_tokens: 256}}
sft: {num_demonstrations: 768, batch_size: 16, learning_rate: 8e-3}
algorithm: {advantage: gae, loss: {policy: ppo_clip}}
trainer: {num_steps: 2, groups_per_step: 4, group_size: 4, checkpoint_every: 1, optimizer: {learning_rate: 1e-3}}
evaluation: {every: 2, num_validation: 4, num_test: 4}
"""
TOKENS = torch.arange(3, 40)[None]


def run_of(folder: Path, *overrides: str) -> Path:
    torch.set_num_threads(1)
    path = folder / "run.yaml"
    path.write_text(CONFIG)
    result = train(path, [f"output_dir={folder}", *overrides], resume=False, dry_run=False)
    assert result is not None
    return result.folder


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    """A run that trains everything, with a critic."""
    return run_of(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory) -> Path:
    """A run that trains an adapter."""
    return run_of(tmp_path_factory.mktemp("adapter"), "model.lora.rank=4", "algorithm.loss.kl_coefficient=0.01")


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model(TOKENS).logits


def test_the_exported_logits_are_the_trainers_to_the_last_bit(whole_run, tmp_path):
    export_run(whole_run, to=tmp_path / "model")

    # the run's own folder was written from the trainer's memory
    assert torch.equal(logits(tmp_path / "model"), logits(whole_run / "model"))
    assert not torch.equal(logits(tmp_path / "model"), logits(whole_run / "start"))


def test_a_merged_adapter_gives_the_trainers_logits_to_the_last_bit_and_stays_out_of_the_checkpoint(
    adapter_run, tmp_path
):
    chosen = export_run(adapter_run, to=tmp_path / "model")

    assert torch.equal(logits(tmp_path / "model"), logits(adapter_run / "model"))
    assert not torch.equal(logits(tmp_path / "model"), logits(adapter_run / "start"))
    assert all(".lora_" in name for name in read_weights(chosen.path))


def test_the_folder_has_everything_that_belongs_to_a_model(adapter_run, tmp_path):
    export_run(adapter_run, to=tmp_path / "model")

    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float32"
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "model", adapter_run / "start"))
    assert one.chat_template == other.chat_template
    assert one.get_vocab() == other.get_vocab()
    assert load_policy(tmp_path / "model").tokenizer.eos_token == other.eos_token


def test_an_older_checkpoint_is_exported_by_name(whole_run, tmp_path):
    older = sorted(path.name for path in (whole_run / "checkpoints").iterdir())[0]

    chosen = export_run(whole_run, to=tmp_path / "model", checkpoint=older)

    assert chosen.progress.step == 1
    assert not torch.equal(logits(tmp_path / "model"), logits(whole_run / "model"))


def test_a_folder_that_holds_something_is_left_as_it_is(whole_run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(UsageError, match="is not empty; give a folder that does not exist yet"):
        export_run(whole_run, to=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_is_no_run_and_a_run_without_checkpoint_say_what_to_do(whole_run, tmp_path):
    with pytest.raises(RunFolderError, match=r"has no config.yaml; give the folder of a run"):
        export_run(tmp_path, to=tmp_path / "model")
    young = tmp_path / "young"
    young.mkdir()
    shutil.copy(whole_run / "config.yaml", young)
    with pytest.raises(CheckpointError, match="has no checkpoint yet; let it train until its first one"):
        export_run(young, to=tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"has no checkpoint '7'; there are 0000"):
        export_run(whole_run, to=tmp_path / "model", checkpoint="7")
    assert not (tmp_path / "model").exists()


def made() -> PackedModel:
    torch.set_num_threads(1)
    model = PackedModel(qwen3())
    add_lora(model.causal_lm, LoraConfig(rank=3), seed=0)
    add_critic(model, CriticConfig())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.5)
    return model


def write_shards(folder: Path) -> None:
    """One of two ranks that write a sharded checkpoint."""
    model = made()
    mesh = init_device_mesh("cpu", (2,))
    body: Any = model.causal_lm.get_decoder()
    for layer in body.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert get_model_state_dict(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    save_state(folder, model=model, optimizer=torch.optim.AdamW(trained))


def test_shards_of_two_ranks_are_read_whole_without_a_process_group(tmp_path):
    (tmp_path / "shards").mkdir()
    run_ranks(write_shards, tmp_path / "shards")

    read = read_weights(tmp_path / "shards")

    assert len(list((tmp_path / "shards").glob("*.distcp"))) == 2
    expected = {name: p for name, p in made().causal_lm.named_parameters() if "lora_" in name}
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in read)
