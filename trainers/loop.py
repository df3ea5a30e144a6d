"""The training loop of every mode: admit, play, credit, update, publish, and the bookkeeping around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from agentenv.engine.protocol import Engine, LoraAdapter
from agentenv.evaluate import EvalSummary, evaluate, evaluation_groups, summarise
from agentenv.game_env import against_the_script
from agentenv.runner import GroupSpec, Runner
from agentenv.store import TrajectoryStore
from agentenv.trainers.background import whole
from agentenv.trainers.bad_batch import BadBatches
from agentenv.trainers.checkpoint import CheckpointFolder, Progress
from agentenv.trainers.config import AlgorithmConfig, RunConfig
from agentenv.trainers.learner import Learner
from agentenv.trainers.mixture import Mixture
from agentenv.trainers.rollouts import Rollouts
from agentenv.trainers.sample import Sample
from agentenv.trainers.samples_from import assign
from agentenv.trainers.scheduler import Batch, Scheduler
from agentenv.trainers.source import group_source
from agentenv.trainers.sync.publish import publish
from agentenv.trainers.timeline import LOOP, note
from agentenv.trainers.worker import UpdatePlan
from agentenv.trajectory import Group, Trajectory

RL: Final = "rl"


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Everything that a loop works with; the pipeline owns and closes it.

    Attributes:
        config: of the run.
        learner: trains.
        engine: samples.
        runner: plays training episodes.
        referee: plays evaluation episodes, with its own sampling.
        store: keeps trajectories.
        checkpoints: keeps states.
        log: takes metrics of a step.
        told: shown to the person who waits, after every step.
        guard: stops a run whose updates are not finite.
        adapter: shape of the adapter that the learner's weights are; None where they are the whole model.
        profile: stands around the update of a step.
    """

    config: RunConfig
    learner: Learner
    engine: Engine
    runner: Runner
    referee: Runner
    store: TrajectoryStore
    checkpoints: CheckpointFolder
    log: Callable[[dict[str, float], int], None]
    told: Callable[[dict[str, float]], None]
    guard: BadBatches
    adapter: LoraAdapter | None = None
    profile: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()


class _Clock:
    """Seconds spent per phase of one step, by the event loop's clock, which a simulation may replace."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts
        self._lapped = asyncio.get_running_loop().time()
        self._idle_before_s = rollouts.idle_s
        self.spent: dict[str, float] = {}
        self.engine_idle_s = 0.0

    def lap(self, name: str) -> None:
        """Give the time since the last lap to a phase; what engines idle in an evaluation is none of training's."""
        now, idle_s = asyncio.get_running_loop().time(), self._rollouts.idle_s
        self.spent[name] = self.spent.get(name, 0.0) + now - self._lapped
        note(name.removesuffix("_s"), track=LOOP, start=self._lapped, end=now)
        self._lapped = now
        if name != "eval_s":
            self.engine_idle_s += idle_s - self._idle_before_s
        self._idle_before_s = idle_s


async def train(crew: Crew, *, start: Progress | None = None, waiting: Sequence[Group] = ()) -> Progress:
    """Train until the last step, or until validation success reaches the goal.

    With `max_staleness` 0, episodes and updates take turns. Above 0, later groups are played while a step trains; with
    `deterministic` they wait for each other, so that no clock decides what is trained on.

    Cancellation (Ctrl-C, a notice to leave) lets a step that has begun end, and saves a checkpoint before it goes on. A
    second one cuts the step, and nothing is saved.

    Args:
        crew: what to work with; learner and engine already hold the weights of `start`, whose version is the number
            of updates in them.
        start: where to go on; None begins at step 0.
        waiting: groups that were finished and not trained on at `start`.

    Returns:
        How far the run came.
    """
    config, scheduler = crew.config.trainer, _scheduler(crew.config, start)
    source = group_source(crew.config.env, seed=crew.config.seed, group_size=config.group_size)
    if start is not None and start.curriculum:
        source.curriculum.restore(start.curriculum)
    rollouts = Rollouts(
        runner=crew.runner,
        scheduler=scheduler,
        source=source,
        in_lockstep=config.deterministic,
        finished=waiting,
    )
    await crew.engine.forget_prefixes()
    try:
        async with rollouts:
            clock = _Clock(rollouts)
            while scheduler.live_version < config.num_steps:
                batch = await rollouts.next_batch()
                clock.lap("rollout_s")
                metrics = await whole(_step(crew, rollouts, batch=batch, clock=clock))
                success = metrics.get("eval/success")
                clock = _Clock(rollouts)
                is_done = _reached(success, config.stop_at_success)
                if is_done or is_due(scheduler.live_version, every=config.checkpoint_every, last=config.num_steps):
                    await _save(crew, rollouts, success=success)
                    clock.lap("save_s")
                if is_done:
                    break
    except asyncio.CancelledError:
        if scheduler.live_version == scheduler.num_steps:  # no step was cut
            await _save(crew, rollouts)
            await crew.checkpoints.settle()
        raise
    await crew.checkpoints.settle()
    return _progress(crew, rollouts)


