"""Draws from sequences, cheap enough for worlds of many parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from agentenv.splits import Split, draw_for

T = TypeVar("T")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Return one of the options."""
    return options[int(rng.integers(len(options)))]


def world_generator(rng: np.random.Generator, *, split: Split) -> np.random.Generator:
    """Return a generator for a world of a split.

    Its seed is one of 2**62, and a hash of the seed decides the split: worlds with more than a few drawn parts are
    never shared by train and test, and none is drawn in vain.
    """
    seed = draw_for(split, lambda: int(rng.integers(2**62)), content=lambda drawn: f"world {drawn}")
    return np.random.default_rng(seed)


def pick_each(rng: np.random.Generator, options: Sequence[T], *, count: int) -> list[T]:
    """Return `count` options, repetitions allowed."""
    return [options[index] for index in rng.integers(len(options), size=count).tolist()]


def pick_distinct(rng: np.random.Generator, options: Sequence[T], *, count: int) -> list[T]:
    """Return `count` different options in random order."""
    return [options[index] for index in rng.permutation(len(options))[:count].tolist()]
