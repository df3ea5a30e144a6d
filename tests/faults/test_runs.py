"""Whole training runs in processes of their own that are interrupted: they end in time and go on with --resume."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentenv.metrics_log import read_metrics
from agentenv.run_folder import RunFolder
from tests.engine.processes import processes

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
SEED = 0

CONFIG = """
num_threads: 1
env: {id: agentenv/GuessNumber-v0}
model: {tiny: {hidden_size: 32, num_heads: 2}}
engine: {max_slots: 16, max_length: 256}
runner: {limits: {max_turn_tokens: 24, max_context_tokens: 256}}
sft: {num_demonstrations: 256, batch_size: 16, learning_rate: 8e-3}
trainer:
  num_steps: 3
  groups_per_step: 2
  group_size: 4
  checkpoint_every: 1
  optimizer: {learning_rate: 1e-3}
evaluation: {every: 3, num_validation: 4, num_test: 4}
"""
COMMAND = (
    "import sys; from agentenv.trainers.command import train; "
    "train(sys.argv[1], sys.argv[3:], resume=sys.argv[2] == 'resume', dry_run=False)"
)


@pytest.fixture
def config(tmp_path) -> Iterator[Path]:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    yield path
    for process in processes(str(path)):  # of a test that failed
        os.kill(process, signal.SIGKILL)


def start(config: Path, *, resume: bool = False, **options) -> subprocess.Popen[str]:
    words = [str(config), "resume" if resume else "new", f"output_dir={config.parent}"]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        **given,
    )


def finish(config: Path) -> None:
    """Resume, and expect all three steps."""
    process = start(config, resume=True)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    folder = config.parent / "run"
    steps = {line.metrics["rl/step"] for line in read_metrics(folder / "metrics.jsonl") if "rl/step" in line.metrics}
    assert steps == {1, 2, 3}
    assert (folder / "report.html").is_file()


def until_logged(process: subprocess.Popen[str], folder: Path, name: str) -> None:
    deadline = time.monotonic() + 200
    path = folder / "metrics.jsonl"
    while time.monotonic() < deadline:
        if path.is_file() and any(name in line.metrics for line in read_metrics(path)):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"{name} was never logged")


def nothing_lives(config: Path) -> None:
    deadline = time.monotonic() + 5
    while processes(str(config)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes(str(config)) == []
    RunFolder(config.parent, name="run", resume=True).close()  # its lock is free


@pytest.mark.fault(
    "Ctrl-C at a random moment", then="--resume ends the run, nothing is alive after 5 s", metric="exit code 130"
)
def test_a_run_interrupted_at_random_moments_ends_and_goes_on(config):
    moments = random.Random(SEED)
    for resume in (False, True, True):
        process = start(config, resume=resume)
        if not resume:
            until_logged(process, config.parent / "run", "sft/tokens")
        time.sleep(moments.uniform(0.0, 1.5) if not resume else moments.uniform(5.0, 12.0))
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert process.returncode in (0, 130, 1, -signal.SIGINT), out  # before the run begins Python itself answers
        nothing_lives(config)
    finish(config)


@pytest.mark.fault("terminal closed (SIGHUP)", then="--resume ends the run", metric="exit code 129")
def test_a_run_whose_terminal_is_closed_ends_and_goes_on(config):
    process = start(config)
    until_logged(process, config.parent / "run", "rl/step")
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    assert process.returncode in (129, -signal.SIGHUP, 0), out
    nothing_lives(config)
    finish(config)


@pytest.mark.fault("nobody reads the output (broken pipe)", then="the run ends by itself", metric="exit code 0")
def test_a_run_whose_output_nobody_reads_goes_on_to_its_end(config):
    process = start(config, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=240) == 0, errors
    assert (config.parent / "run" / "report.html").is_file()
    assert (config.parent / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.fault("output folder vanishes", then="a new run starts", metric="StoreError ends the run")
def test_a_run_whose_folder_vanishes_says_so_and_ends(config):
    process = start(config)
    until_logged(process, config.parent / "run", "sft/tokens")
    (config.parent / "run").rename(config.parent / "gone")  # as by an unmounted disk: at once, whatever is written
    out, _ = process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert "Error: cannot" in out.replace("\n", " "), out
    assert not (config.parent / "run" / "model").exists()
    assert processes(str(config)) == []
    with RunFolder(config.parent, name="run"):  # a new run can begin in the same place
        pass


@pytest.mark.fault(
    "two runs in one folder", then="the first goes on to its end", metric="RunFolderError ends the second"
)
def test_a_second_run_in_the_folder_is_refused_and_the_first_ends_well(config):
    first = start(config)
    until_logged(first, config.parent / "run", "sft/tokens")
    first.send_signal(signal.SIGSTOP)  # it could be done before the second has come up
    second = start(config, resume=True)
    out, _ = second.communicate(timeout=120)
    first.send_signal(signal.SIGCONT)
    assert second.returncode != 0
    assert f"in use by process {first.pid}" in out.replace("\n", " ")
    told, _ = first.communicate(timeout=240)
    assert first.returncode == 0, told