async def _step(crew: Crew, rollouts: Rollouts, *, batch: Batch, clock: _Clock) -> dict[str, float]:
    """Train on a batch, publish the weights and leave the record of both; returns the metrics."""
    config, step = crew.config, batch.step + 1
    groups = rollouts.take(batch)
    crew.store.append([t for group in groups for t in group.trajectories], step=step, phase=RL)
    rollouts.source.observe(groups, success_reward=config.evaluation.success_reward)
    samples = credited(groups, config.algorithm)
    clock.lap("credit_s")
    with crew.profile(step):
        update = await crew.learner.update(samples, plan=update_plan(config, step=step))
    crew.guard.check(samples, update, step=step)
    clock.lap("update_s")
    await publish(crew.engine, await crew.learner.weights(), version=step, adapter=crew.adapter)
    rollouts.scheduler.weights_live(step)
    clock.lap("publish_s")

    metrics = {
        **rollout_metrics(groups, success_reward=config.evaluation.success_reward),
        **grouped(update, prefix="train"),
        **rollouts.take_counts(),
        **rollouts.source.metrics(),
        "rollout/staleness": float(max(batch.ages)),
        "checkpoint/failed": float(crew.checkpoints.take_failures()),
    }
    if is_due(step, every=config.evaluation.every, last=config.trainer.num_steps):
        summary = await validate(crew)
        metrics |= {f"eval/{name}": value for name, value in summary.metrics().items()}
        clock.lap("eval_s")
    if config.trainer.max_staleness == 0 or config.trainer.deterministic:
        # the next step must not depend on what an evaluation left in the cache; a resumed run has none
        await crew.engine.forget_prefixes()
    metrics |= _timing(clock, groups)
    crew.log(metrics, step)
    crew.told(metrics)
    return metrics


def is_due(step: int, *, every: int, last: int) -> bool:
    """True every so many steps, and after the last."""
    return step % every == 0 or step == last


async def validate(crew: Crew) -> EvalSummary:
    """Measure the engine's policy on the validation seeds."""
    summary, _ = await measure(crew, name="validation", num_episodes=crew.config.evaluation.num_validation)
    return summary


async def measure(crew: Crew, *, name: str, num_episodes: int) -> tuple[EvalSummary, list[Trajectory]]:
    """Play the evaluation called `name`; different purposes never share a seed with each other or with training.

    Environments of a mix come in their shares, each at the difficulty with which the run begins.
    """
    groups: list[GroupSpec] = []
    purpose = name if name == "validation" else "test"
    mixture = Mixture(weights=tuple(part.weight for part in crew.config.env.parts), seed=crew.config.seed)
    drawn = [mixture.at(number) for number in range(num_episodes)]
    for index, part in enumerate(crew.config.env.parts):
        groups += evaluation_groups(
            part.id,
            num_episodes=drawn.count(index),
            seed=crew.config.seed,
            env_kwargs={**against_the_script(part.id, part.kwargs), "split": "test"},
            purpose=f"{purpose}-{index}" if index else purpose,
        )
    return await evaluate(crew.referee, groups, name=name, success_reward=crew.config.evaluation.success_reward)


