"""The training loop in virtual time: what it trains on, how old that is, who waits, and what a resume keeps."""

import asyncio
import math
from dataclasses import replace
from typing import Any, cast

import pytest

from agentenv.trainers.bad_batch import BadBatches
from agentenv.trainers.checkpoint import CheckpointFolder
from agentenv.trainers.config import EnvConfig, EvaluationConfig, ModelConfig, RunConfig, TrainerConfig
from agentenv.trainers.loop import Crew, train
from agentenv.trainers.simulate import simulate
from agentenv.trainers.simulated import CountingStore, SimulatedEngine, SimulatedLearner, SimulatedRunner, Workload
from agentenv.trainers.virtual_time import run_virtually

FIXED = Workload(median_tokens=100, sigma=0.0, decode_s=0.1, batch_knee=1e12, update_s=30, sync_s=0)
"""Every episode takes exactly 10 s, however many run; an update takes 30 s."""


class Recording(CountingStore):
    """Also keeps which weights played each group, and by which step it was trained on."""

    def __init__(self):
        super().__init__()
        self.versions = {}
        self.appended = asyncio.Queue()

    def append(self, trajectories, *, step, phase):
        rows = list(trajectories)
        self.appended.put_nowait(step)
        for row in rows:
            self.versions[int(row.group_id)] = (row.turns[0].weight_versions[0].version, step - 1)
        return super().append(rows, step=step, phase=phase)


class SlowDisk(SimulatedLearner):
    """Cannot save while its disk is full."""

    is_full = False

    async def save(self, folder):
        if self.is_full:
            raise OSError(28, "No space left on device")


class Noting(SimulatedRunner):
    """Notes which groups it plays."""

    def __init__(self, engine):
        super().__init__(engine)
        self.played = []

    async def run_group(self, spec):
        self.played.append(int(spec.group_id))
        return await super().run_group(spec)


class Bench:
    """A crew of simulated members, with what it left behind."""

    def __init__(self, folder, workload=FIXED, **trainer):
        self.workload, self.engine = workload, SimulatedEngine(workload)
        self.store, self.learner, self.lines = Recording(), SlowDisk(workload), []
        self.runner = Noting(self.engine)
        settings = {"groups_per_step": 2, "group_size": 2, "num_steps": 6, "checkpoint_every": 10**9, **trainer}
        self.crew = Crew(
            config=RunConfig(
                env=EnvConfig(id="agentenv/GuessNumber-v0"),
                model=ModelConfig(path="simulated"),
                trainer=TrainerConfig(**settings),
                evaluation=EvaluationConfig(every=10**9, num_validation=0),
            ),
            learner=self.learner,
            engine=self.engine,
            runner=self.runner,
            referee=self.runner,
            store=self.store,
            checkpoints=CheckpointFolder(folder),
            log=lambda metrics, step: self.lines.append(metrics),
            told=lambda metrics: None,
            guard=BadBatches(folder / "bad_batches", limit=3),
        )

    def train(self):
        return run_virtually(train(self.crew))


