"""Number problems: what is asked, the answer, and the cells of somebody who computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agentenv.envs.drawing import pick, pick_distinct


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem.

    Attributes:
        text: what is asked.
        answer: a whole number.
        cells: Python cells that compute it; later ones use what earlier ones defined.
    """

    text: str
    answer: int
    cells: tuple[str, ...]


def make_problem(rng: np.random.Generator, *, difficulty: int) -> Problem:
    """Draw a problem of a difficulty, 1 to 5."""
    return pick(rng, _PROBLEMS[difficulty - 1])(rng)


def _multiples(rng: np.random.Generator) -> Problem:
    limit = int(rng.integers(1_000, 9_000))
    one, other = pick_distinct(rng, range(3, 20), count=2)
    return Problem(
        text=f"What is the sum of all whole numbers from 1 to {limit} that are divisible by {one} but not by {other}?",
        answer=sum(n for n in range(1, limit + 1) if n % one == 0 and n % other != 0),
        cells=(
            f"numbers = [n for n in range(1, {limit + 1}) if n % {one} == 0 and n % {other} != 0]",
            "sum(numbers)",
        ),
    )


def _power(rng: np.random.Generator) -> Problem:
    base, exponent, plus = int(rng.integers(3, 100)), int(rng.integers(50, 400)), int(rng.integers(2, 10_000))
    modulus = int(rng.integers(10_000, 10_000_000))
    return Problem(
        text=f"What is the remainder of {base}**{exponent} + {plus} divided by {modulus}?",
        answer=(base**exponent + plus) % modulus,
        cells=(f"value = {base}**{exponent} + {plus}", f"value % {modulus}"),
    )


def _digit_sums(rng: np.random.Generator) -> Problem:
    limit, divisor, last = int(rng.integers(2_000, 9_000)), int(rng.integers(4, 12)), int(rng.integers(0, 10))
    return Problem(
        text=f"How many whole numbers from 1 to {limit} end in the digit {last} and have a digit sum divisible by "
        f"{divisor}?",
        answer=sum(n % 10 == last and sum(map(int, str(n))) % divisor == 0 for n in range(1, limit + 1)),
        cells=(
            "def digit_sum(n):\n    return sum(map(int, str(n)))",
            f"sum(n % 10 == {last} and digit_sum(n) % {divisor} == 0 for n in range(1, {limit + 1}))",
        ),
    )


def _primes(rng: np.random.Generator) -> Problem:
    limit, modulus = int(rng.integers(2_000, 20_000)), int(rng.integers(3, 12))
    rest = int(rng.integers(1, modulus))
    found = _primes_up_to(limit)
    return Problem(
        text=f"What is the sum of all prime numbers up to {limit} that leave the remainder {rest} when divided by "
        f"{modulus}?",
        answer=sum(p for p in found if p % modulus == rest),
        cells=(
            "def is_prime(n):\n    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))",
            f"primes = [n for n in range({limit + 1}) if is_prime(n)]",
            f"sum(p for p in primes if p % {modulus} == {rest})",
        ),
    )


def _change(rng: np.random.Generator) -> Problem:
    amount = int(rng.integers(80, 400))
    coins = sorted(pick_distinct(rng, range(2, 26), count=4))
    return Problem(
        text=f"In how many ways can {amount} be written as a sum of the numbers {', '.join(map(str, coins))}, each "
        "used any number of times, where the order does not matter?",
        answer=_ways(amount, coins),
        cells=(
            f"ways = [1] + [0] * {amount}",
            f"for coin in {coins}:\n    for total in range(coin, {amount + 1}):\n"
            "        ways[total] += ways[total - coin]",
            f"ways[{amount}]",
        ),
    )


def _paths(rng: np.random.Generator) -> Problem:
    width, height = int(rng.integers(6, 14)), int(rng.integers(6, 14))
    blocked = sorted({(int(rng.integers(1, width)), int(rng.integers(1, height))) for _ in range(5)})
    return Problem(
        text=f"A path leads from (0, 0) to ({width}, {height}); every step adds 1 to one of the two coordinates. How "
        f"many such paths touch none of the points {', '.join(map(str, blocked))}?",
        answer=_paths_around(width, height, blocked),
        cells=(
            f"blocked = {set(blocked)!r}\npaths = {{(0, 0): 1}}",
            f"for x in range({width + 1}):\n    for y in range({height + 1}):\n        if (x, y) != (0, 0):\n"
            "            reached = paths.get((x - 1, y), 0) + paths.get((x, y - 1), 0)\n"
            "            paths[x, y] = 0 if (x, y) in blocked else reached",
            f"paths[{width}, {height}]",
        ),
    )


def _map_cycle(rng: np.random.Generator) -> Problem:
    modulus, factor, plus = int(rng.integers(500, 5_000)), int(rng.integers(2, 200)), int(rng.integers(1, 200))
    start = int(rng.integers(1, 400))
    return Problem(
        text=f"Begin with {start} and go from every x to (x*x*{factor} + {plus}) mod {modulus}. How many different "
        "numbers come up, the first included, if one goes on for ever?",
        answer=_orbit(start, factor, plus, modulus),
        cells=(
            f"seen = []\nx = {start}",
            f"while x not in seen:\n    seen.append(x)\n    x = (x * x * {factor} + {plus}) % {modulus}",
            "len(seen)",
        ),
    )


_PROBLEMS: Sequence[Sequence[Callable[[np.random.Generator], Problem]]] = (
    (_multiples,),
    (_power, _digit_sums),
    (_primes,),
    (_change, _paths),
    (_map_cycle, _paths, _change, _primes),
)


def _primes_up_to(limit: int) -> list[int]:
    is_prime = np.ones(limit + 1, dtype=bool)
    is_prime[:2] = False
    for divisor in range(2, int(limit**0.5) + 1):
        is_prime[divisor * divisor :: divisor] = False
    return np.flatnonzero(is_prime).tolist()


def _ways(amount: int, parts: Sequence[int]) -> int:
    ways = [1] + [0] * amount
    for part in parts:
        for total in range(part, amount + 1):
            ways[total] += ways[total - part]
    return ways[amount]


def _paths_around(width: int, height: int, blocked: Sequence[tuple[int, int]]) -> int:
    row = [1] + [0] * height
    for x in range(width + 1):
        for y in range(height + 1):
            row[y] = 0 if (x, y) in blocked else row[y] + (row[y - 1] if y else 0)
    return row[height]


def _orbit(start: int, factor: int, plus: int, modulus: int) -> int:
    seen: set[int] = set()
    x = start
    while x not in seen:
        seen.add(x)
        x = (x * x * factor + plus) % modulus
    return len(seen)