def credited(groups: Sequence[Group], algorithm: AlgorithmConfig) -> list[Sample]:
    """Turn finished groups into samples with their advantages."""
    return assign(
        groups,
        advantage=algorithm.advantage,
        divide_by_std=algorithm.divide_by_std,
        drop_zero_variance=algorithm.drop_zero_variance,
    )


def update_plan(config: RunConfig, *, step: int) -> UpdatePlan:
    """Return the plan of policy update `step`, counted from 1."""
    trainer = config.trainer
    return UpdatePlan(
        num_epochs=trainer.num_epochs,
        num_mini_batches=trainer.num_mini_batches,
        token_budget=trainer.max_tokens_per_micro_batch,
        temperature=config.sampling.temperature,
        num_steps=trainer.num_steps * trainer.num_epochs * trainer.num_mini_batches,
        seed=config.seed + step,
        version=step - 1,
    )


def rollout_metrics(groups: Sequence[Group], *, success_reward: float) -> dict[str, float]:
    """Describe the episodes of one step."""
    trajectories = [t for group in groups for t in group.trajectories]
    summary = summarise(trajectories, name="rollout", success_reward=success_reward)
    flat = {f"rollout/{name}": value for name, value in summary.metrics().items()}
    flat |= {f"rollout/reward/{name}": value for name, value in summary.components.items()}
    flat |= {f"rollout/stop/{name}": count / len(trajectories) for name, count in summary.stop_reasons.items()}
    same = [len({t.reward for t in group.scored}) < 2 for group in groups]
    flat["rollout/zero_variance_groups"] = sum(same) / len(same)
    flat["rollout/history_breaks"] = sum(t.metrics.get("history_breaks", 0.0) for t in trajectories)
    return flat


def _scheduler(config: RunConfig, start: Progress | None) -> Scheduler:
    if start is not None and start.scheduler:
        return Scheduler.from_json(start.scheduler)
    trainer = config.trainer
    return Scheduler(
        max_staleness=trainer.max_staleness, groups_per_step=trainer.groups_per_step, window=trainer.window
    )


def _progress(crew: Crew, rollouts: Rollouts, *, success: float | None = None) -> Progress:
    scheduler = rollouts.scheduler
    return Progress(
        phase=RL,
        step=scheduler.live_version,
        version=scheduler.live_version,
        scheduler=scheduler.to_json(),
        optimizer_steps=crew.learner.optimizer_steps,
        success=success,
        curriculum=rollouts.source.curriculum.to_json(),
    )


async def _save(crew: Crew, rollouts: Rollouts, *, success: float | None = None) -> None:
    """Begin a checkpoint; finished groups go along, so that only what was being played is played again."""
    progress = _progress(crew, rollouts, success=success)
    await crew.checkpoints.begin(progress, learner=crew.learner, waiting=rollouts.finished)


def _timing(clock: _Clock, groups: Sequence[Group]) -> dict[str, float]:
    spent = {f"time/{name}": seconds for name, seconds in clock.spent.items()}
    total = sum(clock.spent.values())
    training = max(total - clock.spent.get("eval_s", 0.0), 1e-9)
    sampled = sum(t.num_sampled_tokens for group in groups for t in group.trajectories)
    spent["time/step_s"] = total
    spent["time/trainer_idle"] = clock.spent.get("rollout_s", 0.0) / training
    spent["time/engine_idle"] = clock.engine_idle_s / training
    spent["time/sampled_tokens_per_s"] = sampled / max(clock.spent.get("rollout_s", 0.0), 1e-9)
    return spent


def grouped(metrics: dict[str, float], *, prefix: str) -> dict[str, float]:
    """Put metrics that name no topic under one."""
    return {name if "/" in name else f"{prefix}/{name}": value for name, value in metrics.items()}


def _reached(success: float | None, goal: float | None) -> bool:
    return success is not None and goal is not None and success >= goal
