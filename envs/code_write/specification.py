"""Descriptions of functions: a chain of steps over a list of whole numbers, each in words, as code, and as itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agentenv.envs.drawing import pick
from agentenv.tools.code_tests import CallTest

NUM_TESTS = 16
_MIN_DIFFERENT = 6
"""Different expected values among the tests, so that no constant comes near."""
_NAMES = ("transform", "process", "convert", "rework", "shape", "derive", "reduce_all", "condense")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        text: in the imperative.
        code: an expression over `numbers`.
        apply: the same, for the expected values.
    """

    text: str
    code: str
    apply: Callable[[list[int]], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The last step, which makes the result; fields as of `Step`."""

    text: str
    code: str
    apply: Callable[[list[int]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """What a function must do."""

    name: str
    steps: tuple[Step, ...]
    ending: Ending

    @property
    def text(self) -> str:
        """The description."""
        lines = [f"{number}. {step.text}" for number, step in enumerate((*self.steps, self.ending), start=1)]
        opening = f"Write a Python function {self.name}(numbers). It takes a list of integers and does this:"
        return "\n".join([opening, *lines])

    @property
    def solution(self) -> str:
        """A program that does it."""
        lines = [f"    numbers = {step.code}" for step in self.steps]
        return "\n".join([f"def {self.name}(numbers):", *lines, f"    return {self.ending.code}"])

    def expected(self, numbers: list[int]) -> object:
        """Return what the function must return."""
        for step in self.steps:
            numbers = step.apply(numbers)
        return self.ending.apply(numbers)


def make_specification(rng: np.random.Generator, *, num_steps: int) -> Specification:
    """Draw a chain of steps."""
    steps = tuple(pick(rng, _STEPS)(rng) for _ in range(num_steps))
    return Specification(name=pick(rng, _NAMES), steps=steps, ending=pick(rng, _ENDINGS))


def make_problem(rng: np.random.Generator, *, num_steps: int) -> tuple[Specification, tuple[CallTest, ...]]:
    """Draw a function whose tests expect different values."""
    while True:
        specification = make_specification(rng, num_steps=num_steps)
        tests = make_tests(rng, specification)
        if len({repr(test.expected) for test in tests}) >= _MIN_DIFFERENT:
            return specification, tests


def make_tests(rng: np.random.Generator, specification: Specification) -> tuple[CallTest, ...]:
    """Draw lists, an empty one and one with repetitions among them, with what must come of each."""
    lists: list[list[int]] = [[], [7, 7, -7, 7, 0, 0]]
    while len(lists) < NUM_TESTS:
        lists.append(rng.integers(-60, 61, size=int(rng.integers(1, 14))).tolist())
    return tuple(CallTest(args=(list(given),), expected=specification.expected(list(given))) for given in lists)


def _keep_divisible(rng: np.random.Generator) -> Step:
    k = int(rng.integers(2, 6))
    return Step(
        text=f"Keep only the numbers that are divisible by {k}.",
        code=f"[n for n in numbers if n % {k} == 0]",
        apply=lambda numbers: [n for n in numbers if n % k == 0],
    )


def _drop_between(rng: np.random.Generator) -> Step:
    low = int(rng.integers(-30, 10))
    high = low + int(rng.integers(5, 25))
    return Step(
        text=f"Leave out the numbers from {low} to {high}, both included.",
        code=f"[n for n in numbers if not {low} <= n <= {high}]",
        apply=lambda numbers: [n for n in numbers if not low <= n <= high],
    )


def _multiply_add(rng: np.random.Generator) -> Step:
    k, plus = int(rng.integers(2, 9)), int(rng.integers(1, 20))
    return Step(
        text=f"Multiply every number by {k} and add {plus} to it.",
        code=f"[n * {k} + {plus} for n in numbers]",
        apply=lambda numbers: [n * k + plus for n in numbers],
    )


def _digit_sums(rng: np.random.Generator) -> Step:
    return Step(
        text="Replace every number by the sum of the decimal digits of its absolute value.",
        code="[sum(int(digit) for digit in str(abs(n))) for n in numbers]",
        apply=lambda numbers: [sum(int(digit) for digit in str(abs(n))) for n in numbers],
    )


def _running_totals(rng: np.random.Generator) -> Step:
    return Step(
        text="Replace every number by the sum of itself and all numbers before it.",
        code="[sum(numbers[: i + 1]) for i in range(len(numbers))]",
        apply=lambda numbers: [sum(numbers[: i + 1]) for i in range(len(numbers))],
    )


def _differences(rng: np.random.Generator) -> Step:
    return Step(
        text="Take the differences of neighbours: the second minus the first, the third minus the second, and so on. "
        "Of fewer than two numbers nothing is left.",
        code="[b - a for a, b in zip(numbers, numbers[1:])]",
        apply=lambda numbers: [b - a for a, b in itertools.pairwise(numbers)],
    )


def _distinct(rng: np.random.Generator) -> Step:
    return Step(
        text="Of equal numbers keep only the first.",
        code="list(dict.fromkeys(numbers))",
        apply=lambda numbers: list(dict.fromkeys(numbers)),
    )


def _sort_by_distance(rng: np.random.Generator) -> Step:
    k = int(rng.integers(-20, 21))
    return Step(
        text=f"Sort by distance from {k}, the nearest first; of two equally near the smaller one first.",
        code=f"sorted(numbers, key=lambda n: (abs(n - ({k})), n))",
        apply=lambda numbers: sorted(numbers, key=lambda n: (abs(n - k), n)),
    )


def _every_other(rng: np.random.Generator) -> Step:
    k = int(rng.integers(2, 4))
    return Step(
        text=f"Keep the first number and then every {'second' if k == 2 else 'third'} one, counted from there.",
        code=f"numbers[::{k}]",
        apply=lambda numbers: numbers[::k],
    )


def _rotate(rng: np.random.Generator) -> Step:
    k = int(rng.integers(1, 4))
    return Step(
        text=f"Move the first {k} numbers, or all where there are fewer, to the end, in their order.",
        code=f"numbers[{k}:] + numbers[:{k}]",
        apply=lambda numbers: numbers[k:] + numbers[:k],
    )


_STEPS: Sequence[Callable[[np.random.Generator], Step]] = (
    _keep_divisible,
    _drop_between,
    _multiply_add,
    _digit_sums,
    _running_totals,
    _differences,
    _distinct,
    _sort_by_distance,
    _every_other,
    _rotate,
)

_ENDINGS = (
    Ending(text="Return the list.", code="numbers", apply=lambda numbers: numbers),
    Ending(
        text="Return a tuple of how many numbers there are and their sum.",
        code="(len(numbers), sum(numbers))",
        apply=lambda numbers: (len(numbers), sum(numbers)),
    ),
    Ending(
        text="Return the largest minus the smallest number, or None where there are none.",
        code="max(numbers) - min(numbers) if numbers else None",
        apply=lambda numbers: max(numbers) - min(numbers) if numbers else None,
    ),
    Ending(
        text="Return a dictionary from every number to how often it occurs.",
        code="{n: numbers.count(n) for n in numbers}",
        apply=lambda numbers: {n: numbers.count(n) for n in numbers},
    ),
    Ending(
        text="Return the numbers as text, separated by single hyphens.",
        code="'-'.join(map(str, numbers))",
        apply=lambda numbers: "-".join(map(str, numbers)),
    ),
)
