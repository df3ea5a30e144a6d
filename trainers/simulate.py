"""Wall-clock over staleness, by running the real scheduler and training loop on simulated clocks: `make simulate`.

    python -m agentenv.trainers.simulate [--plot docs/img/async.png]

Prints its figures last and exits 0 only where all of them hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agentenv.trainers.bad_batch import BadBatches
from agentenv.trainers.checkpoint import CheckpointFolder
from agentenv.trainers.config import EnvConfig, EvaluationConfig, ModelConfig, RunConfig, TrainerConfig
from agentenv.trainers.loop import Crew, train
from agentenv.trainers.scheduler import Scheduler
from agentenv.trainers.simulated import CountingStore, SimulatedEngine, SimulatedLearner, SimulatedRunner, Workload
from agentenv.trainers.simulated_plot import draw
from agentenv.trainers.virtual_time import run_virtually

STALENESS: tuple[int, ...] = (0, 1, 2, 4, 8)
SIGMAS: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25)
LEAST_SPEEDUP = 2.7
LEAST_TRANSITIONS_PER_S = 50_000
MOST_GROWTH_MB = 4.0
_NEVER = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a simulated run came to.

    Attributes:
        seconds: virtual, of the whole run.
        trainer_idle: mean share of a step in which the trainer waited for episodes.
        engine_idle: mean share of a step in which no episode was played.
        oldest: largest age that was trained on, in versions.
        num_dropped: groups that were admitted, left the loop and were not trained on, or were trained on twice.
    """

    seconds: float
    trainer_idle: float
    engine_idle: float
    oldest: int
    num_dropped: int


def simulate(
    workload: Workload,
    *,
    trainer: TrainerConfig,
    told: Callable[[dict[str, float]], None] = lambda metrics: None,
) -> Outcome:
    """Run the training loop with a workload; returns in real seconds what takes virtual hours.

    Args:
        workload: how long things take.
        trainer: staleness, window, sizes and number of steps.
        told: called with the metrics of every step.
    """
    return run_virtually(_simulate(workload, trainer=trainer, told=told))


async def _simulate(workload: Workload, *, trainer: TrainerConfig, told: Callable[[dict[str, float]], None]) -> Outcome:
    engine, store = SimulatedEngine(workload), CountingStore()
    runner = SimulatedRunner(engine)
    totals = {"time/step_s": 0.0, "time/trainer_idle": 0.0, "time/engine_idle": 0.0, "rollout/abandoned_groups": 0.0}
    oldest = 0.0

    def log(metrics: dict[str, float], step: int) -> None:
        nonlocal oldest
        for name in totals:
            totals[name] += metrics[name]
        oldest = max(oldest, metrics["rollout/staleness"])

    with tempfile.TemporaryDirectory(prefix="agentenv-simulate-") as scratch:
        crew = Crew(
            config=RunConfig(
                env=EnvConfig(id="agentenv/GuessNumber-v0"),
                model=ModelConfig(path="simulated"),
                trainer=trainer,
                evaluation=EvaluationConfig(every=_NEVER, num_validation=0),
            ),
            learner=SimulatedLearner(workload),
            engine=engine,
            runner=runner,
            referee=runner,
            store=store,
            checkpoints=CheckpointFolder(scratch),
            log=log,
            told=told,
            guard=BadBatches(Path(scratch) / "bad_batches"),
        )
        end = await train(crew)
    active = sum(len(group) > 0 for group in _groups(end.scheduler))
    num_admitted = end.scheduler["next_group"]
    assert isinstance(num_admitted, int)
    num_lost = num_admitted - active - len(set(store.trained))
    num_twice = len(store.trained) - len(set(store.trained))
    return Outcome(
        seconds=totals["time/step_s"],
        trainer_idle=totals["time/trainer_idle"] / end.step,
        engine_idle=totals["time/engine_idle"] / end.step,
        oldest=int(oldest),
        num_dropped=num_lost + num_twice + int(totals["rollout/abandoned_groups"]),
    )


def _groups(state: Mapping[str, object]) -> Sequence[Sequence[object]]:
    groups = state["groups"]
    assert isinstance(groups, list)
    return groups


def trainer_config(*, staleness: int, num_steps: int = 60, window: int = 1) -> TrainerConfig:
    """Return the loop's settings: 16 groups of 8 episodes."""
    return TrainerConfig(
        num_steps=num_steps,
        groups_per_step=16,
        group_size=8,
        max_staleness=staleness,
        window=window,
        checkpoint_every=_NEVER,
    )


