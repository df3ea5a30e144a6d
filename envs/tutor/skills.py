"""What a learner can be wrong about: skills, their problems, the right answer, and the answers of misconceptions."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """A kind of problem.

    Attributes:
        name: how it is called.
        pattern: finds a problem in a text; its groups are the numbers.
        form: how a problem is written, with `{}` for the numbers.
        draw: draws the numbers.
        right: the true answer.
        wrong: misconception -> the answer that it gives.
    """

    name: str
    pattern: re.Pattern[str]
    form: str
    draw: Callable[[random.Random], Numbers]
    right: Callable[..., str]
    wrong: Mapping[str, Callable[..., str]]

    def written(self, numbers: Numbers) -> str:
        """Return a problem as text."""
        return self.form.format(*numbers)

    def answer(self, numbers: Numbers, misconception: str = "") -> str:
        """Return the answer of somebody with a misconception, or the true one; an empty text where there is none."""
        solve = self.wrong[misconception] if misconception else self.right
        try:
            return solve(*numbers)
        except (ZeroDivisionError, ValueError, OverflowError):
            return ""

    def telling(self, rnd: random.Random, misconception: str) -> Numbers:
        """Draw a problem on which a misconception gives another answer than the truth."""
        while True:
            numbers = self.draw(rnd)
            if self.answer(numbers) != self.answer(numbers, misconception):
                return numbers


def _pattern(form: str) -> re.Pattern[str]:
    """Return what finds a form on a line: numbers of up to four digits, any spaces, usual signs.

    A piece of a longer expression, such as `2 + 3` in `2 + 3 + 4`, is no problem of this form.
    """
    parts = [re.escape(part.strip()).replace(r"\ ", r"[ \t]*") for part in form.split("{}")]
    joined = r"[ \t]*(\d{1,4})[ \t]*".join(parts).replace(r"\-", "[-−–]").replace(r"\*", "[*×·]")
    joined = joined.removeprefix("[ \\t]*").removesuffix("[ \\t]*")
    before = r"(?<![\w.+*×·/^−-])(?<![+*×·/^−-][ \t])"
    return re.compile(rf"{before}{joined}(?!\d|\.\d|[ \t]*[-+*×·/^−][ \t]*[\d(])")


def _skill(
    name: str,
    form: str,
    draw: Callable[[random.Random], Numbers],
    right: Callable[..., str],
    **wrong: Callable[..., str],
) -> Skill:
    return Skill(name=name, pattern=_pattern(form), form=form, draw=draw, right=right, wrong=wrong)


def _by_digits(a: int, b: int) -> str:
    """Take the smaller digit from the larger one in every column."""
    x, y = str(a).zfill(4), str(b).zfill(4)
    return str(int("".join(str(abs(int(i) - int(j))) for i, j in zip(x, y, strict=True))))


def _without_carry(a: int, b: int) -> str:
    x, y = str(a).zfill(4), str(b).zfill(4)
    return str(int("".join(str((int(i) + int(j)) % 10) for i, j in zip(x, y, strict=True))))


def _two_digits(rnd: random.Random) -> Numbers:
    a, b = rnd.randrange(20, 99), rnd.randrange(11, 99)
    return max(a, b), min(a, b)


def _small(rnd: random.Random, *lows: int) -> Numbers:
    return tuple(rnd.randrange(low, 10) for low in lows)


SKILLS: tuple[Skill, ...] = (
    _skill(
        "subtraction",
        "{} - {}",
        _two_digits,
        lambda a, b: str(a - b),
        takes_smaller_from_larger_digit=_by_digits,
        forgets_to_lower_the_tens=lambda a, b: str(a - b + (10 if a % 10 < b % 10 else 0)),
    ),
    _skill(
        "addition",
        "{} + {}",
        _two_digits,
        lambda a, b: str(a + b),
        forgets_the_carry=_without_carry,
    ),
    _skill(
        "adding fractions",
        "{}/{} + {}/{}",
        lambda rnd: _small(rnd, 1, 2, 1, 2),
        lambda a, b, c, d: str(Fraction(a, b) + Fraction(c, d)),
        adds_tops_and_bottoms=lambda a, b, c, d: str(Fraction(a + c, b + d)),
        keeps_the_first_bottom=lambda a, b, c, d: str(Fraction(a + c, b)),
    ),
    _skill(
        "multiplying fractions",
        "{}/{} * {}/{}",
        lambda rnd: _small(rnd, 1, 2, 1, 2),
        lambda a, b, c, d: str(Fraction(a, b) * Fraction(c, d)),
        multiplies_tops_only=lambda a, b, c, d: str(Fraction(a * c, b)),
        multiplies_crosswise=lambda a, b, c, d: str(Fraction(a * d, b * c)),
    ),
    _skill(
        "order of operations",
        "{} + {} * {}",
        lambda rnd: _small(rnd, 2, 2, 2),
        lambda a, b, c: str(a + b * c),
        goes_from_left_to_right=lambda a, b, c: str((a + b) * c),
    ),
    _skill(
        "brackets",
        "{} * ({} + {})",
        lambda rnd: _small(rnd, 2, 2, 2),
        lambda a, b, c: str(a * (b + c)),
        multiplies_the_first_only=lambda a, b, c: str(a * b + c),
    ),
    _skill(
        "powers",
        "{}^{}",
        lambda rnd: (rnd.randrange(2, 8), rnd.randrange(2, 5)),
        lambda a, b: str(a**b) if b <= 9 else "",
        multiplies_base_and_exponent=lambda a, b: str(a * b),
        adds_base_and_exponent=lambda a, b: str(a + b),
    ),
    _skill(
        "percentages",
        "{}% of {}",
        lambda rnd: (rnd.randrange(2, 19) * 5, rnd.randrange(2, 30) * 20),
        lambda a, b: str(Fraction(a * b, 100)),
        takes_the_percent_away=lambda a, b: str(b - a),
        divides_by_the_percent=lambda a, b: str(Fraction(b, a)),
    ),
)


def is_same_value(given: str, truth: str) -> bool:
    """True for the same number, however a fraction is reduced."""
    try:
        return Fraction(given.replace(" ", "")) == Fraction(truth)
    except (ValueError, ZeroDivisionError):
        return False
