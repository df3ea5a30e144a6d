"""What the tests of real engines share: which engine this interpreter has, and a small model that can play."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("vllm", "sglang")
PLACES = ("in_process", "process")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `engine_name` and `place` to tests that ask for them; every case carries the marker of its engine."""
    if "engine_name" in metafunc.fixturenames:
        metafunc.parametrize("engine_name", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in NAMES])
    if "place" in metafunc.fixturenames:
        metafunc.parametrize("place", PLACES)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, and say so, where the engine of a test is not installed beside this interpreter."""
    for name in NAMES:
        if item.get_closest_marker(name) is not None and importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed for {sys.executable}; run make test-engines")


@pytest.fixture(scope="session")
def warm_model(tmp_path_factory) -> Path:
    """Return the folder of the quickstart's model after its warm start: it plays, and has much to learn."""
    return _warm_started(tmp_path_factory.mktemp("warm"))


@pytest.fixture(scope="session")
def beginner(tmp_path_factory) -> Path:
    """Return the folder of a model that guesses among three numbers, twice, and does not know that 2 comes first."""
    return _warm_started(tmp_path_factory.mktemp("beginner"), "env.kwargs={high: 3}")


def _warm_started(folder: Path, *overrides: str) -> Path:
    arguments = [
        *("quickstart", "--name", "warm", f"output_dir={folder}"),
        *(
            "model.tiny.num_heads=2",
            "sft.num_demonstrations=2400",
            "trainer.num_steps=1",
            "evaluation.num_test=8",
            "evaluation.num_validation=8",
        ),
        *overrides,
    ]
    command = [sys.executable, "-c", "from agentenv.cli import main; main()", *arguments]
    env = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    return folder / "warm" / "start"
