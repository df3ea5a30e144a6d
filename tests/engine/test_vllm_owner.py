"""Processes that vLLM starts for us end with us; those of others are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from agentenv.engine.vllm_owner import end_with_owner, owned_processes

CHILD = (
    "import os, time; from agentenv.engine.vllm_owner import end_with_owner; end_with_owner(); "
    # one write for number and line end: two children share the pipe
    "os.write(1, b'%d\\n' % os.getpid()); time.sleep(300)"
)
OWNER = (
    "import subprocess, sys, time; from agentenv.engine.vllm_owner import owned_processes\n"
    "with owned_processes():\n    owned = subprocess.Popen([sys.executable, '-c', sys.argv[1]])\n"
    "free = subprocess.Popen([sys.executable, '-c', sys.argv[1]])\n"
    "time.sleep(300)"
)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_killed_owner_takes_its_processes_along_and_nothing_else():
    owner = subprocess.Popen([sys.executable, "-c", OWNER, CHILD], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(owner.stdout.readline()) for _ in range(2)]
    try:
        assert all(map(is_running, pids))
        owner.kill()
        owner.wait(10)
        for _ in range(100):
            if not all(map(is_running, pids)):
                break
            time.sleep(0.05)
        time.sleep(0.3)
        assert sum(map(is_running, pids)) == 1
    finally:
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)
        owner.stdout.close()


def test_the_owner_does_not_end_itself():
    with owned_processes():
        end_with_owner()

    end_with_owner()
    assert "AGENTENV_VLLM_OWNER" not in os.environ