def transitions_per_s() -> float:
    """Return scheduler transitions per CPU second: admissions, results, one failure in eight, steps, weights."""
    scheduler, count, started = Scheduler(max_staleness=4, groups_per_step=16, window=16), 0, time.process_time()
    while count < 200_000:
        while (ticket := scheduler.admit()) is not None:
            is_failure = (ticket.group + ticket.attempt) % 8 == 0
            (scheduler.fail if is_failure else scheduler.finish)(ticket)
            count += 2
        batch = scheduler.take()
        assert batch is not None
        scheduler.weights_live(batch.step + 1)
        count += 2
    return count / (time.process_time() - started)


def memory_growth_mb(*, num_steps: int = 10_000) -> float:
    """Return by how much resident memory grows from step 2,000 to the last of a small asynchronous run."""
    resident: dict[int, float] = {}

    def told(metrics: dict[str, float]) -> None:
        step = len(seen)
        seen.append(None)
        if step in (num_steps // 5, num_steps - 1):
            resident[step] = _resident_mb()

    seen: list[None] = []
    small = TrainerConfig(
        num_steps=num_steps, groups_per_step=2, group_size=2, max_staleness=4, checkpoint_every=_NEVER
    )
    simulate(Workload(), trainer=small, told=told)
    return resident[num_steps - 1] - resident[num_steps // 5]


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def curves() -> dict[float, list[Outcome]]:
    """Return sigma -> the outcome of every staleness, all of the same episodes."""
    return {
        sigma: [simulate(Workload(sigma=sigma), trainer=trainer_config(staleness=s)) for s in STALENESS]
        for sigma in SIGMAS
    }


def colocated() -> Outcome:
    """Return a synchronous run in which the trainer's accelerators also decode, and the engine's also train.

    Twice the machines for either phase: half the update, and a decoding step as long as one of half the batch.
    """
    split = Workload()
    shared = replace(split, batch_knee=2 * split.batch_knee, slots=2 * split.slots, update_s=split.update_s / 2)
    return simulate(shared, trainer=trainer_config(staleness=0))


def main() -> int:
    """Simulate, draw, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m agentenv.trainers.simulate", description=__doc__)
    parser.add_argument("--plot", type=Path, default=Path("docs/img/async.png"), help="where the picture goes")
    given = parser.parse_args()
    outcomes = curves()
    speedups = {sigma: [runs[0].seconds / run.seconds for run in runs] for sigma, runs in outcomes.items()}
    middle = outcomes[1.0]
    given.plot.parent.mkdir(parents=True, exist_ok=True)
    draw(
        given.plot,
        staleness=STALENESS,
        speedups=speedups,
        trainer_idle=[run.trainer_idle for run in middle],
        engine_idle=[run.engine_idle for run in middle],
        target=LEAST_SPEEDUP,
    )
    print(f"drew {given.plot}")
    for sigma, values in speedups.items():
        told = ", ".join(f"S={s}: {value:.2f}x" for s, value in zip(STALENESS, values, strict=True))
        print(f"sigma {sigma:g}: {told}")
    runs = dict(zip(STALENESS, middle, strict=True))
    print(f"synchronous at sigma 1: rollouts take {100 * runs[0].trainer_idle:.0f} % of a step")
    shared = colocated().seconds
    told = ", ".join(f"S={s}: {shared / run.seconds:.2f}x" for s, run in runs.items())
    print(f"against a synchronous run that shares all accelerators, sigma 1: {told}")
    return _judged(runs, [run for every in outcomes.values() for run in every])


def _judged(runs: Mapping[int, Outcome], everything: Sequence[Outcome]) -> int:
    """Print the figures that must hold; returns the exit code."""
    speedup = max(runs[0].seconds / run.seconds for s, run in runs.items() if s <= 4)
    dropped = sum(run.num_dropped for run in everything)
    too_old = max(run.oldest - s for s, run in runs.items())
    rate, growth = transitions_per_s(), memory_growth_mb()
    figures = (
        (f"speedup at S <= 4: {speedup:.2f}x (at least {LEAST_SPEEDUP:g}x)", speedup >= LEAST_SPEEDUP),
        (f"groups dropped: {dropped} (0)", dropped == 0),
        (f"versions beyond S: {too_old} (at most 0)", too_old <= 0),
        (
            f"scheduler transitions: {rate:,.0f}/s (at least {LEAST_TRANSITIONS_PER_S:,}/s)",
            rate >= LEAST_TRANSITIONS_PER_S,
        ),
        (f"memory over 10,000 steps: {growth:+.1f} MB (at most {MOST_GROWTH_MB:g} MB)", growth <= MOST_GROWTH_MB),
    )
    for told, holds in figures:
        print(f"{'ok' if holds else 'MISSED':<8}{told}")
    return 0 if all(holds for _, holds in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
