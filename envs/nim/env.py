"""Nim: take stones from one heap at a time; who takes the last stone wins."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from agentenv.game import Game, IllegalMove
from agentenv.game_env import GameEnv

_NUM_HEAPS = 3
_MAX_STONES = 7


class NimGame(Game):
    """Normal play on three heaps; best play leaves heaps whose binary sum without carry is 0 (C. L. Bouton, 1901)."""

    seats: ClassVar[tuple[str, ...]] = ("first", "second")
    max_moves: ClassVar[int] = _NUM_HEAPS * _MAX_STONES
    rules: ClassVar[str] = (
        "Nim. In your turn take any number of stones from one heap; who takes the last stone wins. A move is two "
        'numbers: the heap, then how many stones, e.g. "2 3".'
    )

    heaps: tuple[int, ...] = ()
    num_moves = 0

    def deal(self, rng: np.random.Generator) -> None:
        """Draw the heaps."""
        self.heaps = tuple(int(size) for size in rng.integers(1, _MAX_STONES + 1, size=_NUM_HEAPS))

    def whose_turn(self) -> str | None:
        """Return who moves; None when no stone is left."""
        return self.seats[self.num_moves % 2] if any(self.heaps) else None

    def legal_moves(self, seat: str) -> tuple[str, ...]:
        """Return every heap with every number of its stones."""
        return tuple(f"{heap} {count}" for heap, size in enumerate(self.heaps, 1) for count in range(1, size + 1))

    def act(self, seat: str, move: str) -> None:
        """Take stones."""
        if move not in self.legal_moves(seat):
            raise IllegalMove(f"{move[:20]!r} is no move; write the heap (1 to {_NUM_HEAPS}), then how many stones")
        heap, count = map(int, move.split())
        self.heaps = tuple(size - count if index == heap else size for index, size in enumerate(self.heaps, 1))
        self.num_moves += 1
        self.announce(f"{seat} takes {count} from heap {heap}.")

    def view(self, seat: str) -> str:
        """Return the sizes of the heaps."""
        return f"Heaps: {' '.join(map(str, self.heaps))}"

    def rewards(self) -> Mapping[str, float]:
        """Return 1.0 for who took the last stone."""
        winner = self.seats[(self.num_moves + 1) % 2]
        return {seat: float(seat == winner) for seat in self.seats}

    def oracle(self, seat: str) -> str:
        """Leave a balanced position; from one, take a single stone of the largest heap and hope."""
        balance = _balance(self.heaps)
        for heap, size in enumerate(self.heaps, 1):
            if size ^ balance < size:
                return f"{heap} {size - (size ^ balance)}"
        return f"{self.heaps.index(max(self.heaps)) + 1} 1"

    def key(self) -> str:
        """Return the heaps by size, since their order does not matter."""
        return " ".join(map(str, sorted(self.heaps)))

    def open_seats(self) -> tuple[str, ...]:
        """Return the seat that wins with perfect play."""
        return (self.seats[0] if _balance(self.heaps) else self.seats[1],)


class Nim(GameEnv):
    """Take the last stone from three heaps, from the seat that can force it.

    Reward: 1.0 for taking the last stone, else 0.0. The heaps are drawn; every fifth set of sizes belongs to the test
    split. `difficulty` 1 is an opponent who takes anything, 5 one who punishes the first mistake.
    """

    game_class: ClassVar[type[Game]] = NimGame
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.45


def _balance(heaps: tuple[int, ...]) -> int:
    return functools.reduce(operator.xor, heaps)
