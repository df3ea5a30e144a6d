"""A run that is killed and resumed ends like one that nobody interrupted; `make kill-test` does it many times."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill.harness import Campaign

ROOT = Path(__file__).resolve().parent.parent.parent
WHOLE = {"parameters": "p", "optimizer": "o", "data order": "d", "metrics": "m"}


@pytest.mark.slow
@pytest.mark.timeout(300)  # half a minute of work, on machines that other tests share
def test_an_asynchronous_run_killed_three_times_ends_bit_for_bit_like_an_uninterrupted_one():
    command = [sys.executable, "-m", "tests.kill", "--kills", "3", "--staleness", "2"]
    # a process of its own: it forks, and this one has threads
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout


@pytest.mark.parametrize("part", list(WHOLE))
def test_one_part_that_differs_in_one_run_fails_the_harness(part):
    assert Campaign(staleness=0, expected=WHOLE, digests=[WHOLE, WHOLE]).is_good
    assert not Campaign(staleness=0, expected=WHOLE, digests=[WHOLE, {**WHOLE, part: "x"}]).is_good
    assert not Campaign(staleness=0, expected=WHOLE).is_good
