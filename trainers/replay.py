"""Trains again from the stored trajectories of a run: with its own algorithm bit for bit, or with another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from agentenv.config import load_config, to_yaml
from agentenv.engine.weights import weights_checksum
from agentenv.errors import RunFolderError
from agentenv.run_folder import RunFolder
from agentenv.store import TrajectoryStore
from agentenv.track import open_trackers
from agentenv.trainers.config import RunConfig
from agentenv.trainers.loop import RL, credited, grouped, update_plan
from agentenv.trainers.model import load_policy, named_weights, save_policy
from agentenv.trainers.parallel import spread
from agentenv.trainers.phase import Phase, device_of, equip, phase_worker
from agentenv.trajectory import Group, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What a replay left.

    Attributes:
        folder: of the replay.
        steps: updates.
        checksum: of the weights.
        is_identical: True when they equal the run's own final weights.
    """

    folder: Path
    steps: int
    checksum: str
    is_identical: bool


def replay_run(run: str | Path, overrides: Sequence[str]) -> ReplayResult:
    """Train from the weights with which a run's reinforcement learning began, on what it stored.

    Args:
        run: folder of a finished run.
        overrides: dotted overrides of its configuration, e.g. `algorithm.advantage=rloo`.

    Raises:
        RunFolderError: the folder holds no finished run, or the replay's folder is taken.
    """
    source = Path(run)
    for needed in ("config.yaml", "trajectories", "start", "model"):
        if not (source / needed).exists():
            raise RunFolderError(f"{source} has no {needed}; a replay needs the folder of a finished run")
    stored = load_config(RunConfig, source / "config.yaml")
    config = load_config(RunConfig, source / "config.yaml", overrides=[f"name={stored.name}-replay", *overrides])
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    policy = load_policy(
        source / "start", dtype=getattr(torch, config.model.dtype), device=device_of(config.model.device)
    )
    phase = Phase(config=config, kind=RL, model=str(source / "start"))
    equip(policy.model, phase)
    spread(policy.model, config=config.trainer.parallel, ranks=None)
    worker = phase_worker(phase, policy=policy.model)
    steps = 0
    with RunFolder(config.output_dir, name=config.name) as folder:
        folder.write_config(to_yaml(config))
        trackers = open_trackers(config.tracking, folder=folder.path, run_name=config.name, run_config=config)
        try:
            for steps, groups in _stored_steps(TrajectoryStore(source / "trajectories")):
                metrics = worker.update(credited(groups, config.algorithm), plan=update_plan(config, step=steps))
                trackers.log(grouped(metrics, prefix="train"), step=steps)
        finally:
            trackers.close()
        save_policy(policy, folder.path / "model")
        checksum = weights_checksum(worker.weights())
        final = load_policy(source / "model", dtype=getattr(torch, config.model.dtype))
        return ReplayResult(
            folder=folder.path,
            steps=steps,
            checksum=checksum,
            is_identical=checksum == weights_checksum(named_weights(final.model)),
        )


def _stored_steps(store: TrajectoryStore) -> Iterator[tuple[int, list[Group]]]:
    """Yield the groups of every update, in order."""
    for step, rows in groupby(store.scan(phase=RL), key=lambda row: row.step):
        yield step, _grouped([row.trajectory for row in rows])


def _grouped(trajectories: Sequence[Trajectory]) -> list[Group]:
    return [
        Group(group_id=group_id, trajectories=tuple(members))
        for group_id, members in groupby(trajectories, key=lambda t: t.group_id)
    ]
