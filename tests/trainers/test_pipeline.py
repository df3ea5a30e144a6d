"""Whole runs in small: deterministic, resumable after any kind of death, replayable."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from agentenv.agent.registry import make_agent
from agentenv.config import load_config
from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.weights import weights_checksum
from agentenv.errors import RunFolderError
from agentenv.metrics_log import read_metrics
from agentenv.renderer import Renderer
from agentenv.runner import Runner
from agentenv.store import StoredTrajectory, TrajectoryStore
from agentenv.tokenizer import wrap_tokenizer
from agentenv.trainers.checkpoint import CheckpointFolder
from agentenv.trainers.command import train
from agentenv.trainers.config import RunConfig
from agentenv.trainers.loop import RL, credited, update_plan
from agentenv.trainers.model import load_policy, named_weights
from agentenv.trainers.phase import Phase, phase_worker
from agentenv.trainers.replay import replay_run
from agentenv.trainers.source import group_source
from agentenv.trainers.sync.publish import publish

ROOT = Path(__file__).resolve().parent.parent.parent
NUM_STEPS = 4

CONFIG = f"""
num_threads: 1
env: {{id: agentenv/GuessNumber-v0}}
model: {{tiny: {{hidden_size: 32, num_heads: 2}}}}
engine: {{max_slots: 16, max_length: 256}}
runner: {{limits: {{max_turn_tokens: 24, max_context_tokens: 256}}}}
sft: {{num_demonstrations: 768, batch_size: 16, learning_rate: 8e-3}}
algorithm: {{advantage: grpo, loss: {{policy: ppo_clip}}}}
trainer:
  num_steps: {NUM_STEPS}
  groups_per_step: 4
  group_size: 4
  num_epochs: 2
  num_mini_batches: 2
  checkpoint_every: 2
  optimizer: {{learning_rate: 1e-3, schedule: linear}}
