"""DateMath: dates some days, weeks or working days apart."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np

from agentenv.answer_env import AnswerEnv, Question

_DAYS_AHEAD = (40, 400, 4000, 120, 20_000)
"""How far away the answer may lie, by difficulty."""
_FIRST = date(1950, 1, 1).toordinal()
_NUM_DAYS = 36_500


class DateMath(AnswerEnv):
    """Tell which date lies a number of days before or after another one (Gregorian calendar).

    Reward: 1.0 if the date after the last `####` is the right one, written as YYYY-MM-DD, else 0.0.

    Args:
        difficulty: 1: up to 40 days; 2: up to 400; 3: weeks and days up to 11 years; 4: working days, Monday to Friday;
            5: up to 20,000 days.
        **options: of `AgentEnv`.
    """

    answer_form = "the date as YYYY-MM-DD"

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw a date and a distance."""
        start = date.fromordinal(_FIRST + int(rng.integers(_NUM_DAYS)))
        distance, sign = int(rng.integers(2, _DAYS_AHEAD[self.difficulty - 1] + 1)), int(rng.choice([-1, 1]))
        side = "after" if sign > 0 else "before"
        if self.difficulty == 4:
            told, found = f"{distance} working days (Monday to Friday)", working_days(start, sign * distance)
        else:
            found = start + timedelta(days=sign * distance)
            told = f"{distance} days"
            if self.difficulty == 3 and distance > 7:
                told = f"{distance // 7} weeks and {distance % 7} days"
        return Question(
            prompt=f"Which date lies {told} {side} {start:%A}, {start.isoformat()}?", answer=found.isoformat()
        )

    def guess(self, rng: np.random.Generator) -> str:
        """Guess a date of the century."""
        return date.fromordinal(_FIRST + int(rng.integers(_NUM_DAYS))).isoformat()


def working_days(start: date, distance: int) -> date:
    """Return the day that lies `distance` Mondays to Fridays away; holidays are not known."""
    day, left, step = start, abs(distance), timedelta(days=1 if distance > 0 else -1)
    while left:
        day += step
        left -= day.weekday() < 5
    return day
