"""Lines of metrics survive kills, full disks and numbers that JSON does not know."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentenv.errors import StoreError
from agentenv.metrics_log import MetricsLog, read_metrics

ROOT = str(Path(__file__).resolve().parents[1])


def test_lines_come_back_in_order_with_numbers_that_json_does_not_know(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"train/loss": 0.1, "train/grad_norm": math.inf}, step=0)
    log.write({"train/loss": math.nan, "train/low": -math.inf}, step=1)
    log.close()

    first, second = read_metrics(tmp_path / "metrics.jsonl")

    assert (first.step, dict(first.metrics)) == (0, {"train/loss": 0.1, "train/grad_norm": math.inf})
    assert math.isnan(second.metrics["train/loss"])
    assert second.metrics["train/low"] == -math.inf
    assert abs(first.time_s - time.time()) < 60
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_torn_last_line_is_left_out_by_readers_and_cut_off_by_the_next_writer(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({"a": 1}, step=0)
    log.close()
    with open(path, "ab") as file:
        file.write(b'{"step": 1, "time_s": 5, "metr')

    assert [line.step for line in read_metrics(path)] == [0]

    log = MetricsLog(path)
    log.write({"a": 2}, step=2)
    log.close()
    assert [line.step for line in read_metrics(path)] == [0, 2]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "time_s": 1, "metrics": {}}\nnot json\n{"step": 1, "time_s": 1, "metrics": {}}\n')
    with pytest.raises(StoreError, match="line 2: not a line of metrics"):
        list(read_metrics(path))


def test_a_missing_file_or_folder_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="cannot read"):
        list(read_metrics(tmp_path / "none.jsonl"))
    with pytest.raises(StoreError, match="cannot open"):
        MetricsLog(tmp_path / "none" / "metrics.jsonl")


@pytest.mark.fault("output folder vanishes: metrics.jsonl", then="nothing is written elsewhere", metric="StoreError")
def test_a_file_that_vanished_is_told_instead_of_writing_into_nothing(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"a": 1}, step=0)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(StoreError, match="was removed"):
        log.write({"a": 1}, step=1)
    log.close()


@pytest.mark.fault("disk full: metrics.jsonl", then="the next line is written", metric="StoreError")
def test_a_line_that_does_not_fit_on_the_disk_leaves_the_lines_before_it_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    program = (
        "import sys, resource; sys.path.insert(0, sys.argv[2])\n"
        "from agentenv.metrics_log import MetricsLog; from agentenv.errors import StoreError\n"
        "log = MetricsLog(sys.argv[1]); log.write({'a': 1}, step=0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        "try: log.write({'metric_%d' % i: 1.0 for i in range(50)}, step=1)\n"
        "except StoreError as error: print(error)\n"
        "log.write({'a': 2}, step=2)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(path), ROOT], capture_output=True, text=True, check=True, timeout=60
    )
    assert "File too large" in ran.stdout
    assert [line.step for line in read_metrics(path)] == [0, 2]


@pytest.mark.fault("kill -9 while metrics are written", then="all lines are read", metric="none: a new process")
def test_every_line_that_was_written_survives_a_kill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from agentenv.metrics_log import MetricsLog\n"
        "log = MetricsLog(sys.argv[1])\n"
        "for step in range(10**9):\n"
        "    log.write({'a': step}, step=step); print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path), ROOT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = [int(process.stdout.readline()) for _ in range(200)][-1]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    steps = [line.step for line in read_metrics(path)]

    assert steps == list(range(len(steps)))
    assert len(steps) > last


def test_writing_leaves_no_descriptor_open_after_close(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"a": 1}, step=0)
    log.close()
    log.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0


def test_later_steps_can_be_cut_off_and_written_again(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3, 4):
        log.write({"x": float(step)}, step=step)
    log.forget(after_step=2)
    log.write({"x": 30.0}, step=3)
    log.close()

    assert [(line.step, line.metrics["x"]) for line in read_metrics(log.path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
