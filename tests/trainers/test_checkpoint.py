"""Checkpoints: whole or absent, bit-exact, and damaged ones are passed over."""

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from agentenv.agent.policy import PolicyAgent
from agentenv.engine.scripted import ScriptedEngine
from agentenv.errors import CheckpointError
from agentenv.runner import GroupSpec, Runner
from agentenv.trainers.checkpoint import CheckpointFolder, Progress
from agentenv.trainers.config import AlgorithmConfig
from agentenv.trainers.learner import LocalLearner
from agentenv.trainers.model import PackedModel
from agentenv.trainers.optimizer import OptimizerConfig
from agentenv.trainers.tiny import make_tiny_model
from agentenv.trainers.worker import UpdatePlan, Worker
from tests.trainers.samples import policy_sample

PLAN = UpdatePlan(token_budget=1000, num_steps=10, seed=0, version=0)


def worker_of(seed=1, hidden_size=16):
    model = PackedModel(make_tiny_model(40, seed=seed, hidden_size=hidden_size, num_layers=2, num_heads=2))
    return Worker(model, optimizer=OptimizerConfig(learning_rate=1e-2), algorithm=AlgorithmConfig())


def progress(step):
    return Progress(phase="rl", step=step, version=step, scheduler={"a": [1, 2]}, optimizer_steps=step)


def save(folder, worker, step=1):
    return asyncio.run(folder.save(progress(step), learner=LocalLearner(worker)))


def newest(folder):
    found = folder.newest()
    assert found is not None
    return found


def flat(worker):
    return torch.cat([p.detach().flatten() for p in worker.model.parameters()])


def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    samples = [policy_sample(f"g/{i}/0", seed=i) for i in range(3)]
    folder, worker = CheckpointFolder(tmp_path), worker_of()
    worker.update(samples, plan=PLAN)
    save(folder, worker)
    worker.update(samples, plan=PLAN)

    other = worker_of(seed=2)
    found = newest(folder)
    asyncio.run(folder.load(found, learner=LocalLearner(other)))
    other.update(samples, plan=PLAN)

    assert found.progress == progress(1)
    assert torch.equal(flat(worker), flat(other))


