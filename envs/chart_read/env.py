"""ChartRead: read values off a bar chart with an axis and grid lines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from agentenv.answer_env import AnswerEnv, Question, listed, read_numbers
from agentenv.messages import Image
from agentenv.picture import missing_pillow, png

_NUM_BARS = (4, 5, 6, 8, 10)
_STEP = (10, 5, 5, 2, 1)
"""Values are multiples of this, by difficulty."""
_HIGHEST, _GRID = 100, 10
_MARGIN, _PIXELS_PER_UNIT, _BAR = 40, 3, 40
_HEIGHT = _HIGHEST * _PIXELS_PER_UNIT


class ChartRead(AnswerEnv):
    """Read two bars off a chart, and tell their values and the sum of both.

    Reward: 1.0 if the three numbers after the last `####`, separated by commas, are the two values in the order asked
    and their sum, else 0.0.

    Args:
        difficulty: 1 to 5: 4 to 10 bars; values are multiples of 10, 5, 5, 2 or 1, grid lines stand at multiples of 10.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = False  # a picture takes some milliseconds
    answer_form = "the two values and their sum, separated by commas"

    check_seeds: ClassVar[int] = 100

    def __init__(self, **options: Any) -> None:
        self.values: list[int] = []
        super().__init__(**options)

    @classmethod
    def unavailable(cls) -> str:
        """Pillow draws."""
        return missing_pillow()

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw values, and two that are asked for."""
        num, step = _NUM_BARS[self.difficulty - 1], _STEP[self.difficulty - 1]
        self.values = values = [int(value) * step for value in rng.integers(1, _HIGHEST // step + 1, size=num)]
        first, second = (int(i) for i in rng.choice(num, size=2, replace=False))
        prompt = (
            f"The chart shows values from 0 to {_HIGHEST}. What are the values of {_name(first)} and {_name(second)}?"
        )
        return Question(
            prompt=prompt,
            answer=listed([values[first], values[second], values[first] + values[second]]),
            content=f"{values} {first} {second}",
        )

    def complete(self, rng: np.random.Generator, question: Question) -> Question:
        """Draw the chart."""
        return replace(question, images=(_chart(self.values),))

    def is_right(self, answer: str) -> bool:
        """Compare as numbers."""
        return read_numbers(answer) == read_numbers(self.question.answer)

    def guess(self, rng: np.random.Generator) -> str:
        """Guess two values."""
        step = _STEP[self.difficulty - 1]
        first, second = (int(n) * step for n in rng.integers(1, _HIGHEST // step + 1, size=2))
        return listed([first, second, first + second])


def _name(index: int) -> str:
    return "ABCDEFGHIJ"[index]


def _chart(values: list[int]) -> Image:
    from PIL import Image as Pillow
    from PIL import ImageDraw

    picture = Pillow.new("RGB", (_MARGIN + 2 * _BAR * len(values), _HEIGHT + 2 * _MARGIN), "white")
    pen = ImageDraw.Draw(picture)
    bottom = _MARGIN + _HEIGHT
    for value in range(0, _HIGHEST + 1, _GRID):
        y = bottom - value * _PIXELS_PER_UNIT
        pen.line((_MARGIN, y, picture.width, y), fill="lightgrey")
        pen.text((8, y - 6), str(value), fill="black")
    for index, value in enumerate(values):
        left = _MARGIN + _BAR // 2 + 2 * _BAR * index
        pen.rectangle((left, bottom - value * _PIXELS_PER_UNIT, left + _BAR, bottom), fill="steelblue")
        pen.text((left + _BAR // 2 - 3, bottom + 8), _name(index), fill="black")
    return png(picture)
