"""Gathers what a run left behind into its report."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch
import transformers

import agentenv
from agentenv.config import public_yaml
from agentenv.evaluate import EvalSummary
from agentenv.metrics_log import MetricsLine, read_metrics
from agentenv.report import write_report
from agentenv.report_data import Curve, PhaseTime, ReportData, SuccessPoint, curve_of
from agentenv.store import TrajectoryStore
from agentenv.trainers.config import RunConfig
from agentenv.trainers.pipeline import AFTER, BEFORE, DEMONSTRATOR, RunResult
from agentenv.trainers.sft import SFT
from agentenv.transcript import TranscriptRow, transcript_of

_EXAMPLES_BEFORE, _EXAMPLES_AFTER = 3, 6


def write_run_report(result: RunResult, config: RunConfig) -> Path:
    """Write `report.html` and `learning_curve.png` into the run's folder; returns the page's path."""
    lines = list(read_metrics(result.folder / "metrics.jsonl"))
    teacher = result.evaluations.get(DEMONSTRATOR)
    sft_loss = curve_of(lines, f"{SFT}/cross_entropy")
    data = ReportData(
        title=f"{config.name}: {config.env.id}",
        env_id=config.env.id,
        model=config.model.path or "a small model made on the spot",
        finished_at=time.strftime("%Y-%m-%d %H:%M"),
        evals=tuple(result.evaluations[name] for name in (BEFORE, AFTER) if name in result.evaluations),
        phases=tuple(PhaseTime(name=name, seconds=seconds) for name, seconds in result.seconds.items()),
        sft_loss=sft_loss,
        rl_success=_over_updates(lines, "rollout/success"),
        rl_reward=_over_updates(lines, "rollout/reward"),
        evaluations=_validations(lines, config) + _before_points(result, warm_steps=max(sft_loss.steps, default=0)),
        demonstrator_success=None if teacher is None else teacher.success_rate,
        target_success=config.trainer.stop_at_success or 0.90,
        config_yaml=public_yaml(config),
        transcripts=_examples(result),
        facts=_facts(config),
        notes=_notes(config, teacher, result.evaluations.get(AFTER)),
    )
    return write_report(result.folder, data)


def _over_updates(lines: list[MetricsLine], name: str) -> Curve:
    """Return a metric over policy updates rather than over all optimizer steps."""
    relevant = [line for line in lines if name in line.metrics and "rl/step" in line.metrics]
    return curve_of(
        [MetricsLine(step=int(line.metrics["rl/step"]), metrics=line.metrics, time_s=line.time_s) for line in relevant],
        name,
    )


def _validations(lines: list[MetricsLine], config: RunConfig) -> tuple[SuccessPoint, ...]:
    curve = _over_updates(lines, "eval/success")
    count = config.evaluation.num_validation
    return tuple(
        SuccessPoint(phase="rl", step=step, success_rate=value, num_episodes=count)
        for step, value in zip(curve.steps, curve.values, strict=True)
    )


def _before_points(result: RunResult, *, warm_steps: int) -> tuple[SuccessPoint, ...]:
    """Return the evaluation before: it ends the warm start and begins the policy updates."""
    before = result.evaluations.get(BEFORE)
    if before is None:
        return ()
    rate, count = before.success_rate, before.num_episodes
    points = (SuccessPoint(phase="rl", step=0, success_rate=rate, num_episodes=count),)
    if warm_steps:
        points += (SuccessPoint(phase="sft", step=warm_steps, success_rate=rate, num_episodes=count),)
    return points


def _examples(result: RunResult) -> tuple[TranscriptRow, ...]:
    store = TrajectoryStore(result.folder / "trajectories")
    rows: list[TranscriptRow] = []
    for phase, count in ((BEFORE, _EXAMPLES_BEFORE), (AFTER, _EXAMPLES_AFTER)):
        found = [stored.trajectory for stored in store.scan(phase=phase)]
        rows += [transcript_of(t, step=0, phase=phase) for t in found[:count]]
    return tuple(rows)


def _facts(config: RunConfig) -> dict[str, str]:
    return {
        "seed": str(config.seed),
        "agentenv": agentenv.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": "cuda" if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads",
    }


def _notes(config: RunConfig, teacher: EvalSummary | None, after: EvalSummary | None) -> tuple[str, ...]:
    notes = [
        "Before and after are measured on test seeds, at temperature "
        f"{config.evaluation.temperature:g}. Validation, which decides when to stop, plays on other seeds, and "
        "training on yet others.",
        "Different seeds are different episodes, but a small environment has few different tasks: where the test "
        "tasks also occur in training, the figures show optimisation, not generalisation.",
    ]
    if teacher is not None and after is not None:
        beats = "beats" if after.success_low > teacher.success_rate else "does not clearly beat"
        notes.insert(
            0,
            f"The trained agent {beats} its teacher: success {after.success_rate:.3f} "
            f"(95 % interval {after.success_low:.3f} to {after.success_high:.3f}) against {teacher.success_rate:.3f}.",
        )
    return tuple(notes)
