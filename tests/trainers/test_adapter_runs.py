"""Whole runs in small that train an adapter and a critic: resumable, replayable, and served as they are trained."""

from pathlib import Path

import pytest
import torch

from agentenv.engine.weights import weights_checksum
from agentenv.errors import TrainingDiverged
from agentenv.metrics_log import read_metrics
from agentenv.trainers.command import train
from agentenv.trainers.model import load_policy, named_weights
from agentenv.trainers.replay import replay_run

CONFIG = """
num_threads: 1
env: {id: agentenv/GuessNumber-v0}
model: {tiny: {hidden_size: 32, num_heads: 2}, lora: {rank: 4}}
engine: {max_slots: 16, max_length: 256}
runner: {limits: {max_turn_tokens: 24, max_context_tokens: 256}}
sft: {num_demonstrations: 768, batch_size: 16, learning_rate: 8e-3}
algorithm: {advantage: gae, critic: {kind: KIND}, loss: {policy: ppo_clip, kl_coefficient: 0.01}}
trainer:
  num_steps: 3
  groups_per_step: 4
  group_size: 4
  num_epochs: 2
  num_mini_batches: 2
  checkpoint_every: 1
  optimizer: {learning_rate: 1e-2}
evaluation: {every: 3, num_validation: 4, num_test: 4}
"""


def run(root: Path, *overrides: str, kind: str = "head", resume: bool = False) -> Path:
    torch.set_num_threads(1)
    path = root / "run.yaml"
    path.write_text(CONFIG.replace("KIND", kind))
    result = train(path, [f"output_dir={root}", *overrides], resume=resume, dry_run=False)
    assert result is not None
    return result.folder


def final(folder: Path) -> str:
    return weights_checksum(named_weights(load_policy(folder / "model").model))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that nobody interrupted."""
    return run(tmp_path_factory.mktemp("whole"))


def updates(folder: Path) -> list[dict[str, float]]:
    lines = [line.metrics for line in read_metrics(folder / "metrics.jsonl")]
    return [dict(metrics) for metrics in lines if "rl/step" in metrics]


def test_the_engine_samples_from_the_merged_policy_that_is_trained(whole):
    for metrics in updates(whole):
        assert metrics["train/grad_norm"] > 0
        assert metrics["mismatch/k3"] < 1e-6


def test_the_adapter_leaves_its_reference_and_the_critic_is_measured(whole):
    history = updates(whole)

    assert history[-1]["train/kl"] > 1e-6
    assert all("critic/explained_variance" in metrics and "train/value_loss" in metrics for metrics in history)


@pytest.mark.parametrize("kind", ["head", "separate"])
def test_a_run_with_adapter_and_critic_goes_on_as_if_nobody_had_stopped_it(whole, tmp_path, kind):
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    expected = whole if kind == "head" else run(tmp_path / "whole", kind=kind)
    run(tmp_path / "broken", "trainer.num_steps=2", kind=kind)

    folder = run(tmp_path / "broken", kind=kind, resume=True)

    assert final(folder) == final(expected)


def test_a_replay_gives_the_same_adapter_bit_for_bit(whole):
    assert replay_run(whole, ()).is_identical


def test_a_run_whose_updates_are_never_finite_stops_and_keeps_its_batches(tmp_path):
    overrides = ("model.lora=null", "algorithm.loss.log_ratio_penalty=1e300", "algorithm.loss.policy=dppo_tv")

    with pytest.raises(TrainingDiverged, match=r"update 3: .*step_3\.npz.* These are 3 such updates in a row"):
        run(tmp_path, *overrides, "trainer.num_steps=4")

    kept = sorted(path.name for path in (tmp_path / "run" / "bad_batches").iterdir())
    assert kept == ["step_1.npz", "step_2.npz", "step_3.npz"]
