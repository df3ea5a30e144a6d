"""A Connect Four board in two integers, and a search for good columns.

A column has seven bits, the lowest row first; the seventh stays empty, so that lines do not wrap.
"""

from __future__ import annotations

from dataclasses import dataclass

WIDTH, HEIGHT = 7, 6
_STRIDE = HEIGHT + 1
_COLUMN = (1 << HEIGHT) - 1
_FULL = sum(_COLUMN << (_STRIDE * column) for column in range(WIDTH))
_CENTRE_FIRST = (3, 2, 4, 1, 5, 0, 6)
_DIRECTIONS = (1, _STRIDE - 1, _STRIDE, _STRIDE + 1)
_WIN = 1000


@dataclass(frozen=True, slots=True)
class Board:
    """A position.

    Attributes:
        own: discs of the side to move.
        all: discs of both.
    """

    own: int = 0
    all: int = 0

    @property
    def columns(self) -> tuple[int, ...]:
        """Columns with room, from 0, the middle ones first."""
        return tuple(column for column in _CENTRE_FIRST if not self.all & (1 << (_STRIDE * column + HEIGHT - 1)))

    @property
    def is_won(self) -> bool:
        """True when the side that has just moved has four in a row."""
        return _has_four(self.own ^ self.all)

    @property
    def is_full(self) -> bool:
        """True when no disc can be dropped."""
        return self.all == _FULL

    def drop(self, column: int) -> Board:
        """Return the position after a disc; the other side is to move."""
        return Board(self.own ^ self.all, self.all | (self.all + (1 << (_STRIDE * column))) & _column(column))

    def rows(self, *, own: str, other: str) -> list[str]:
        """Return the board as text, the top row first."""
        marks = {(True, True): own, (False, True): other}
        cells = [[_STRIDE * column + row for column in range(WIDTH)] for row in reversed(range(HEIGHT))]
        return [
            "".join(marks.get((bool(self.own >> cell & 1), bool(self.all >> cell & 1)), ".") for cell in row)
            for row in cells
        ]


def urgent_column(board: Board) -> int | None:
    """Return the column that completes four now, else one where the other side would; None where neither can."""
    for position in (board, Board(board.own ^ board.all, board.all)):
        for column in position.columns:
            if position.drop(column).is_won:
                return column
    return None


def best_column(board: Board, *, depth: int) -> int:
    """Return the best column of a search over `depth` moves; the middle one of equals."""
    best, best_value = board.columns[0], -2 * _WIN
    for column in board.columns:
        value = -_search(board.drop(column), depth - 1, -2 * _WIN, -best_value)
        if value > best_value:
            best, best_value = column, value
    return best


def _search(board: Board, depth: int, low: int, high: int) -> int:
    """Return the value for the side to move, by negamax with alpha-beta cuts; a sooner win is worth more."""
    if board.is_won:
        return -_WIN - depth
    if depth == 0 or board.is_full:
        return _threats(board.own, board.all) - _threats(board.own ^ board.all, board.all)
    for column in board.columns:
        low = max(low, -_search(board.drop(column), depth - 1, -high, -low))
        if low >= high:
            break
    return low


def _has_four(discs: int) -> bool:
    for step in _DIRECTIONS:
        pairs = discs & (discs >> step)
        if pairs & (pairs >> (2 * step)):
            return True
    return False


def _threats(discs: int, taken: int) -> int:
    """Return how many free cells would complete four of these discs."""
    found = (discs << 1) & (discs << 2) & (discs << 3)
    for step in _DIRECTIONS[1:]:
        up, down = (discs << step) & (discs << 2 * step), (discs >> step) & (discs >> 2 * step)
        found |= up & (discs << 3 * step) | up & (discs >> step) | down & (discs << step) | down & (discs >> 3 * step)
    return (found & _FULL & ~taken).bit_count()


def _column(column: int) -> int:
    return _COLUMN << (_STRIDE * column)
