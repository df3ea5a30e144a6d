"""Difficulty that follows a target success rate, per environment (pure).

Every environment has a level, a real number within its difficulties. When a step has been taken from some of its
groups, of which a share `rate` of the episodes succeeded,

    level <- level + clip(0.5 (rate - target), -0.25, 0.25)

and back into the range: a stochastic approximation (Robbins and Monro, 1951) of the level at which the rate is the
target. A group is played at the level rounded down or up, up with the probability of the fraction, drawn from (seed,
group). What a group was given when it was admitted stays with it, through retries and restarts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from agentenv.errors import CheckpointError, UsageError
from agentenv.seeds import derive_seed

GAIN = 0.5
MAX_CHANGE = 0.25
"""Largest change of a level in one step of the trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What one environment's difficulty follows.

    Attributes:
        target: success rate, between 0 and 1.
        start: first level.
        low: easiest difficulty.
        high: hardest one.
    """

    target: float
    start: float
    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise UsageError(f"target_success is {self.target}; a number between 0 and 1 is needed")
        if not self.low <= self.start <= self.high:
            raise UsageError(f"difficulty is {self.start:g}; allowed are {self.low} to {self.high}")


class Curriculum:
    """The levels of a run.

    Args:
        courses: by index of the environment; those without one keep their difficulty.
        seed: of the run.

    Attributes:
        levels: by index of the environment.
    """

    def __init__(self, courses: Mapping[int, Course], *, seed: int) -> None:
        self.courses = dict(courses)
        self.seed = seed
        self.levels = {part: course.start for part, course in self.courses.items()}
        self._given: dict[int, int] = {}  # by group, from its admission until it is trained on

    def difficulty(self, number: int, *, part: int) -> int | None:
        """Return the difficulty of group `number` of an environment; None where it follows nothing."""
        if part not in self.levels:
            return None
        if number not in self._given:
            below = math.floor(self.levels[part])
            draw = derive_seed(self.seed, "difficulty", number) / 2**63
            self._given[number] = below + int(draw < self.levels[part] - below)
        return self._given[number]

    def observe(self, outcomes: Sequence[tuple[int, int, float]]) -> None:
        """Move the levels after a step.

        Args:
            outcomes: of the groups that the step took: (number, index of the environment, share that succeeded).
        """
        for part, course in self.courses.items():
            rates = [rate for _, at, rate in outcomes if at == part]
            if rates:
                change = GAIN * (sum(rates) / len(rates) - course.target)
                level = self.levels[part] + max(-MAX_CHANGE, min(MAX_CHANGE, change))
                self.levels[part] = max(float(course.low), min(float(course.high), level))
        for number, _, _ in outcomes:
            self._given.pop(number, None)

    def to_json(self) -> dict[str, object]:
        """Return the state as plain JSON values."""
        return {"levels": sorted(self.levels.items()), "given": sorted(self._given.items())}

    def restore(self, state: Mapping[str, object]) -> None:
        """Go on from what `to_json` gave.

        Raises:
            CheckpointError: it belongs to other environments.
        """
        levels = dict(cast("list[tuple[int, float]]", state.get("levels", [])))
        if set(levels) != set(self.levels):
            raise CheckpointError(
                f"the checkpoint has levels for environments {sorted(levels)}, the run for {sorted(self.levels)}"
            )
        self.levels = levels
        self._given = dict(cast("list[tuple[int, int]]", state.get("given", [])))