evaluation: {{every: 2, num_validation: 8, num_test: 8}}
"""

COMMAND = (
    "import sys; from agentenv.trainers.command import train; "
    "train(sys.argv[1], sys.argv[2:], resume=False, dry_run=False)"
)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """The folder of a run that nobody interrupted."""
    torch.set_num_threads(1)
    return _train(config, tmp_path_factory.mktemp("whole"))


def _train(config: Path, root: Path, *, resume: bool = False, overrides: tuple[str, ...] = ()) -> Path:
    result = train(config, [f"output_dir={root}", *overrides], resume=resume, dry_run=False)
    assert result is not None
    return result.folder


def _start(config: Path, root: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, str(config), f"output_dir={root}", *overrides]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _wait_for(folder: Path, name: str, step: float, process: subprocess.Popen[str]) -> None:
    """Wait until a metric has been logged with at least this value."""
    deadline = time.monotonic() + 90
    path = folder / "metrics.jsonl"
    while time.monotonic() < deadline:
        if path.is_file() and any(line.metrics.get(name, -1) >= step for line in read_metrics(path)):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    raise AssertionError(f"{name} did not reach {step}")


def _final(folder: Path) -> str:
    return weights_checksum(named_weights(load_policy(folder / "model").model))


def _episodes(folder: Path) -> list[tuple[int, str, int, list[int], float]]:
    rows = TrajectoryStore(folder / "trajectories").scan(phase="rl")
    return [
        (
            r.step,
            r.trajectory.group_id,
            r.trajectory.member,
            r.trajectory.sequences[0].token_ids.tolist(),
            r.trajectory.reward,
        )
        for r in rows
    ]


def test_a_run_leaves_everything_that_it_promises(whole):
    for name in ("config.yaml", "metrics.jsonl", "report.html", "learning_curve.png", "model/model.safetensors"):
        assert (whole / name).is_file(), name
    record = json.loads((whole / "record.json").read_text())
    assert set(record["evaluations"]) == {"demonstrator", "before", "after"}
    updates = [line.metrics for line in read_metrics(whole / "metrics.jsonl") if "rl/step" in line.metrics]
    assert all(metrics["train/grad_norm"] > 0 for metrics in updates), (
        "without a gradient every run would look the same"
    )
    steps = [line.metrics["rl/step"] for line in read_metrics(whole / "metrics.jsonl") if "rl/step" in line.metrics]
    assert steps == [1, 2, 3, 4]
    assert len(_episodes(whole)) == NUM_STEPS * 16


def test_the_engine_samples_from_the_policy_that_is_trained(whole):
    lines = [line.metrics for line in read_metrics(whole / "metrics.jsonl") if "mismatch/k3" in line.metrics]
    assert len(lines) == NUM_STEPS
    assert max(metrics["mismatch/k3"] for metrics in lines) < 1e-6
    assert all(metrics["mismatch/age_oldest"] == 0 for metrics in lines)


def test_the_same_seed_gives_the_same_weights_and_episodes(whole, config, tmp_path):
    again = _train(config, tmp_path)
    assert _final(again) == _final(whole)
    assert _episodes(again) == _episodes(whole)


def test_another_seed_gives_other_weights(whole, config, tmp_path):
    assert _final(_train(config, tmp_path, overrides=("seed=1",))) != _final(whole)


@pytest.mark.fault("kill -9 of a run", then="--resume gives the same weights", metric="none: a new process")
@pytest.mark.parametrize(("metric", "value"), [("sft/tokens", 1), ("rl/step", 1), ("rl/step", 3)])
def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(whole, config, tmp_path, metric, value):
    process = _start(config, tmp_path)
    _wait_for(tmp_path / "run", metric, value, process)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)

    resumed = _train(config, tmp_path, resume=True)

    assert _final(resumed) == _final(whole)
    assert _episodes(resumed) == _episodes(whole)


@pytest.mark.fault("Ctrl-C", then="--resume gives the same weights", metric="exit code 130")
def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_weights(whole, config, tmp_path):
    process = _start(config, tmp_path)
    _wait_for(tmp_path / "run", "rl/step", 1, process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)

    assert process.returncode == 130, out
    assert "--resume" in out
    assert _final(_train(config, tmp_path, resume=True)) == _final(whole)


@pytest.mark.parametrize(("notice", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_notice_to_leave_saves_early_and_says_how_to_go_on(whole, config, tmp_path, notice, code):
    process = _start(config, tmp_path)
    _wait_for(tmp_path / "run", "rl/step", 1, process)
    process.send_signal(notice)
    process.send_signal(notice)  # schedulers say it twice
    out, _ = process.communicate(timeout=60)

    assert process.returncode == code, out
    assert f"{notice.name} came" in out
    assert "--resume" in out
    checkpoint = CheckpointFolder(tmp_path / "run" / "checkpoints").newest()
    assert checkpoint is not None
    *_, logged = (line.metrics.get("rl/step") for line in read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert (checkpoint.progress.phase, checkpoint.progress.step) == ("rl", logged)
    assert _final(_train(config, tmp_path, resume=True)) == _final(whole)


@pytest.mark.fault("Ctrl-C twice", then="it leaves at once", metric="exit code not 0")
def test_ctrl_c_twice_leaves_at_once(config, tmp_path):
    process = _start(config, tmp_path)
    _wait_for(tmp_path / "run", "sft/tokens", 1, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert time.monotonic() - started < 20


def test_ctrl_c_twice_does_not_wait_for_a_long_update(config, tmp_path):
    process = _start(config, tmp_path, "trainer.num_epochs=100000")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run" / "trajectories").glob("*-00000002.parquet")):  # demonstrations, before, then rl
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "the first one waits for the update"

    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 130, out
    checkpoint = CheckpointFolder(tmp_path / "run" / "checkpoints").newest()
    assert checkpoint is not None
    assert checkpoint.progress.phase == "sft"  # nothing of the step that was cut


async def test_at_staleness_zero_the_loop_is_the_plain_synchronous_one_bit_for_bit(whole):
    config = load_config(RunConfig, whole / "config.yaml")
    policy = load_policy(whole / "start", dtype=torch.float32)
    worker = phase_worker(Phase(config=config, kind=RL, model=str(whole / "start")), policy=policy.model)
    engine = HFEngine(policy.model.causal_lm, config=HFEngineConfig(max_slots=16, max_length=256))
    runner = Runner(
        engine=engine,
        renderer=Renderer(wrap_tokenizer(policy.tokenizer)),
        agent=make_agent(config.agent.name),
        config=config.runner,
    )
    source = group_source(config.env, seed=config.seed, group_size=4)
    for step in range(1, NUM_STEPS + 1):
        groups = await runner.run_all([source.group(number) for number in range(4 * step - 4, 4 * step)])
        worker.update(credited(groups, config.algorithm), plan=update_plan(config, step=step))
        await publish(engine, worker.weights(), version=step)
        await engine.forget_prefixes()
    await engine.close()

    assert weights_checksum(worker.weights()) == _final(whole)


def test_a_folder_that_holds_a_run_is_refused(whole, config):
    with pytest.raises(RunFolderError, match="--resume"):
        _train(config, whole.parent)


@pytest.mark.fault("config changed before resume", then="refused with the key", metric="RunFolderError")
def test_resuming_with_another_algorithm_is_refused_and_names_the_key(whole, config):
    with pytest.raises(RunFolderError, match=r"algorithm\.advantage"):
        _train(config, whole.parent, resume=True, overrides=("algorithm.advantage=rloo",))


def test_resuming_a_finished_run_changes_nothing(whole, config):
    before = _final(whole)
    assert _final(_train(config, whole.parent, resume=True)) == before


def test_a_replay_gives_the_same_weights_and_another_algorithm_others(whole):
    same = replay_run(whole, [f"output_dir={whole.parent}"])
    other = replay_run(whole, [f"output_dir={whole.parent}", "name=other", "algorithm.advantage=rloo"])
    assert same.is_identical
    assert not other.is_identical
    assert same.steps == other.steps == NUM_STEPS


def test_a_replay_of_something_else_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"has no config\.yaml"):
        replay_run(tmp_path, [])


def test_training_from_conversations_needs_no_expert(config, whole, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "Guess."}, {"role": "assistant", "content": f"number {n}"}]}
        for n in range(32)
    ]
    data = tmp_path / "talk.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    overrides = (f"sft.data={data}", f"model={{path: '{whole / 'initial'}'}}", "trainer.num_steps=1")
    folder = _train(config, tmp_path, overrides=overrides)
    steps = [line for line in read_metrics(folder / "metrics.jsonl") if "sft/cross_entropy" in line.metrics]
    assert len(steps) == 2  # 32 rows in batches of 16


def test_with_staleness_groups_are_played_over_updates_and_every_token_knows_its_weights(config, tmp_path):
    # few slots, so that episodes are always running and waiting when an update ends
    overrides = ("trainer.max_staleness=1", "trainer.num_steps=4", "engine.max_slots=3")
    folder = _train(config, tmp_path, overrides=overrides)

    lines = [line.metrics for line in read_metrics(folder / "metrics.jsonl") if "rl/step" in line.metrics]
    rows = list(TrajectoryStore(folder / "trajectories").scan(phase="rl"))
    assert max(line["rollout/staleness"] for line in lines) == 1.0
    assert {row.step - 1 - version for row in rows for version in _versions(row)} == {0, 1}
    assert any(len(_versions(row)) == 2 for row in rows), "no trajectory went on across an update"
    # nothing is lost, nothing is trained on twice: 4 steps of 4 groups of 4 members
    members = [(int(row.trajectory.group_id), row.trajectory.member) for row in rows]
    assert sorted(members) == [(group, member) for group in range(16) for member in range(4)]
    assert all(row.trajectory.is_scored for row in rows)
    assert max(line.get("mismatch/k3_fresh", 0.0) for line in lines) < 1e-6


def _versions(row: StoredTrajectory) -> set[int]:
    return {span.version for turn in row.trajectory.turns for span in turn.weight_versions}
