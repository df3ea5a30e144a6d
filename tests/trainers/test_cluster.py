"""Runs on a real Ray cluster of two nodes, which are processes of this machine."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentenv.agent.chat import ChatAgent
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.config import load_config
from agentenv.engine.pool import Pool
from agentenv.engine.weights import weights_checksum
from agentenv.errors import ClusterError, PlacementError
from agentenv.metrics_log import read_metrics
from agentenv.renderer import Renderer
from agentenv.runner import GroupSpec
from agentenv.trainers.checkpoint import CheckpointFolder
from agentenv.trainers.cluster_peer import call_all
from agentenv.trainers.command import train
from agentenv.trainers.config import RunConfig
from agentenv.trainers.model import load_policy, named_weights
from agentenv.trainers.phase import Phase, phase_worker
from agentenv.trainers.state import load_state
from agentenv.trainers.sync.publish import publish

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parent.parent.parent
NUM_STEPS = 40
CONFIG = f"""
num_threads: 1
env: {{id: agentenv/GuessNumber-v0}}
model: {{tiny: {{hidden_size: 32, num_heads: 2}}}}
engine: {{max_slots: 16, max_length: 256}}
runner: {{limits: {{max_turn_tokens: 24, max_context_tokens: 256}}}}
sft: {{num_demonstrations: 256, batch_size: 16, learning_rate: 8e-3}}
algorithm: {{advantage: grpo, loss: {{policy: ppo_clip}}}}
trainer:
  num_steps: {NUM_STEPS}
  groups_per_step: 4
  group_size: 4
  num_epochs: 2
  num_mini_batches: 2
  checkpoint_every: 1
  optimizer: {{learning_rate: 1e-3}}
evaluation: {{every: 100, num_validation: 4, num_test: 4}}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    """Two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(ROOT)
    settings = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=settings)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def second_node(cluster):
    return cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("cluster") / "run.yaml"
    made.write_text(CONFIG)
    return made


def checksum(folder: Path) -> str:
    return weights_checksum(named_weights(load_policy(folder / "model").model))


def wait_for_step(folder: Path, step: int, *, is_alive, timeout_s: float = 120.0) -> None:
    ends_at = time.monotonic() + timeout_s
    metrics = folder / "metrics.jsonl"
    while time.monotonic() < ends_at:
        if metrics.is_file() and any(line.metrics.get("rl/step", -1) >= step for line in read_metrics(metrics)):
            return
        assert is_alive(), "the run ended before its step"
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached within {timeout_s:g} s")


def test_ctrl_c_on_a_cluster_saves_the_weights_that_one_process_has_bit_for_bit(cluster, path):
    root = path.parent
    # far more steps than it will take: the signal must find it at work
    overrides = ["name=both", f"output_dir={root}", f"cluster.address={cluster.address}", "trainer.num_steps=60"]
    command = [sys.executable, "-c", "from agentenv.cli import main; main()", "train", str(path), *overrides]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for_step(root / "both", 2, is_alive=lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, told
    assert "reinforcement learning: started" in told  # the driver's lines reach the terminal
    newest = CheckpointFolder(root / "both" / "checkpoints").newest()
    assert newest is not None
    assert newest.progress.phase == "rl"

    # one process takes as many updates as the cluster did before Ctrl-C
    goal = f"trainer.num_steps={newest.progress.step}"
    whole = train(path, ["name=whole", f"output_dir={root}", goal], resume=False, dry_run=False)
    assert whole is not None
    start = load_policy(root / "both" / "start")
    phase = Phase(config=load_config(RunConfig, path), kind="rl", model=str(root / "both" / "start"))
    worker = phase_worker(phase, policy=start.model)
    load_state(newest.path, model=worker.model, optimizer=worker.optimizer)
    assert weights_checksum(worker.weights()) == checksum(whole.folder)


def test_more_nodes_than_there_are_are_refused_before_a_folder_is_made(cluster, second_node, path):
    overrides = ["name=much", f"output_dir={path.parent}", f"cluster.address={cluster.address}", "cluster.nodes=3"]

    with pytest.raises(PlacementError, match="asks for 3 nodes with 1 CPUs and 0 GPUs each, and 2 of the cluster's 2"):
        train(path, overrides, resume=False, dry_run=False)

    assert not (path.parent / "much").exists()


async def test_a_lost_rollout_worker_gives_its_groups_back_and_is_replaced_with_the_current_weights(
    cluster, second_node, path, tmp_path
):
    from agentenv.trainers.cluster import connected
    from agentenv.trainers.cluster_site import open_ray_site

    overrides = [f"cluster.address={cluster.address}", "cluster.nodes=2"]
    config = load_config(RunConfig, path, overrides=overrides)
    specs = [GroupSpec(group_id=str(i), env_id=config.env.id, seed=i, size=2) for i in range(8)]
    with connected(cluster.address):
        site = await open_ray_site(config, folder=tmp_path)
        try:
            policy = load_policy(path.parent / "both" / "initial")
            engine = await site.engine(policy, version=0, folder=tmp_path / "served", start=tmp_path, told=print)
            assert isinstance(engine, Pool)
            renderer = Renderer(byte_tokenizer(), family="qwen3")
            runner = site.runner(engine, renderer, agent=ChatAgent(), sampling=config.sampling)
            fleet = site._fleet
            assert fleet is not None
            hosts = {peer.name.rsplit("node", 1)[1] for peer in fleet._peers.values()}
            assert await call_all(site._ranks, "alive", timeout_s=60) == [True, True]
            assert len(hosts) == 2  # the placement spreads over both nodes
            await publish(engine, named_weights(policy.model), version=1)

            playing = asyncio.create_task(runner.run_all(specs))
            await asyncio.sleep(0.05)
            fleet._peers[0].kill()
            groups = await asyncio.wait_for(playing, timeout=60)
            for _ in range(600):
                if engine.stats()[0].num_restarts == 1 and engine.stats()[0].state == "live":
                    break
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("the worker was not replaced within a minute")
            again = await asyncio.wait_for(runner.run_all(specs), timeout=60)

            assert [group.group_id for group in groups] == [spec.group_id for spec in specs]
            spans = [s for g in again for t in g.trajectories for turn in t.turns for s in turn.weight_versions]
            assert {span.version for span in spans} == {1}
            await engine.close()
        finally:
            await site.close()


def test_a_node_that_leaves_ends_the_run_with_who_was_lost_and_the_run_goes_on_elsewhere(cluster, second_node, path):
    from agentenv.trainers.cluster import connected

    overrides = ["name=left", f"output_dir={path.parent}"]
    failures: list[BaseException] = []

    def run() -> None:
        try:
            cluster_keys = [f"cluster.address={cluster.address}", "cluster.nodes=2"]
            train(path, [*overrides, *cluster_keys], resume=False, dry_run=False)
        except BaseException as error:
            failures.append(error)

    with connected(cluster.address):
        running = threading.Thread(target=run)
        running.start()
        wait_for_step(path.parent / "left", 1, is_alive=running.is_alive)
        cluster.remove_node(second_node)
        running.join(timeout=60)
        assert not running.is_alive(), "the loss was not noticed"

    assert len(failures) == 1
    assert isinstance(failures[0], ClusterError)
    assert "rank" in str(failures[0])
    assert "lost" in str(failures[0])
    result = train(path, [*overrides, "trainer.num_steps=6"], resume=True, dry_run=False)
    assert result is not None
    assert result.steps >= 1
