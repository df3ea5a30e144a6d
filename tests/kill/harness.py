"""Kills a real training process at random moments, resumes it, and compares what is left with an uninterrupted run.

The harness imports everything once and forks each run from itself, which saves the seconds of the imports. The runs
are real processes, in folders of their own, and die by SIGKILL. Reading results happens in forks too: a process with
threads should not be forked, and this one starts none.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from agentenv.config import load_config
from agentenv.engine.weights import weights_checksum
from agentenv.metrics_log import read_metrics
from agentenv.progress import SilentProgress
from agentenv.store import TrajectoryStore
from agentenv.trainers.checkpoint import CheckpointFolder
from agentenv.trainers.config import RunConfig
from agentenv.trainers.loop import RL
from agentenv.trainers.mfu import MACHINE_METRICS
from agentenv.trainers.model import load_policy, named_weights
from agentenv.trainers.phase import Phase, phase_worker
from agentenv.trainers.pipeline import Pipeline
from agentenv.trainers.state import load_state

NUM_STEPS = 8
DEADLINE_S = 120.0
PARTS = ("parameters", "optimizer", "data order", "metrics")

CONFIG = f"""
num_threads: 1
env: {{id: agentenv/GuessNumber-v0}}
model: {{tiny: {{hidden_size: 32, num_heads: 2}}}}
engine: {{max_slots: 16, max_length: 256}}
runner: {{limits: {{max_turn_tokens: 24, max_context_tokens: 256}}}}
sft: {{num_demonstrations: 512, batch_size: 16, learning_rate: 8e-3}}
algorithm: {{advantage: grpo, loss: {{policy: ppo_clip}}}}
trainer:
  deterministic: true
  num_steps: {NUM_STEPS}
  groups_per_step: 4
  group_size: 4
  num_epochs: 2
  num_mini_batches: 2
  checkpoint_every: 2
  optimizer: {{learning_rate: 1e-3, schedule: linear}}
evaluation: {{every: 4, num_validation: 8, num_test: 8}}
"""

_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When to kill a process: after so many more updates, and then some seconds."""

    updates: int
    delay_s: float


@dataclass(kw_only=True)
class Campaign:
    """What came of killing runs of one staleness.

    Attributes:
        staleness: S.
        kills: per kill, how many updates had been logged.
        digests: of every run that came to its end, by part.
        expected: of the run that nobody interrupted.
    """

    staleness: int
    expected: Mapping[str, str]
    kills: list[int] = field(default_factory=list)
    digests: list[Mapping[str, str]] = field(default_factory=list)

    def num_equal(self, part: str) -> int:
        """Return how many runs ended as the uninterrupted one did."""
        return sum(digest[part] == self.expected[part] for digest in self.digests)

    @property
    def is_good(self) -> bool:
        """True when runs ended, and every one exactly like the uninterrupted one."""
        return bool(self.digests) and all(self.num_equal(part) == len(self.digests) for part in PARTS)


def warm_start(root: Path) -> Path:
    """Make the folder that every run begins with: its model has imitated demonstrations and was evaluated."""
    (root / "run.yaml").write_text(CONFIG)
    _in_fork(lambda: _train(root, "warm", "trainer.num_steps=0"))
    return root / "warm"


