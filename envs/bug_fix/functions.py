"""The functions into which bugs are put; their docstrings say what they promise."""

# ruff: noqa: SIM108 - plain branches give bugs more places

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentenv.envs.drawing import pick, pick_each

Arguments = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A function and how to draw arguments for it."""

    function: Callable[..., Any]
    draw: Callable[[np.random.Generator], Arguments]

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.__name__

    @property
    def source(self) -> str:
        """Of the function, as it stands here."""
        return inspect.getsource(self.function)


def run_lengths(text):
    """Return a list of (character, length) for each run of equal characters, in order."""
    runs = []
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and text[end] == text[start]:
            end = end + 1
        runs.append((text[start], end - start))
        start = end
    return runs


def insertion_point(numbers, target):
    """Return the first index at which target could be inserted so that the sorted list stays sorted."""
    low = 0
    high = len(numbers)
    while low < high:
        middle = (low + high) // 2
        if numbers[middle] < target:
            low = middle + 1
        else:
            high = middle
    return low


def to_roman(number):
    """Return a number from 1 to 3999 as Roman numerals."""
    values = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]
    symbols = ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"]
    text = ""
    for index in range(len(values)):
        while number >= values[index]:
            text = text + symbols[index]
            number = number - values[index]
    return text


def is_balanced(text):
    """Return True when round and square brackets in the text are closed in the right order."""
    open_ones = []
    for character in text:
        if character == "(" or character == "[":
            open_ones.append(character)
        elif character == ")" or character == "]":
            wanted = "(" if character == ")" else "["
            if len(open_ones) == 0 or open_ones[-1] != wanted:
                return False
            open_ones.pop()
    return len(open_ones) == 0


def merge_sorted(first, second):
    """Return the numbers of two sorted lists as one sorted list."""
    merged = []
    i = 0
    j = 0
    while i < len(first) and j < len(second):
        if first[i] <= second[j]:
            merged.append(first[i])
            i = i + 1
        else:
            merged.append(second[j])
            j = j + 1
    return merged + first[i:] + second[j:]


def primes_up_to(limit):
    """Return all prime numbers up to and including limit, in order."""
    primes = []
    for number in range(2, limit + 1):
        is_prime = True
        divisor = 2
        while divisor * divisor <= number and is_prime:
            if number % divisor == 0:
                is_prime = False
            divisor = divisor + 1
        if is_prime:
            primes.append(number)
    return primes


def shift_letters(text, distance):
    """Return the text with every lower-case letter moved on by distance in the alphabet, from z on to a again."""
    shifted = ""
    for character in text:
        if character >= "a" and character <= "z":
            place = (ord(character) - 97 + distance) % 26
            shifted = shifted + chr(place + 97)
        else:
            shifted = shifted + character
    return shifted


def moving_sums(numbers, width):
    """Return the sums of all stretches of width neighbouring numbers, from the left."""
    sums = []
    for start in range(len(numbers) - width + 1):
        total = 0
        for offset in range(width):
            total = total + numbers[start + offset]
        sums.append(total)
    return sums


def transposed(rows):
    """Return a table, given as a list of rows of equal length, with rows and columns swapped."""
    if len(rows) == 0:
        return []
    columns = []
    for column in range(len(rows[0])):
        columns.append([row[column] for row in rows])
    return columns


def longest_rise(numbers):
    """Return the length of the longest stretch of neighbours in which every number is greater than the one before."""
    best = 0
    current = 0
    for index in range(len(numbers)):
        if index > 0 and numbers[index] > numbers[index - 1]:
            current = current + 1
        else:
            current = 1
        if current > best:
            best = current
    return best


def digits_in_base(number, base):
    """Return the digits of a number from 0 on in a base, the most significant first; [0] for 0."""
    if number == 0:
        return [0]
    digits = []
    while number > 0:
        digits.insert(0, number % base)
        number = number // base
    return digits


def second_largest(numbers):
    """Return the second largest of the different values in a list, or None where there are fewer than two."""
    first = None
    second = None
    for number in numbers:
        if first is None or number > first:
            second = first
            first = number
        elif number != first and (second is None or number > second):
            second = number
    return second


def parking_fee(minutes, is_weekend):
    """Return the fee in cents: the first 30 minutes are free, each further hour begun costs 150, at most 1200.

    On weekends the fee is half of that.
    """
    if minutes <= 30:
        return 0
    hours = (minutes - 30 + 59) // 60
    fee = hours * 150
    if fee > 1200:
        fee = 1200
    if is_weekend:
        fee = fee // 2
    return fee


def edit_distance(first, second):
    """Return how many letters must be inserted, removed or replaced to turn the first word into the second."""
    row = list(range(len(second) + 1))
    for i in range(1, len(first) + 1):
        previous = row[0]
        row[0] = i
        for j in range(1, len(second) + 1):
            cost = 0 if first[i - 1] == second[j - 1] else 1
            best = min(row[j] + 1, row[j - 1] + 1, previous + cost)
            previous = row[j]
            row[j] = best
    return row[len(second)]


def _numbers(rng: np.random.Generator, *, low: int = -9, high: int = 10, most: int = 9) -> list[int]:
    return rng.integers(low, high, size=int(rng.integers(0, most + 1))).tolist()


def _text(rng: np.random.Generator, letters: str, *, most: int = 10) -> str:
    return "".join(pick_each(rng, letters, count=int(rng.integers(0, most + 1))))


def _brackets(rng: np.random.Generator) -> Arguments:
    return (pick(rng, ("", "([])", "()[]", "([)]")) + _text(rng, "()[]x", most=4),)


def _windows(rng: np.random.Generator) -> Arguments:
    numbers = [*_numbers(rng), 3, 1]
    return numbers, int(rng.integers(1, len(numbers) + 1))


def _table(rng: np.random.Generator) -> Arguments:
    width = int(rng.integers(1, 5))
    return ([rng.integers(0, 99, size=width).tolist() for _ in range(int(rng.integers(0, 5)))],)


SUBJECTS: Sequence[Subject] = (
    Subject(function=run_lengths, draw=lambda rng: (_text(rng, "aab"),)),
    Subject(function=insertion_point, draw=lambda rng: (sorted(_numbers(rng)), int(rng.integers(-10, 11)))),
    Subject(function=to_roman, draw=lambda rng: (int(rng.integers(1, 4000)),)),
    Subject(function=is_balanced, draw=_brackets),
    Subject(function=merge_sorted, draw=lambda rng: (sorted(_numbers(rng)), sorted(_numbers(rng)))),
    Subject(function=primes_up_to, draw=lambda rng: (int(rng.integers(0, 130)),)),
    Subject(function=shift_letters, draw=lambda rng: (_text(rng, "abmyzAZ !{`"), int(rng.integers(0, 30)))),
    Subject(function=moving_sums, draw=_windows),
    Subject(function=transposed, draw=_table),
    Subject(function=longest_rise, draw=lambda rng: (_numbers(rng),)),
    Subject(function=digits_in_base, draw=lambda rng: (int(rng.integers(0, 3000)), int(rng.integers(2, 17)))),
    Subject(function=second_largest, draw=lambda rng: (_numbers(rng, low=0, high=6),)),
    Subject(
        function=parking_fee,
        draw=lambda rng: (pick(rng, (30, 31, 90, 91, int(rng.integers(0, 700)))), bool(rng.integers(2))),
    ),
    Subject(function=edit_distance, draw=lambda rng: (_text(rng, "abc", most=6), _text(rng, "abc", most=6))),
)
