"""Kills a writer with SIGKILL before each thing that it does to the file system, once per point. A program.

Python tells audit hooks of every open, rename, removal and new folder before it is done; the hook counts those that
concern the job's folder and kills at the n-th.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from agentenv.metrics_log import MetricsLog
from agentenv.run_folder import RunFolder
from agentenv.store import TrajectoryStore
from agentenv.trainers.record import open_record
from agentenv.trajectory import StopReason, TokenSequence, Trajectory

MAX_POINTS = 300


def trajectory(index: int) -> Trajectory:
    ids = np.arange(50, dtype=np.int32)
    sequence = TokenSequence(token_ids=ids, logprobs=np.zeros(50, np.float32), is_sampled=np.zeros(50, np.bool_))
    return Trajectory(
        env_id="e", task_id=str(index), group_id="g", member=0, seed=0, stop_reason=StopReason.COMPLETED, turns=(),
        sequences=(sequence,), reward_components={}, messages=(),
    )  # fmt: skip


def store(folder: Path) -> None:
    kept = TrajectoryStore(folder / "trajectories")
    for step in (1, 2, 3):
        kept.append([trajectory(step)], step=step, phase="rl")
    kept.forget(phase="rl", after_step=1)
    kept.append([trajectory(4)], step=2, phase="rl")


def run_folder(folder: Path) -> None:
    with RunFolder(folder, name="run") as run:
        run.write_config("a: 1\n")
        run.write_config("a: 2\n")


def record(folder: Path) -> None:
    kept = open_record(folder / "record.json")
    for _ in range(3):
        kept.spend("phase", 1.0)


def metrics(folder: Path) -> None:
    for step in range(3):
        log = MetricsLog(folder / "metrics.jsonl")
        log.write({"a": step}, step=step)
        log.close()


JOBS = {"store": store, "run_folder": run_folder, "record": record, "metrics": metrics}


def main(job: str, root: str) -> None:
    """Make a folder per point below `root`; the last one is of a job that nobody killed."""
    for point in range(MAX_POINTS):
        folder = Path(root) / f"{point:03d}"
        folder.mkdir()
        child = os.fork()
        if child == 0:
            _kill_at(point, str(folder))
            JOBS[job](folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        assert os.WIFSIGNALED(status), status
        assert os.WTERMSIG(status) == signal.SIGKILL, status
    raise AssertionError(f"{job} has more than {MAX_POINTS} points")


def _kill_at(point: int, folder: str) -> None:
    left = point

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if not event.startswith(("open", "os.")) or not any(folder in str(one) for one in arguments[:2]):
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sys.addaudithook(hook)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
