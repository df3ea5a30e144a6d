"""An exported folder with a merged adapter is served by the real engines with the log-probs of transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from agentenv.engine.open import open_engine
from agentenv.metrics_log import read_metrics
from tests.real.conftest import ROOT
from tests.real.real_models import TOLERANCE, ask, distance, server_config

pytestmark = pytest.mark.timeout(900)

SHORT = (
    *("model.tiny.num_heads=2", "model.lora.rank=4", "trainer.optimizer.learning_rate=0.02", "trainer.num_steps=2"),
    *("sft.num_demonstrations=512", "evaluation.num_test=4", "evaluation.num_validation=4"),
)


def run(arguments: list[str], *, folder: Path) -> None:
    command = [sys.executable, "-c", "from agentenv.cli import main; main()", *arguments]
    env = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Return the folder that a short run with an adapter was exported to."""
    folder = tmp_path_factory.mktemp("exported")
    run(["quickstart", "--name", "short", f"output_dir={folder}", *SHORT], folder=folder)
    run(["export", str(folder / "short"), "--to", str(folder / "model")], folder=folder)
    return folder / "model"


async def test_an_exported_adapter_is_served_with_transformers_log_probs(exported, engine_name):
    model = AutoModelForCausalLM.from_pretrained(exported, dtype="auto")
    start = AutoModelForCausalLM.from_pretrained(exported.parent / "short" / "start", dtype="auto")
    config = server_config(name=engine_name, max_length=256, max_slots=8, cache_tokens=4096)
    prompt = list(range(5, 45))
    engine = await open_engine(config, model=str(exported), version=0)
    try:
        completion = await ask(engine, prompt)
    finally:
        await engine.close()

    assert distance(model, prompt, completion) < TOLERANCE[next(model.parameters()).dtype]
    assert distance(start, prompt, completion) > 1e-3  # without what the adapter learned


@pytest.mark.vllm
def test_vllm_is_sent_the_adapter_alone_and_samples_from_the_policy_that_is_trained(tmp_path):
    engine = "engine={name: vllm, max_length: 256, cache_tokens: 16384, dtype: float32, device: cpu}"
    run(["quickstart", "--name", "sent", f"output_dir={tmp_path}", *SHORT, engine], folder=tmp_path)

    updates = [line.metrics for line in read_metrics(tmp_path / "sent" / "metrics.jsonl") if "rl/step" in line.metrics]
    assert [metrics["rl/step"] for metrics in updates] == [1.0, 2.0]
    # the second update trains on what was sampled with the adapter of the first
    assert all(metrics["mismatch/k3"] < 1e-6 for metrics in updates)
    assert not (tmp_path / "sent" / "served").exists()  # vLLM was given the model under the adapter
