"""Runs the tests or benchmarks of the real engines, each in the environment that `agentenv engines install` makes.

python -m tests.real test|bench [vllm|sglang ...] [-- PYTEST ARGUMENTS]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from agentenv.engine.engine_venv import EngineVenv
from agentenv.engine.install import install_engine
from agentenv.engine.server_config import ServerName

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES: tuple[ServerName, ...] = ("vllm", "sglang")
TEST_PACKAGES = ("pytest", "pytest-asyncio", "pytest-timeout")


def main(arguments: list[str]) -> int:
    """Run what was asked for; returns the first exit code that is not 0."""
    mode, *rest = arguments or ["test"]
    split = rest.index("--") if "--" in rest else len(rest)
    chosen, more = rest[:split], rest[split + 1 :]
    unknown = sorted(set(chosen) - set(NAMES))
    if mode not in ("test", "bench") or unknown:
        print(f"usage: python -m tests.real test|bench [{'|'.join(NAMES)} ...] [-- PYTEST ARGUMENTS]", file=sys.stderr)
        return 2
    codes = [_run(name, mode=mode, more=more) for name in NAMES if not chosen or name in chosen]
    return next((code for code in codes if code), 0)


def _run(name: ServerName, *, mode: str, more: list[str]) -> int:
    pip_args = os.environ.get("PIP_ARGS", "").split()
    venv = install_engine(name, pip_args=pip_args, report=lambda line: print(f"{name}: {line}", flush=True))
    _add_test_packages(venv, pip_args)
    # this very checkout, whichever one the environment was made from; on a CPU, SGLang needs modules of ours
    path = [str(ROOT / "agentenv" / "engine" / "sglang_cpu")] if (name, venv.device) == ("sglang", "cpu") else []
    path.append(str(ROOT))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    places = [] if any(one.startswith("tests/") for one in more) else ["tests/real"]
    command = [venv.python, "-m", "pytest", *places, "-m", name, *more]
    if mode == "bench":
        command = [venv.python, "-m", "tests.real.bench", name]
    print(f"{name}: {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


def _add_test_packages(venv: EngineVenv, pip_args: list[str]) -> None:
    probe = "import pytest, pytest_asyncio, pytest_timeout"
    if subprocess.run([venv.python, "-c", probe], capture_output=True, check=False).returncode == 0:
        return
    pip = [venv.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pip_args]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), *TEST_PACKAGES], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
