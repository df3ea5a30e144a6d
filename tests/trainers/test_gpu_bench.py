"""The GPU benchmark runs, with tiny shapes, wherever torch does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bench(*args):
    return subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu_train", *args],
        capture_output=True, text=True, timeout=110, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def test_full_and_lora_training_are_measured_with_tiny_shapes():
    done = bench("--tiny")
    assert done.returncode == 0, done.stderr
    lines = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}

    assert set(lines) == {"full_tiny", "lora_r16_tiny"}
    for line in lines.values():
        assert 0 < line["mfu"] < 1
        assert line["tokens_per_s"] > 0
        assert "12 layers heads" in line["formula"]


def test_without_a_gpu_the_real_shapes_are_refused():
    done = bench()
    assert done.returncode == 2
    assert "--tiny" in done.stderr
