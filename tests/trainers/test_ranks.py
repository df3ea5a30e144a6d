"""Whole runs over two processes, and a state that goes from one rank to two and back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agentenv.errors import UsageError
from agentenv.metrics_log import read_metrics
from agentenv.store import TrajectoryStore
from agentenv.trainers.command import train
from agentenv.trainers.config import RunConfig
from agentenv.trainers.ranks import open_team
from agentenv.trainers.state import load_state, save_state
from tests.trainers.parallel_runs import Case, plan_of, small_worker
from tests.trainers.processes import free_port, run_ranks

ROOT = Path(__file__).resolve().parent.parent.parent

CONFIG = """
num_threads: 1
env: {id: agentenv/GuessNumber-v0}
model: {tiny: {hidden_size: 32, num_heads: 2}}
engine: {max_slots: 16, max_length: 256}
runner: {limits: {max_turn_tokens: 24, max_context_tokens: 256}}
sft: {num_demonstrations: 128, batch_size: 16, learning_rate: 8e-3}
algorithm: {advantage: grpo, loss: {policy: ppo_clip}}
trainer: {num_steps: 2, groups_per_step: 4, group_size: 4, num_mini_batches: 2, optimizer: {learning_rate: 1e-3}}
evaluation: {every: 10, num_validation: 4, num_test: 4}
"""


def updated(folder: str | None, to: str | None) -> dict[str, torch.Tensor]:
    """Load a state, take one update, save; returns the weights and the optimizer's moments before and after."""
    case = Case(token_budget=25)
    worker = small_worker(case, seed=1 if folder is None else 5)
    if folder is not None:
        load_state(Path(folder), model=worker.model, optimizer=worker.optimizer)
    before = {name: row.clone() for name, row in worker.weights().items()}  # one process gives them by reference
    worker.update(case.samples(), plan=plan_of(case))
    if to is not None:
        Path(to).mkdir(exist_ok=True)
        save_state(Path(to), model=worker.model, optimizer=worker.optimizer)
    after = dict(worker.weights())
    return {**{f"before {name}": row for name, row in before.items()}, **after}


def test_a_state_goes_from_one_rank_to_two_and_back_and_training_goes_on_the_same(tmp_path):
    folders = [str(tmp_path / name) for name in ("one", "two", "alone")]
    first = updated(None, folders[0])
    second = run_ranks(updated, folders[0], folders[1])[0]
    third = updated(folders[1], None)

    alone = updated(folders[0], folders[2])
    alone_again = updated(folders[2], None)
    for name in (name for name in first if not name.startswith("before")):
        assert torch.equal(second[f"before {name}"], first[name]), "a state is loaded as it was saved"
        assert torch.equal(third[f"before {name}"], second[name])
        # the moments of the optimizer decide where the next step goes
        torch.testing.assert_close(second[name], alone[name], rtol=0, atol=1e-12)
        torch.testing.assert_close(third[name], alone_again[name], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(CONFIG)
    return path


def _torchrun(config: Path, *arguments: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launcher, "--master-port", str(free_port()), "-m", "agentenv", "train", str(config), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)


def _group_ids(folder: Path) -> list[tuple[int, str]]:
    rows = TrajectoryStore(folder / "trajectories").scan(phase="rl")
    return [(row.step, row.trajectory.group_id) for row in rows]


@pytest.mark.slow
def test_a_run_goes_over_two_processes_then_one_then_two_with_the_data_in_the_same_order(config, tmp_path):
    root = [f"output_dir={tmp_path}"]
    began = _torchrun(config, *root)
    assert began.returncode == 0, began.stdout + began.stderr
    assert train(config, [*root, "trainer.num_steps=3"], resume=True, dry_run=False) is not None
    ended = _torchrun(config, *root, "trainer.num_steps=4", "--resume")
    assert ended.returncode == 0, ended.stdout + ended.stderr

    folder = tmp_path / "run"
    updates = [line.metrics for line in read_metrics(folder / "metrics.jsonl") if "rl/step" in line.metrics]
    assert [metrics["rl/step"] for metrics in updates] == [1, 2, 3, 4]
    # the engine serves what the ranks train, in every one of the three parts
    assert max(metrics["mismatch/k3"] for metrics in updates) < 1e-6
    assert set(json.loads((folder / "record.json").read_text())["evaluations"]) == {"demonstrator", "before", "after"}

    whole = train(config, [f"output_dir={tmp_path / 'whole'}", "trainer.num_steps=4"], resume=False, dry_run=False)
    assert whole is not None
    assert _group_ids(folder) == _group_ids(whole.folder)


def test_a_layout_that_one_process_cannot_fill_is_refused_and_says_how_to_start(config):
    document = {
        "env": {"id": "agentenv/GuessNumber-v0"},
        "model": {"path": "nowhere"},
        "trainer": {"parallel": {"sequence": 2}},
    }
    with pytest.raises(UsageError, match="torchrun --nproc-per-node 2"):
        open_team(RunConfig.model_validate(document))
