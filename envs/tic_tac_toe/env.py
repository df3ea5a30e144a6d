"""TicTacToe: three in a row, from a board on which both have already placed one mark."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from agentenv.game import Game, IllegalMove
from agentenv.game_env import GameEnv

_LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


class TicTacToeGame(Game):
    """X and O in turn; the first two marks are drawn, so that there is more than one opening."""

    seats: ClassVar[tuple[str, ...]] = ("X", "O")
    max_moves: ClassVar[int] = 4
    rules: ClassVar[str] = (
        "Tic-tac-toe. Three of your marks in a row, column or diagonal win. A move is the number of a free square, 1 "
        "to 9, counted row by row from the top left."
    )

    board = "." * 9

    def deal(self, rng: np.random.Generator) -> None:
        """Place one mark of each side."""
        first, second = rng.choice(9, size=2, replace=False)
        squares = ["."] * 9
        squares[int(first)], squares[int(second)] = "X", "O"
        self.board = "".join(squares)

    def whose_turn(self) -> str | None:
        """Return X or O; None when a line or the board is full."""
        return None if _winner(self.board) or "." not in self.board else _mover(self.board)

    def legal_moves(self, seat: str) -> tuple[str, ...]:
        """Return the free squares."""
        return tuple(str(index + 1) for index, mark in enumerate(self.board) if mark == ".")

    def act(self, seat: str, move: str) -> None:
        """Place a mark."""
        if move not in self.legal_moves(seat):
            raise IllegalMove(f"{move[:20]!r} is no free square; free are {', '.join(self.legal_moves(seat))}")
        self.board = _placed(self.board, int(move) - 1)
        self.announce(f"{seat} plays {move}.")

    def view(self, seat: str) -> str:
        """Return the board, free squares as dots."""
        return f"{self.board[:3]}\n{self.board[3:6]}\n{self.board[6:]}"

    def rewards(self) -> Mapping[str, float]:
        """Return 1.0 for the winner, 0.5 for both after a draw."""
        winner = _winner(self.board)
        return {seat: float(seat == winner) if winner else 0.5 for seat in self.seats}

    def oracle(self, seat: str) -> str:
        """Return a move that perfect play cannot punish; among those, the one that a random player punishes least."""
        free = [index for index, mark in enumerate(self.board) if mark == "."]
        after = {index: _placed(self.board, index) for index in free}
        best = max(free, key=lambda index: (-_value(after[index]), -_hope(after[index]), -index))
        return str(best + 1)

    def key(self) -> str:
        """Return the board."""
        return self.board

    def open_seats(self) -> tuple[str, ...]:
        """Return the side, or both, that does not lose against perfect play."""
        value = _value(self.board)
        return self.seats if value == 0 else ("X",) if value > 0 else ("O",)


class TicTacToe(GameEnv):
    """Win at tic-tac-toe against an opponent who makes mistakes.

    Reward: 1.0 for a win, 0.5 for a draw, 0.0 for a loss. The first two marks are drawn; every fifth opening belongs to
    the test split. `difficulty` 1 is an opponent who places marks anywhere, 5 one who plays perfectly.
    """

    game_class: ClassVar[type[Game]] = TicTacToeGame
    oracle_threshold: ClassVar[float] = 0.91
    random_threshold: ClassVar[float] = 0.45


def _mover(board: str) -> str:
    return "X" if board.count("X") == board.count("O") else "O"


def _placed(board: str, index: int) -> str:
    return f"{board[:index]}{_mover(board)}{board[index + 1 :]}"


@functools.cache
def _winner(board: str) -> str:
    for a, b, c in _LINES:
        if board[a] != "." and board[a] == board[b] == board[c]:
            return board[a]
    return ""


@functools.cache
def _value(board: str) -> int:
    """Return the outcome of perfect play for the side to move: 1, 0 or -1."""
    if _winner(board):
        return -1
    free = [index for index, mark in enumerate(board) if mark == "."]
    return max((-_value(_placed(board, index)) for index in free), default=0)


@functools.cache
def _hope(board: str) -> float:
    """Return the mean outcome for the side to move when it moves anywhere and the other side plays on for the best."""
    if _winner(board):
        return -1.0
    free = [index for index, mark in enumerate(board) if mark == "."]
    if not free:
        return 0.0
    return sum(_best_reply(_placed(board, index)) for index in free) / len(free)


@functools.cache
def _best_reply(board: str) -> float:
    """Return, for the side that has just moved, the outcome when the other one picks the move it hopes most from."""
    if _winner(board):
        return 1.0
    free = [index for index, mark in enumerate(board) if mark == "."]
    return min((_hope(_placed(board, index)) for index in free), default=0.0)
