"""Which environment a group is played in: a weighted mix whose shares are kept from the beginning (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agentenv.errors import UsageError
from agentenv.seeds import derive_seed

_GOLDEN = 0.6180339887498949
"""Its multiples modulo 1 fill the unit interval more evenly than any other number's (H. Weyl, 1916)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A seeded endless order over environments; a pure function of (seed, number), so resuming needs the number only.

    Group n falls on the point (offset + 0.618... n) mod 1, where the offset comes from the seed, and an environment
    owns a part of the unit interval as long as its share of the weights. After n groups every count is within a few
    groups of n times the share, which independent draws are not.

    Attributes:
        weights: of the environments, positive, in any unit.
        seed: of the run.
    """

    weights: tuple[float, ...]
    seed: int

    def __post_init__(self) -> None:
        if not self.weights or not all(0 < weight < float("inf") for weight in self.weights):
            raise UsageError(f"weights of a mix are {self.weights}; positive numbers are needed")

    def at(self, number: int) -> int:
        """Return the index of the environment of group `number`, from 0."""
        return int(self._parts(np.array([number]))[0])

    def position(self, number: int) -> int:
        """Return how many groups before `number` are played in its environment."""
        if len(self.weights) == 1:
            return number
        return int(np.count_nonzero(self._parts(np.arange(number)) == self.at(number)))

    def _parts(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return chosen(numbers, offset=derive_seed(self.seed, "mixture") / 2**63, weights=self.weights)


def chosen(numbers: npt.NDArray[np.int64], *, offset: float, weights: Sequence[float]) -> npt.NDArray[np.int64]:
    """Return the index of the owner of each number's point.

    Args:
        numbers: int64[N], of groups.
        offset: point of group 0, in [0, 1).
        weights: of the owners, who share the unit interval in order.
    """
    ends = np.cumsum(weights) / sum(weights)
    return np.searchsorted(ends[:-1], (offset + _GOLDEN * numbers) % 1.0, side="right")
