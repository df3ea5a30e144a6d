"""A writer killed before any single thing that it does to the disk leaves what the next one can go on with."""

import subprocess
import sys
from pathlib import Path

import pytest

from agentenv.metrics_log import MetricsLog, read_metrics
from agentenv.run_folder import RunFolder
from agentenv.store import TrajectoryStore
from agentenv.trainers.record import open_record
from tests.faults.crash import trajectory

ROOT = Path(__file__).resolve().parents[2]


def crashed(job: str, root: Path) -> list[Path]:
    """Return one folder per crash point, in order; the last one is of a job that nobody killed."""
    subprocess.run([sys.executable, "-m", "tests.faults.crash", job, str(root)], cwd=ROOT, check=True, timeout=100)
    return sorted(root.iterdir())


def steps(folder: Path) -> list[int]:
    trajectories = folder / "trajectories"
    return [stored.step for stored in TrajectoryStore(trajectories).scan()] if trajectories.is_dir() else []


@pytest.mark.fault(
    "kill -9 at every crash point: trajectory store", then="the next append is stored", metric="none: a new process"
)
def test_a_store_killed_at_any_point_holds_whole_appends_and_goes_on(tmp_path):
    folders = crashed("store", tmp_path)
    seen = []
    for folder in folders:
        seen.append(steps(folder))
        TrajectoryStore(folder / "trajectories").append([trajectory(9)], step=9, phase="rl")
        assert steps(folder) == [*seen[-1], 9]
        assert not list((folder / "trajectories").glob(".*.tmp"))
    # three appends, then 2 and 3 are forgotten one after the other, then 2 comes again
    legal = [[], [1], [1, 2], [1, 2, 3], [1, 3], [1], [1, 2]]
    assert [state for i, state in enumerate(seen) if i == 0 or state != seen[i - 1]] == legal
    assert len(folders) > 15


@pytest.mark.fault(
    "kill -9 at every crash point: run folder and its lock", then="--resume opens it", metric="none: a new process"
)
def test_a_run_folder_killed_at_any_point_can_be_resumed_and_its_config_is_whole(tmp_path):
    seen = []
    for folder in crashed("run_folder", tmp_path):
        with RunFolder(folder, name="run", resume=True) as run:
            seen.append(run.config_path.read_text() if run.config_path.exists() else "")
            run.write_config("a: 3\n")
            assert run.config_path.read_text() == "a: 3\n"
            assert run.trajectories_path.is_dir()
    assert list(dict.fromkeys(seen)) == ["", "a: 1\n", "a: 2\n"]
    assert seen == sorted(seen)


@pytest.mark.fault("kill -9 at every crash point: record.json", then="it goes on", metric="none: a new process")
def test_a_record_killed_at_any_point_is_the_old_one_or_the_new_one(tmp_path):
    seen = []
    for folder in crashed("record", tmp_path):
        record = open_record(folder / "record.json")
        seen.append(record.seconds.get("phase", 0.0))
        record.spend("phase", 10.0)
        assert open_record(folder / "record.json").seconds == {"phase": seen[-1] + 10.0}
    assert list(dict.fromkeys(seen)) == [0.0, 1.0, 2.0, 3.0]
    assert seen == sorted(seen)


@pytest.mark.fault("kill -9 at every crash point: metrics.jsonl", then="it goes on", metric="none: a new process")
def test_a_metrics_file_killed_at_any_point_has_whole_lines_only(tmp_path):
    for folder in crashed("metrics", tmp_path):
        path = folder / "metrics.jsonl"
        before = [line.step for line in read_metrics(path)] if path.exists() else []
        assert before == list(range(len(before)))
        log = MetricsLog(path)
        log.write({"a": 1}, step=7)
        log.close()
        assert [line.step for line in read_metrics(path)] == [*before, 7]
