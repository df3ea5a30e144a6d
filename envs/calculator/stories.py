"""Word problems made from templates: an opening, changes to a running amount, and a question about the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Operation = Literal["+", "-", "*", "/", "%"]

_NAMES = (
    "Ada", "Ben", "Chen", "Dara", "Emil", "Fatima", "Goran", "Hana", "Iris", "Jonas", "Kofi", "Lena",
    "Mateo", "Nora", "Omar", "Priya", "Quinn", "Rosa", "Sami", "Tara", "Umut", "Vera", "Wanda", "Yusuf",
)  # fmt: skip
_DISCOUNTS = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A word problem and how it is solved.

    Attributes:
        text: story and question.
        steps: expressions, one operation each; every one begins with the result of the one before.
        answer: result of the last step; a whole number.
    """

    text: str
    steps: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    """First sentences; `{a}` and `{b}` are combined by the operation."""

    text: str
    operation: Literal["+", "-", "*"]
    a: tuple[int, int]
    b: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """A sentence that changes the running amount by a number drawn from `n`; `%` takes that many hundredths off."""

    text: str
    operation: Operation
    n: tuple[int, int] = (2, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Story:
    """A setting. `share` closes a story by a division, `question` asks for the amount itself."""

    openings: tuple[_Opening, ...]
    changes: tuple[_Change, ...]
    question: str
    share: _Change


def make_problem(rng: np.random.Generator, *, num_steps: int) -> Problem:
    """Draw a problem that takes `num_steps` operations."""
    story = _STORIES[int(rng.integers(len(_STORIES)))]
    opening = story.openings[int(rng.integers(len(story.openings)))]
    name = _NAMES[int(rng.integers(len(_NAMES)))]
    a, b = _draw(opening.a, rng), _draw(opening.b, rng)
    amount = _combine(a, opening.operation, b)
    sentences = [opening.text.format(name=name, a=a, b=b)]
    steps = [f"{a}{opening.operation}{b}"]
    last_text = ""
    while len(steps) < num_steps:
        is_last = len(steps) == num_steps - 1
        drawn = _possible((story.share,), amount, rng) if is_last and rng.random() < 0.5 else None
        if drawn is None:
            drawn = _possible([change for change in story.changes if change.text != last_text], amount, rng)
        assert drawn is not None, "a story whose changes cannot follow each other"
        change, n = drawn
        steps.append(_expression(amount, change.operation, n))
        amount = _combine(amount, change.operation, n)
        sentences.append(change.text.format(name=name, n=n))
        last_text = change.text
    if last_text != story.share.text:
        sentences.append(story.question.format(name=name))
    return Problem(text=" ".join(sentences), steps=tuple(steps), answer=amount)


def _possible(changes: Sequence[_Change], amount: int, rng: np.random.Generator) -> tuple[_Change, int] | None:
    """Draw a change, and its number, that keeps the amount whole and above 0; None where there is none."""
    for index in rng.permutation(len(changes)):
        change = changes[int(index)]
        low, high = change.n
        allowed = _DISCOUNTS if change.operation == "%" else range(low, high + 1)
        fitting = [n for n in allowed if _is_fitting(amount, change.operation, n)]
        if fitting:
            return change, fitting[int(rng.integers(len(fitting)))]
    return None


def _is_fitting(amount: int, operation: Operation, n: int) -> bool:
    if operation == "-":
        return n < amount
    if operation == "*":
        return amount * n < 1_000_000
    if operation == "/":
        return amount % n == 0 and amount > n
    if operation == "%":
        return amount * n % 100 == 0
    return True


def _combine(amount: int, operation: Operation, n: int) -> int:
    if operation == "+":
        return amount + n
    if operation == "-":
        return amount - n
    if operation == "*":
        return amount * n
    if operation == "/":
        return amount // n
    return amount * (100 - n) // 100


def _expression(amount: int, operation: Operation, n: int) -> str:
    return f"{amount}*(1-{n}%)" if operation == "%" else f"{amount}{operation}{n}"


def _draw(bounds: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


_STORIES: tuple[_Story, ...] = (
    _Story(  # money in a shop
        openings=(
            _Opening(text="{name} buys {a} notebooks for ${b} each.", operation="*", a=(3, 40), b=(2, 25)),
            _Opening(text="{name} buys a coat for ${a} and shoes for ${b}.", operation="+", a=(40, 180), b=(25, 140)),
            _Opening(
                text="{name} takes a bicycle for ${a} and has a voucher worth ${b}.",
                operation="-",
                a=(150, 900),
                b=(10, 120),
            ),
        ),
        changes=(
            _Change(text="Delivery adds ${n} to the bill.", operation="+", n=(3, 40)),
            _Change(text="A coupon takes ${n} off the bill.", operation="-", n=(2, 30)),
            _Change(text="Then the bill is reduced by {n}%.", operation="%"),
            _Change(text="Then the whole order is placed {n} times, all on the same bill.", operation="*", n=(2, 6)),
        ),
        question="How many dollars is the bill in the end?",
        share=_Change(
            text="In the end {n} people share the bill equally. How many dollars does each of them pay?",
            operation="/",
            n=(2, 12),
        ),
    ),
    _Story(  # distance
        openings=(
            _Opening(text="{name} cycles for {a} hours at {b} km per hour.", operation="*", a=(2, 9), b=(11, 28)),
            _Opening(
                text="{name} drives {a} km in the morning and {b} km in the afternoon.",
                operation="+",
                a=(30, 280),
                b=(20, 240),
            ),
            _Opening(
                text="{name} plans a walk of {a} km and leaves out {b} km of it.", operation="-", a=(30, 90), b=(2, 25)
            ),
        ),
        changes=(
            _Change(text="A detour makes the trip {n} km longer.", operation="+", n=(2, 60)),
            _Change(text="A shortcut saves {n} km of the trip.", operation="-", n=(2, 40)),
            _Change(text="The plan changes: the trip will be {n} times as long.", operation="*", n=(2, 5)),
            _Change(text="A new bridge makes the trip {n}% shorter.", operation="%"),
        ),
        question="How many kilometres long is the trip in the end?",
        share=_Change(
            text="In the end the trip is split into {n} stages of equal length. How many kilometres is a stage?",
            operation="/",
            n=(2, 12),
        ),
    ),
    _Story(  # a bakery
        openings=(
            _Opening(
                text="{name} bakes {a} loaves, and each needs {b} g of flour.", operation="*", a=(3, 30), b=(120, 600)
            ),
            _Opening(
                text="{name} pours {a} g of wheat flour and {b} g of rye flour into a bowl.",
                operation="+",
                a=(200, 900),
                b=(100, 800),
            ),
        ),
        changes=(
            _Change(text="Another {n} g of flour is added.", operation="+", n=(10, 400)),
            _Change(text="Of the flour, {n} g is spilled and thrown away.", operation="-", n=(5, 90)),
            _Change(text="For a feast the amount of flour is multiplied by {n}.", operation="*", n=(2, 6)),
            _Change(text="A customer cancels, and {n}% of the flour is put back.", operation="%"),
        ),
        question="How many grams of flour are there now?",
        share=_Change(
            text="The flour is divided equally between {n} bowls. How many grams are in each bowl?",
            operation="/",
            n=(2, 12),
        ),
    ),
    _Story(  # work rate
        openings=(
            _Opening(
                text="{name} packs {a} boxes per hour and works for {b} hours.", operation="*", a=(6, 48), b=(2, 9)
            ),
            _Opening(
                text="{name} packs {a} boxes on Monday and {b} boxes on Tuesday.",
                operation="+",
                a=(15, 160),
                b=(15, 160),
            ),
        ),
        changes=(
            _Change(text="A colleague adds {n} packed boxes.", operation="+", n=(4, 90)),
            _Change(text="Then {n} damaged boxes are taken away.", operation="-", n=(1, 20)),
            _Change(text="With new machines the stock of boxes grows to {n} times its size.", operation="*", n=(2, 8)),
            _Change(text="Of all boxes, {n}% are shipped and leave the hall.", operation="%"),
        ),
        question="How many boxes are in the hall now?",
        share=_Change(
            text="The boxes are loaded onto {n} lorries, the same number onto each. How many boxes does a lorry carry?",
            operation="/",
            n=(2, 12),
        ),
    ),
    _Story(  # savings
        openings=(
            _Opening(text="{name} saves ${a} every week for {b} weeks.", operation="*", a=(5, 60), b=(3, 26)),
            _Opening(
                text="{name} has ${a} in a savings box and spends ${b} of it.", operation="-", a=(120, 900), b=(5, 110)
            ),
        ),
        changes=(
            _Change(text="A grandmother puts ${n} into the box.", operation="+", n=(5, 100)),
            _Change(text="{name} takes ${n} out for a ticket.", operation="-", n=(2, 25)),
            _Change(text="A prize makes the savings {n} times as large.", operation="*", n=(2, 4)),
            _Change(text="{name} gives {n}% of the savings to charity.", operation="%"),
        ),
        question="How many dollars are in the box now?",
        share=_Change(
            text="{name} divides the savings equally among {n} cousins. How many dollars does each cousin get?",
            operation="/",
            n=(2, 12),
        ),
    ),
    _Story(  # water
        openings=(
            _Opening(
                text="A pump in {name}'s garden fills {a} litres per minute into a tank and runs for {b} minutes.",
                operation="*",
                a=(8, 45),
                b=(4, 40),
            ),
            _Opening(
                text="{name}'s tank holds {a} litres of water, and {b} litres are used for the beds.",
                operation="-",
                a=(200, 1200),
                b=(20, 150),
            ),
        ),
        changes=(
            _Change(text="Rain brings {n} litres more.", operation="+", n=(5, 150)),
            _Change(text="A leak loses {n} litres.", operation="-", n=(2, 60)),
            _Change(text="In the heat {n}% of the water evaporates.", operation="%"),
            _Change(text="After a storm the tank holds {n} times as much.", operation="*", n=(2, 4)),
        ),
        question="How many litres are in the tank now?",
        share=_Change(
            text="The water is poured into {n} equal barrels until the tank is empty. "
            "How many litres does each barrel get?",
            operation="/",
            n=(2, 12),
        ),
    ),
)
