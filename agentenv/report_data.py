"""What a report says: evaluations, curves, times and transcripts, as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from agentenv.evaluate import EvalSummary
from agentenv.metrics_log import MetricsLine
from agentenv.transcript import TranscriptRow


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTime:
    """Wall-clock time of one part of the run."""

    name: str
    seconds: float
    num_steps: int = 0
    num_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Values over training steps, ascending."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.steps) == len(self.values)

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessPoint:
    """An evaluation during training: where on the axis, how good, over how many episodes."""

    phase: Literal["sft", "rl"]
    step: int
    success_rate: float
    num_episodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that the report of a run shows.

    Attributes:
        title: headline.
        env_id: what was played.
        model: what was trained.
        finished_at: date and time, as text.
        evals: evaluations in the order of the run; the first is "before", the last "after".
        phases: wall-clock times in order.
        sft_loss: cross entropy in nats per token over supervised steps.
        rl_success: success rate of the training episodes over RL steps.
        rl_reward: their mean return over RL steps.
        evaluations: evaluations to draw as points.
        demonstrator_success: success rate of the demonstrations' author, the ceiling of imitation; None if unknown.
        target_success: level that the run should reach.
        config_yaml: the resolved configuration.
        transcripts: whole episodes.
        facts: versions, device, seed and the like, by name.
        notes: sentences that a reader needs to judge the numbers.
    """

    title: str
    env_id: str
    model: str
    finished_at: str
    evals: tuple[EvalSummary, ...] = ()
    phases: tuple[PhaseTime, ...] = ()
    sft_loss: Curve = Curve()
    rl_success: Curve = Curve()
    rl_reward: Curve = Curve()
    evaluations: tuple[SuccessPoint, ...] = ()
    demonstrator_success: float | None = None
    target_success: float = 0.90
    config_yaml: str = ""
    transcripts: tuple[TranscriptRow, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def curve_of(lines: Iterable[MetricsLine], name: str) -> Curve:
    """Collect one metric; of a step that was logged again after a resume, the later value counts.

    Values that are not finite are left out.
    """
    values = {line.step: line.metrics[name] for line in lines if name in line.metrics}
    kept = sorted((step, value) for step, value in values.items() if math.isfinite(value))
    return Curve(steps=tuple(step for step, _ in kept), values=tuple(value for _, value in kept))
