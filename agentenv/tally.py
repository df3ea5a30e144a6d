"""Counts of what was played, kept where it happens and read by whoever wants to show them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from agentenv.trajectory import StopReason, Trajectory

EPISODE_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
EPISODE_TURNS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)


class Distribution:
    """How many values fell below each of some bounds, as a Prometheus histogram counts them.

    Args:
        bounds: ascending; a value equal to a bound lies below it.

    Attributes:
        total: sum of all values.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.total = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self._counts)

    def cumulative(self) -> list[tuple[float, int]]:
        """Return (bound, values at or below it) in order; the last bound is infinite."""
        out: list[tuple[float, int]] = []
        below = 0
        for bound, count in zip((*self.bounds, float("inf")), tuple(self._counts), strict=True):
            below += count
            out.append((bound, below))
        return out


class EpisodeTally:
    """What a runner has played.

    Attributes:
        num_ended: attempts by how they ended, those that were played again included.
        num_sampled_tokens: tokens that the policy wrote.
        seconds: duration of an attempt.
        turns: assistant turns of an attempt.
    """

    def __init__(self) -> None:
        self.num_ended = dict.fromkeys(StopReason, 0)
        self.num_sampled_tokens = 0
        self.seconds = Distribution(EPISODE_SECONDS)
        self.turns = Distribution(EPISODE_TURNS)

    def add(self, trajectory: Trajectory) -> None:
        """Count an attempt that ended."""
        self.num_ended[trajectory.stop_reason] += 1
        self.num_sampled_tokens += trajectory.num_sampled_tokens
        self.seconds.add(trajectory.metrics.get("episode_s", 0.0))
        self.turns.add(len(trajectory.turns))