@pytest.mark.parametrize("staleness", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("is_deterministic", [False, True])
def test_ages_are_bounded_and_every_group_is_trained_on_exactly_once(tmp_path, staleness, window, is_deterministic):
    bench = Bench(
        tmp_path,
        Workload(median_tokens=100, sigma=1.5, update_s=2, sync_s=0.1, slots=7),
        max_staleness=staleness,
        window=window,
        deterministic=is_deterministic,
        num_steps=40,
    )
    end = bench.train()

    trained = bench.store.trained
    assert len(trained) == len(set(trained)) == 80
    # what was admitted and not trained on is still there, so nothing was dropped
    state = cast("dict[str, Any]", end.scheduler)
    left = {group for group, *_ in state["groups"]}
    assert set(trained) | left == set(range(state["next_group"]))
    assert not set(trained) & left
    ages = [step - version for version, step in bench.store.versions.values()]
    assert 0 <= min(ages) <= max(ages) <= staleness + math.ceil((window - 1) / 2)
    if window == 1:
        assert trained == list(range(80))


def test_above_staleness_zero_episodes_are_played_during_updates(tmp_path):
    # 6 steps: S = 0 plays 10 s and trains 30 s each time; S = 1 plays the next batch while it trains
    assert _seconds(Bench(tmp_path / "0", max_staleness=0)) == pytest.approx(6 * 40, abs=1e-6)
    assert _seconds(Bench(tmp_path / "1", max_staleness=1)) == pytest.approx(10 + 6 * 30, abs=1e-6)


def _seconds(bench):
    bench.train()
    return sum(line["time/step_s"] for line in bench.lines)


def test_idle_shares_are_the_waiting_trainer_and_the_empty_engine(tmp_path):
    turns, side_by_side = Bench(tmp_path / "0", max_staleness=0), Bench(tmp_path / "1", max_staleness=1)
    turns.train()
    side_by_side.train()

    # in turns: of 40 s the trainer waits 10 and the engine 30
    assert {round(line["time/trainer_idle"], 6) for line in turns.lines} == {0.25}
    assert {round(line["time/engine_idle"], 6) for line in turns.lines} == {0.75}
    # side by side: an update of 30 s, in whose first 10 s the engine plays the next batch
    assert [round(line["time/trainer_idle"], 6) for line in side_by_side.lines[1:]] == [0.0] * 5
    assert [round(line["time/engine_idle"], 6) for line in side_by_side.lines[2:]] == [pytest.approx(2 / 3)] * 4


def test_in_deterministic_mode_every_batch_is_exactly_as_old_as_allowed_and_no_clock_matters(tmp_path):
    def trained(name, workload):
        bench = Bench(tmp_path / name, workload, max_staleness=2, deterministic=True, num_steps=8)
        bench.train()
        return bench.store.versions

    fast, slow = trained("fast", FIXED), trained("slow", replace(FIXED, sigma=2.0, update_s=0.01, slots=3))

    # groups 0..5 are admitted at once at version 0; after that two per step, at that step's version
    assert fast == {group: (max(0, group // 2 - 2), group // 2) for group in range(16)}
    assert slow == fast


def test_a_resumed_run_trains_on_the_groups_that_were_finished_and_plays_only_the_others(tmp_path):
    first = Bench(tmp_path, max_staleness=2, num_steps=3)
    first.train()
    checkpoint = CheckpointFolder(tmp_path).newest()
    assert checkpoint is not None
    waiting = checkpoint.waiting()

    second = Bench(tmp_path, max_staleness=2, num_steps=8)
    second.engine.version = 3
    run_virtually(train(second.crew, start=checkpoint.progress, waiting=waiting))

    # two groups were admitted when version 2 went live, and were played during the third update
    assert [group.group_id for group in waiting] == ["6", "7", "8", "9"]
    assert first.store.trained + second.store.trained == list(range(16))
    assert min(second.runner.played) == 10


def test_a_full_disk_costs_a_checkpoint_and_a_metric_and_not_the_run(tmp_path, caplog):
    bench = Bench(tmp_path, num_steps=6, checkpoint_every=2)
    log = bench.crew.log

    def fill_and_free(metrics, step):
        bench.learner.is_full = step in (2, 3)
        log(metrics, step)

    bench.crew = replace(bench.crew, log=fill_and_free)
    bench.train()

    # the checkpoint after step 2 failed, which the next line says; those after 4 and 6 were written
    assert [line["checkpoint/failed"] for line in bench.lines] == [0, 0, 1, 0, 0, 0]
    assert "No space left on device" in caplog.text
    assert sorted(path.name[9:] for path in tmp_path.iterdir()) == ["rl-step_4", "rl-step_6"]


async def test_a_cancelled_run_ends_its_step_and_saves_it(tmp_path):
    bench = Bench(tmp_path, replace(FIXED, decode_s=1e-6, update_s=0.2), max_staleness=1, num_steps=10**6)
    task = asyncio.create_task(train(bench.crew))
    async with asyncio.timeout(20):
        while await bench.store.appended.get() < 3:  # then the third update begins
            pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)

    checkpoint = CheckpointFolder(tmp_path).newest()
    assert checkpoint is not None
    assert checkpoint.progress.step == len(bench.lines) == len(bench.store.trained) // 2


async def test_a_run_that_is_cancelled_twice_saves_nothing_of_the_step_that_was_cut(tmp_path):
    bench = Bench(tmp_path, replace(FIXED, decode_s=1e-6, update_s=1000), num_steps=10)
    task = asyncio.create_task(train(bench.crew))
    async with asyncio.timeout(20):
        await bench.store.appended.get()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.05)
        with pytest.raises(asyncio.CancelledError):
            await task
    assert CheckpointFolder(tmp_path).newest() is None


def test_the_simulator_drops_nothing_and_gains_from_staleness():
    def run(staleness):
        trainer = TrainerConfig(num_steps=20, groups_per_step=4, group_size=4, max_staleness=staleness)
        return simulate(Workload(update_s=60), trainer=trainer.model_copy(update={"checkpoint_every": 10**9}))

    slow, fast = run(0), run(4)
    assert slow.num_dropped == fast.num_dropped == 0
    assert (slow.oldest, fast.oldest) == (0, 4)
    assert slow.seconds / fast.seconds > 1.5
    assert run(4) == fast