def campaign(root: Path, *, staleness: int, num_kills: int, seed: int) -> Campaign:
    """Kill runs of one staleness until `num_kills` were killed, and let the last one end.

    Args:
        root: holds the warm start.
        staleness: S.
        num_kills: in all; a run is killed again and again until one of its processes outlives its moment.
        seed: of the moments.
    """
    overrides = (f"trainer.max_staleness={staleness}",)
    started = time.monotonic()
    whole = _run(root, f"whole-{staleness}", overrides, moments=None, kills=[])
    duration_s = time.monotonic() - started
    result = Campaign(staleness=staleness, expected=whole)
    rng = random.Random(f"{seed}-{staleness}")

    def moment() -> Moment | None:
        if len(result.kills) == num_kills:
            return None
        return Moment(updates=rng.randint(0, NUM_STEPS // 2), delay_s=rng.uniform(0, duration_s / 3))

    while len(result.kills) < num_kills:
        name = f"killed-{staleness}-{len(result.digests)}"
        result.digests.append(_run(root, name, overrides, moments=moment, kills=result.kills))
    return result


def _run(
    root: Path,
    name: str,
    overrides: tuple[str, ...],
    *,
    moments: Callable[[], Moment | None] | None,
    kills: list[int],
) -> Mapping[str, str]:
    """Bring one run to its end, killed as often as a moment comes first; returns its digest."""
    folder = root / name
    shutil.copytree(root / "warm", folder)
    (folder / "config.yaml").unlink()  # the copy is another run, with a name and a staleness of its own
    while True:
        process = _fork.Process(target=_train, args=(root, name, *overrides))
        process.start()
        _wait(process, folder, moment=None if moments is None else moments())
        if process.exitcode is None:
            process.kill()
            process.join(DEADLINE_S)
        if process.exitcode == 0:
            digest = _in_fork(lambda: _digest(folder))
            shutil.rmtree(folder)
            return digest
        assert process.exitcode == -9, f"{folder} ended with exit code {process.exitcode}; its process said why above"
        assert moments is not None, f"{folder} did not end within {DEADLINE_S:g} s"
        kills.append(_num_updates(folder))


def _wait(process: BaseProcess, folder: Path, *, moment: Moment | None) -> None:
    """Wait for the moment, or for the end of the process where that is earlier or there is no moment."""
    if moment is None:
        process.join(DEADLINE_S)
        return
    deadline = time.monotonic() + DEADLINE_S
    goal = _num_updates(folder) + moment.updates
    while process.exitcode is None and _num_updates(folder) < goal and time.monotonic() < deadline:
        process.join(0.01)
    process.join(moment.delay_s)


def _train(root: Path, name: str, *overrides: str) -> None:
    """Train or go on training in the folder `name`."""
    config = load_config(RunConfig, root / "run.yaml", overrides=[f"output_dir={root}", f"name={name}", *overrides])
    pipeline = Pipeline(config, resume=True, display=SilentProgress())
    try:
        asyncio.run(pipeline.run())
    finally:
        pipeline.close()


def _in_fork(function: Callable[[], Any]) -> Any:
    """Call a function in a fork and return its result."""
    receiver, sender = _fork.Pipe(duplex=False)
    process = _fork.Process(target=lambda: sender.send(function()))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join(DEADLINE_S)


def _digest(folder: Path) -> dict[str, str]:
    """Return hashes of everything that must not depend on interruptions."""
    config = load_config(RunConfig, folder / "config.yaml")
    policy = load_policy(folder / "model", dtype=torch.float32)
    final = weights_checksum(named_weights(policy.model))
    checkpoint = CheckpointFolder(folder / "checkpoints").newest()
    assert checkpoint is not None
    assert checkpoint.progress.step == NUM_STEPS
    worker = phase_worker(Phase(config=config, kind=RL, model=str(folder / "start")), policy=policy.model)
    load_state(checkpoint.path, model=worker.model, optimizer=worker.optimizer)
    assert weights_checksum(named_weights(worker.model)) == final
    moments = {
        f"{index}/{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for index, state in worker.optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    return {
        "parameters": final,
        "optimizer": weights_checksum(moments),
        "data order": _hash(_episodes(folder)),
        "metrics": _hash(_metrics(folder)),
    }


def _episodes(folder: Path) -> list[object]:
    """Return every episode that was trained on, in order, with its tokens and the weights that sampled them."""
    return [
        (
            row.step,
            row.trajectory.group_id,
            row.trajectory.member,
            [sequence.token_ids.tolist() for sequence in row.trajectory.sequences],
            [span.version for turn in row.trajectory.turns for span in turn.weight_versions],
            row.trajectory.reward,
        )
        for row in TrajectoryStore(folder / "trajectories").scan(phase="rl")
    ]


def _metrics(folder: Path) -> list[object]:
    """Return the metrics log without what a clock measured."""
    return [
        (line.step, sorted((name, value) for name, value in line.metrics.items() if not is_timing(name)))
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def is_timing(name: str) -> bool:
    """True for metrics that two equal runs may differ in."""
    topic, _, rest = name.rpartition("/")
    return topic.startswith(("time", "perf")) or rest.endswith("_s") or rest in MACHINE_METRICS


def _num_updates(folder: Path) -> int:
    return (folder / "metrics.jsonl").read_bytes().count(b'"rl/step"')


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
