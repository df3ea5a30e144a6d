"""CountShapes: count the circles, squares and triangles of a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from agentenv.answer_env import AnswerEnv, Question, listed, read_numbers
from agentenv.messages import Image
from agentenv.picture import missing_pillow, png

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "orange")
_CELL = 56
"""Pixels of a side of a shape's place; twice the 28 of a merged patch."""
_CELLS_A_SIDE = (3, 4, 5, 6, 7)
_SHARE_FILLED = 0.7


class CountShapes(AnswerEnv):
    """Count the circles, squares and triangles of one colour in a picture of shapes that do not overlap.

    Reward: 1.0 if the three numbers after the last `####`, separated by commas, are the counts, else 0.0.

    Args:
        difficulty: 1 to 5: the picture has 9, 16, 25, 36 or 49 places, seven tenths of them filled.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = False  # a picture takes some milliseconds
    answer_form = "the three numbers in this order, separated by commas"

    check_seeds: ClassVar[int] = 100

    def __init__(self, **options: Any) -> None:
        self.shapes: list[tuple[int, str, str]] = []
        super().__init__(**options)

    @classmethod
    def unavailable(cls) -> str:
        """Pillow draws."""
        return missing_pillow()

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw shapes for the places of a grid, and a colour that is asked for."""
        side = _CELLS_A_SIDE[self.difficulty - 1]
        filled = [int(i) for i in np.flatnonzero(rng.random(side * side) < _SHARE_FILLED)]
        self.shapes = shapes = [(place, str(rng.choice(SHAPES)), str(rng.choice(COLOURS))) for place in filled]
        colour = str(rng.choice(COLOURS))
        counts = [sum((shape, colour) == (kind, hue) for _, kind, hue in shapes) for shape in SHAPES]
        prompt = f"How many {colour} circles, {colour} squares and {colour} triangles does the picture show?"
        return Question(prompt=prompt, answer=listed(counts), content=f"{colour} {shapes}")

    def complete(self, rng: np.random.Generator, question: Question) -> Question:
        """Draw the picture, at random sizes and shifts."""
        return replace(question, images=(_picture(rng, self.shapes, side=_CELLS_A_SIDE[self.difficulty - 1]),))

    def is_right(self, answer: str) -> bool:
        """Compare as numbers."""
        return read_numbers(answer) == read_numbers(self.question.answer)

    def guess(self, rng: np.random.Generator) -> str:
        """Guess small numbers."""
        return listed(rng.integers(0, 2 + 2 * self.difficulty, size=len(SHAPES)))


def _picture(rng: np.random.Generator, shapes: list[tuple[int, str, str]], *, side: int) -> Image:
    from PIL import Image as Pillow
    from PIL import ImageDraw

    picture = Pillow.new("RGB", (side * _CELL, side * _CELL), "white")
    pen = ImageDraw.Draw(picture)
    for place, shape, colour in shapes:
        size = int(rng.integers(_CELL // 3, _CELL * 4 // 5))
        x, y = (int(n) for n in rng.integers(2, _CELL - size - 1, size=2))
        left, top = place % side * _CELL + x, place // side * _CELL + y
        box = (left, top, left + size, top + size)
        if shape == "circle":
            pen.ellipse(box, fill=colour)
        elif shape == "square":
            pen.rectangle(box, fill=colour)
        else:
            pen.polygon([(left, top + size), (left + size, top + size), (left + size // 2, top)], fill=colour)
    return png(picture)
