"""ConnectFour: four in a row with discs that fall, after four drawn moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from agentenv.envs.connect_four.board import HEIGHT, WIDTH, Board, best_column, urgent_column
from agentenv.game import CARELESS, Game, IllegalMove
from agentenv.game_env import GameEnv

_OPENING_MOVES = 4
_ORACLE_DEPTH = 4
_HARDEST = 5


class ConnectFourGame(Game):
    """Red and yellow drop discs in turn; the first four are drawn."""

    seats: ClassVar[tuple[str, ...]] = ("red", "yellow")
    max_moves: ClassVar[int] = (WIDTH * HEIGHT - _OPENING_MOVES) // 2
    rules: ClassVar[str] = (
        "Connect Four on a board of 7 columns and 6 rows. A disc falls to the lowest free cell of its column. Four of "
        "your discs in a row, column or diagonal win. A move is the number of a column, 1 to 7 from the left. R is a "
        "disc of red, Y one of yellow."
    )

    board = Board()
    num_moves = 0

    def deal(self, rng: np.random.Generator) -> None:
        """Drop two discs of each side."""
        for column in rng.integers(WIDTH, size=_OPENING_MOVES):
            self.board = self.board.drop(int(column))
            self.num_moves += 1

    def whose_turn(self) -> str | None:
        """Return red or yellow; None when somebody has four or the board is full."""
        return None if self.board.is_won or self.board.is_full else self.seats[self.num_moves % 2]

    def legal_moves(self, seat: str) -> tuple[str, ...]:
        """Return the columns with room."""
        return tuple(str(column + 1) for column in sorted(self.board.columns))

    def act(self, seat: str, move: str) -> None:
        """Drop a disc."""
        if move not in self.legal_moves(seat):
            raise IllegalMove(f"{move[:20]!r} is no column with room; there are {', '.join(self.legal_moves(seat))}")
        self.board = self.board.drop(int(move) - 1)
        self.num_moves += 1
        self.announce(f"{seat} plays {move}.")

    def view(self, seat: str) -> str:
        """Return the board, the top row first."""
        own, other = ("R", "Y") if self.num_moves % 2 == 0 else ("Y", "R")
        return "\n".join(self.board.rows(own=own, other=other))

    def rewards(self) -> Mapping[str, float]:
        """Return 1.0 for the winner, 0.5 for both on a full board."""
        winner = self.seats[(self.num_moves + 1) % 2] if self.board.is_won else ""
        return {seat: float(seat == winner) if winner else 0.5 for seat in self.seats}

    def oracle(self, seat: str) -> str:
        """Return the best column of a search over four moves."""
        return str(best_column(self.board, depth=_ORACLE_DEPTH) + 1)

    def scripted_move(self, seat: str, rng: np.random.Generator) -> str:
        """Complete four, or stop the other's; at times anything. The hardest looks as far as the oracle."""
        if self.difficulty == _HARDEST:
            return self.oracle(seat)
        is_careless = rng.random() < CARELESS[self.difficulty]
        column = None if is_careless else urgent_column(self.board)
        return self.random_move(seat, rng) if column is None else str(column + 1)

    def key(self) -> str:
        """Return the drawn position."""
        return f"{self.board.own} {self.board.all}"


class ConnectFour(GameEnv):
    """Win at Connect Four against an opponent who makes mistakes.

    Reward: 1.0 for a win, 0.5 for a draw, 0.0 for a loss. The first four discs are drawn; every fifth opening belongs
    to the test split. `difficulty` 1 is an opponent who drops discs anywhere, 4 one who seldom overlooks four in a row,
    5 one who searches four moves deep.
    """

    game_class: ClassVar[type[Game]] = ConnectFourGame
    oracle_threshold: ClassVar[float] = 0.95
    random_threshold: ClassVar[float] = 0.35