def test_only_the_newest_are_kept(tmp_path):
    folder, worker = CheckpointFolder(tmp_path, keep=2), worker_of()
    for step in (1, 2, 3):
        save(folder, worker, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001-rl-step_2", "00000002-rl-step_3"]


def test_the_best_is_kept_beside_the_newest(tmp_path):
    folder, worker = CheckpointFolder(tmp_path, keep=1), worker_of()
    for step, success in ((1, 0.5), (2, 0.9), (3, 0.7), (4, None)):
        found = replace(progress(step), success=success)
        asyncio.run(folder.save(found, learner=LocalLearner(worker)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001-rl-step_2", "00000003-rl-step_4"]


def test_groups_that_wait_come_back_as_they_were(tmp_path, renderer):
    runner = Runner(engine=ScriptedEngine([()]), renderer=renderer, agent=PolicyAgent("demonstrate"))
    specs = [GroupSpec(group_id=name, env_id="agentenv/GuessNumber-v0", size=2) for name in ("3", "5.1")]
    groups = asyncio.run(runner.run_all(specs))

    folder = CheckpointFolder(tmp_path)
    asyncio.run(folder.save(progress(1), learner=LocalLearner(worker_of()), waiting=groups))

    found = newest(folder).waiting()
    assert [group.group_id for group in found] == ["3", "5.1"]
    for before, after in zip(groups, found, strict=True):
        for one, other in zip(before.trajectories, after.trajectories, strict=True):
            assert one.sequences[0].token_ids.tolist() == other.sequences[0].token_ids.tolist()
            assert one.sequences[0].logprobs.tolist() == other.sequences[0].logprobs.tolist()
            assert (one.turns, one.reward, one.messages) == (other.turns, other.reward, other.messages)


def test_a_damaged_file_of_waiting_groups_damages_the_checkpoint(tmp_path, renderer):
    runner = Runner(engine=ScriptedEngine([()]), renderer=renderer, agent=PolicyAgent("demonstrate"))
    groups = asyncio.run(runner.run_all([GroupSpec(group_id="0", env_id="agentenv/GuessNumber-v0")]))
    folder = CheckpointFolder(tmp_path)
    path = asyncio.run(folder.save(progress(1), learner=LocalLearner(worker_of()), waiting=groups))
    (part,) = (path / "waiting").iterdir()
    os.truncate(part, part.stat().st_size - 1)
    assert folder.newest() is None


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(tmp_path):
    samples = [policy_sample(f"g/{i}/0", seed=i) for i in range(3)]
    folder, worker = CheckpointFolder(tmp_path), worker_of()
    before = flat(worker)

    async def save_and_train():
        await folder.begin(progress(1), learner=LocalLearner(worker))
        worker.update(samples, plan=PLAN)  # the thread that writes cannot have reported its end yet
        await folder.settle()

    asyncio.run(save_and_train())
    other = worker_of(seed=2)
    asyncio.run(folder.load(newest(folder), learner=LocalLearner(other)))
    assert torch.equal(flat(other), before)
    assert not torch.equal(flat(worker), before)


def test_a_checkpoint_carries_the_configuration_and_the_random_states(tmp_path):
    folder = CheckpointFolder(tmp_path, config="name: mine\n")
    path = save(folder, worker_of())
    drawn = (random.gauss(0, 1), np.random.standard_normal(3).tolist(), torch.rand(2).tolist())

    asyncio.run(folder.load(newest(folder), learner=LocalLearner(worker_of())))

    assert (random.gauss(0, 1), np.random.standard_normal(3).tolist(), torch.rand(2).tolist()) == drawn
    assert (path / "config.yaml").read_text() == "name: mine\n"


@pytest.mark.fault(
    "newest checkpoint truncated or a bit flipped", then="the one before is used", metric="none: a warning names it"
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_says_so(tmp_path, caplog, damage):
    folder, worker = CheckpointFolder(tmp_path), worker_of()
    save(folder, worker, 1)
    damaged = save(folder, worker, 2)
    data = max(damaged.glob("*.distcp"), key=lambda path: path.stat().st_size)
    if damage == "flip":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "truncate":
        os.truncate(data, data.stat().st_size // 2)
    else:
        (damaged / "manifest.json").unlink()

    with caplog.at_level(logging.WARNING):
        assert newest(folder).progress.step == 1
    assert "damaged" in caplog.text


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    folder = CheckpointFolder(tmp_path)
    save(folder, worker_of(hidden_size=16))
    other = worker_of(hidden_size=32)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        asyncio.run(folder.load(newest(folder), learner=LocalLearner(other)))


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert CheckpointFolder(tmp_path / "new").newest() is None


@pytest.mark.fault("disk full: checkpoint", then="the older one loads", metric="CheckpointError")
def test_a_full_disk_leaves_the_older_checkpoint_and_no_rubbish(tmp_path):
    code = """
        import resource, signal, sys
        sys.path.insert(0, sys.argv[2])
        from tests.trainers.test_checkpoint import CheckpointFolder, newest, save, worker_of
        from agentenv.errors import CheckpointError
        folder, worker = CheckpointFolder(sys.argv[1]), worker_of()
        save(folder, worker, 1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            save(folder, worker, 2)
        except CheckpointError as error:
            print("refused", newest(folder).progress.step)
    """
    out = _run(code, tmp_path)
    assert out.stdout.strip() == "refused 1", out.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["00000000-rl-step_1"]


@pytest.mark.fault("kill -9 while a checkpoint is saved", then="a whole one loads", metric="none: a new process")
def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(tmp_path):
    code = """
        import sys
        sys.path.insert(0, sys.argv[2])
        from tests.trainers.test_checkpoint import CheckpointFolder, save, worker_of
        folder, worker = CheckpointFolder(sys.argv[1]), worker_of()
        save(folder, worker, 0)
        print("ready", flush=True)
        step = 1
        while True:
            save(folder, worker, step)
            step += 1
    """
    command = _command(code, tmp_path)
    for delay in (0.0, 0.013, 0.037):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        assert CheckpointFolder(tmp_path).newest() is not None


def _command(code, folder):
    here = os.path.dirname(__file__)
    root = os.path.dirname(os.path.dirname(here))
    return [sys.executable, "-c", textwrap.dedent(code), str(folder), root]


def _run(code, folder):
    return subprocess.run(_command(code, folder), capture_output=True, text=True, timeout=120, check=False)
