"""Quick seeded chance, and the split that a text belongs to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from agentenv.splits import Split, split_of


def quick_random(rng: np.random.Generator) -> random.Random:
    """Return a generator seeded by `rng`; drawing from short lists is ten times as fast as with numpy."""
    return random.Random(int(rng.integers(2**63)))


def of_split(items: Sequence[str], split: Split) -> tuple[str, ...]:
    """Return those of `items` that belong to a split, by a hash of their text: train and test share none."""
    return _of_split(tuple(items), split)


@lru_cache(maxsize=128)
def _of_split(items: tuple[str, ...], split: Split) -> tuple[str, ...]:
    return tuple(item for item in items if split_of(item) == split)
