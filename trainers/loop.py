"""The training loop of every mode: admit, play, credit, update, publish, and the bookkeeping around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agentenv.engine.protocol import Engine
from agentenv.evaluate import EvalSummary, evaluate, evaluation_groups, summarise
from agentenv.runner import Runner
from agentenv.store import TrajectoryStore
from agentenv.trainers.checkpoint import CheckpointFolder, Progress
from agentenv.trainers.config import AlgorithmConfig, RunConfig
from agentenv.trainers.rollouts import Rollouts
from agentenv.trainers.sample import Sample
from agentenv.trainers.samples_from import assign
from agentenv.trainers.scheduler import Scheduler
from agentenv.trainers.source import group_source
from agentenv.trainers.sync.publish import publish
from agentenv.trainers.worker import UpdatePlan, Worker
from agentenv.trajectory import Group, Trajectory

RL = "rl"


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Everything that a loop works with; the pipeline owns and closes it.

    Attributes:
        config: of the run.
        worker: trains.
        engine: samples.
        runner: plays training episodes.
        referee: plays evaluation episodes, with its own sampling.
        store: keeps trajectories.
        checkpoints: keeps states.
        log: takes metrics of a step.
        told: shown to the person who waits, after every step.
    """

    config: RunConfig
    worker: Worker
    engine: Engine
    runner: Runner
    referee: Runner
    store: TrajectoryStore
    checkpoints: CheckpointFolder
    log: Callable[[dict[str, float], int], None]
    told: Callable[[dict[str, float]], None]


@dataclass(slots=True)
class _Clock:
    """Seconds spent per phase of one step."""

    started: float = field(default_factory=time.perf_counter)
    spent: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.spent[name] = self.spent.get(name, 0.0) + now - self.started
        self.started = now


async def train(crew: Crew, *, start: Progress | None = None) -> Progress:
    """Train until the last step, or until validation success reaches the goal.

    Cancellation (Ctrl-C) saves a checkpoint of the last complete step before it goes on.

    Args:
        crew: what to work with; worker and engine already hold the weights of `start`, whose version is the number
            of updates in them.
        start: where to go on; None begins at step 0.

    Returns:
        How far the run came.
    """
    config, worker, scheduler = crew.config.trainer, crew.worker, _scheduler(crew.config, start)
    source = group_source(crew.config.env, seed=crew.config.seed, group_size=config.group_size)
    clock = _Clock()
    await crew.engine.forget_prefixes()
    try:
        async with Rollouts(runner=crew.runner, scheduler=scheduler, source=source) as rollouts:
            while scheduler.live_version < config.num_steps:
                rollouts.admit()
                batch = scheduler.take()
                if batch is None:
                    await rollouts.wait()
                    continue
                clock.lap("rollout_s")

                groups = rollouts.take(batch)
                step = batch.step + 1
                crew.store.append([t for group in groups for t in group.trajectories], step=step, phase=RL)
                samples = credited(groups, crew.config.algorithm)
                clock.lap("credit_s")
                update = worker.update(samples, plan=update_plan(crew.config, step=step))
                clock.lap("update_s")
                await publish(crew.engine, worker.weights(), version=step)
                scheduler.weights_live(step)
                clock.lap("publish_s")

                metrics = {
                    **rollout_metrics(groups, success_reward=crew.config.evaluation.success_reward),
                    **grouped(update, prefix="train"),
                    "rollout/abandoned_groups": float(rollouts.num_abandoned),
                    "rollout/retries": float(crew.runner.num_retries),
                    "rollout/staleness": float(max(batch.ages)),
                }
                if step % crew.config.evaluation.every == 0 or step == config.num_steps:
                    summary = await validate(crew)
                    metrics |= {f"eval/{name}": value for name, value in summary.metrics().items()}
                    clock.lap("eval_s")
                # the next step must not depend on what an evaluation left in the cache: a resumed run has none of it
                await crew.engine.forget_prefixes()
                metrics |= _timing(clock, groups)
                crew.log(metrics, step)
                crew.told(metrics)
                is_done = _reached(metrics.get("eval/success"), config.stop_at_success)
                if is_done or step % config.checkpoint_every == 0 or step == config.num_steps:
                    _save(crew, scheduler)
                if is_done:
                    break
                clock = _Clock()
    except asyncio.CancelledError:
        _save(crew, scheduler)
        raise
    return _progress(crew, scheduler)


async def validate(crew: Crew) -> EvalSummary:
    """Measure the engine's policy on the validation seeds."""
    summary, _ = await measure(crew, name="validation", num_episodes=crew.config.evaluation.num_validation)
    return summary


async def measure(crew: Crew, *, name: str, num_episodes: int) -> tuple[EvalSummary, list[Trajectory]]:
    """Play the evaluation called `name`; different purposes never share a seed with each other or with training."""
    env = crew.config.env
    purpose = name if name == "validation" else "test"
    groups = evaluation_groups(
        env.id,
        num_episodes=num_episodes,
        seed=crew.config.seed,
        env_kwargs={**env.kwargs, "split": "test"},
        purpose=purpose,
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
    """Restore the scheduler; a batch whose weights never went live is already in the checkpoint's weights."""
    if start is None or not start.scheduler:
        return Scheduler(max_staleness=0, groups_per_step=config.trainer.groups_per_step)
    scheduler = Scheduler.from_json(start.scheduler)
    if scheduler.live_version < scheduler.num_steps:
        scheduler.weights_live(scheduler.num_steps)
    return scheduler


def _progress(crew: Crew, scheduler: Scheduler) -> Progress:
    return Progress(
        phase=RL,
        step=scheduler.num_steps,
        version=scheduler.num_steps,
        scheduler=scheduler.to_json(),
        optimizer_steps=crew.worker.optimizer_steps,
    )


def _save(crew: Crew, scheduler: Scheduler) -> None:
    crew.checkpoints.save(_progress(crew, scheduler), model=crew.worker.model, optimizer=crew.worker.optimizer)


def _timing(clock: _Clock, groups: Sequence[Group]) -> dict[str, float]:
    spent = {f"time/{name}": seconds for name, seconds in clock.spent.items()}
    total = sum(clock.spent.values())
    sampled = sum(t.num_sampled_tokens for group in groups for t in group.trajectories)
    spent["time/step_s"] = total
    spent["time/sampled_tokens_per_s"] = sampled / max(clock.spent.get("rollout_s", 0.0), 1e-9)
    return spent


def grouped(metrics: dict[str, float], *, prefix: str) -> dict[str, float]:
    """Put metrics that name no topic under one."""
    return {name if "/" in name else f"{prefix}/{name}": value for name, value in metrics.items()}


def _reached(success: float | None, goal: float | None) -> bool:
    return success is not None and goal is not None and success >= goal
