"""A run folder is never overwritten, never shared, and proven writable before anything starts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentenv.errors import RunFolderError, StoreError
from agentenv.run_folder import RunFolder

ROOT = str(Path(__file__).resolve().parents[1])
HOLDER = (
    "import sys, time; sys.path.insert(0, sys.argv[2])\n"
    "from agentenv.run_folder import RunFolder\n"
    "folder = RunFolder(sys.argv[1], name='a', resume=True)\n"
    "print('held', flush=True); time.sleep(60)\n"
)


def holder(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(root), ROOT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def stop(process: subprocess.Popen[str], sign: signal.Signals) -> None:
    process.send_signal(sign)
    process.wait(timeout=10)
    assert process.stdout is not None
    process.stdout.close()


def test_a_new_folder_has_its_places(tmp_path):
    with RunFolder(tmp_path / "runs", name="a") as folder:
        assert folder.path == tmp_path / "runs" / "a"
        assert not folder.is_resumed
        assert folder.trajectories_path.is_dir()
        assert folder.checkpoints_path.is_dir()
        names = [folder.config_path, folder.metrics_path, folder.report_path, folder.learning_curve_path]
        assert [path.name for path in names] == ["config.yaml", "metrics.jsonl", "report.html", "learning_curve.png"]
        assert sorted(os.listdir(folder.path)) == [".lock", "checkpoints", "trajectories"]


def test_a_folder_that_holds_something_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"--name.*--resume"):
        RunFolder(tmp_path, name="a")
    assert os.listdir(tmp_path / "a") == ["thesis.txt"]


def test_resume_goes_on_in_the_folder_and_starts_anew_where_there_is_none(tmp_path):
    with RunFolder(tmp_path, name="a", resume=True) as folder:
        assert not folder.is_resumed
        folder.write_config("seed: 1\n")
    with RunFolder(tmp_path, name="a", resume=True) as folder:
        assert folder.is_resumed
        assert folder.config_path.read_text() == "seed: 1\n"


@pytest.mark.fault("two runs in one folder: the lock", then="the first keeps it", metric="RunFolderError")
def test_a_second_run_in_the_folder_is_refused_with_the_process_id_of_the_first(tmp_path):
    first = holder(tmp_path)
    try:
        with pytest.raises(RunFolderError, match=f"in use by process {first.pid};"):
            RunFolder(tmp_path, name="a", resume=True)
    finally:
        stop(first, signal.SIGTERM)


@pytest.mark.fault("kill -9 of a run: the lock", then="its folder can be opened", metric="none: a new process")
def test_the_lock_of_a_killed_process_is_free_again(tmp_path):
    stop(holder(tmp_path), signal.SIGKILL)
    with RunFolder(tmp_path, name="a", resume=True) as folder:
        assert folder.is_resumed


def test_the_same_process_cannot_hold_a_folder_twice(tmp_path):
    with RunFolder(tmp_path, name="a"), pytest.raises(RunFolderError, match=f"process {os.getpid()}"):
        RunFolder(tmp_path, name="a", resume=True)


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_run(tmp_path):
    program = (
        "import os, sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from agentenv.run_folder import RunFolder\n"
        "folder = RunFolder(sys.argv[1], name='a')\n"
        "child = os.fork()\n"
        "if child == 0: print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), ROOT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        with pytest.raises(RunFolderError, match=f"process {parent.pid}"):
            RunFolder(tmp_path, name="a", resume=True)
        stop(parent, signal.SIGKILL)
        RunFolder(tmp_path, name="a", resume=True).close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_closing_frees_the_folder_even_while_a_forked_child_lives(tmp_path):
    folder = RunFolder(tmp_path, name="a")
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        folder.close()
        RunFolder(tmp_path, name="a", resume=True).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/abs"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(RunFolderError, match="no plain folder name"):
        RunFolder(tmp_path, name=name)


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(RunFolderError, match="cannot be used as run folder"):
        RunFolder(tmp_path, name="a")


@pytest.mark.fault("disk full or read-only at the start", then="nothing was begun", metric="RunFolderError")
@pytest.mark.parametrize(
    ("options", "reason"), [("size=64k", "No space left"), ("size=1m,ro", "Read-only file system")]
)
def test_a_full_or_read_only_place_is_told_before_the_run_starts(tmp_path, options, reason):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(RunFolderError, match=reason):
            RunFolder(disk, name="a")
        assert not (disk / "a" / ".probe").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_config_that_cannot_be_written_is_told(tmp_path):
    with RunFolder(tmp_path, name="a") as folder:
        shutil.rmtree(folder.path)
        with pytest.raises(StoreError, match="cannot write"):
            folder.write_config("seed: 1\n")
