"""ConnectFour: discs fall, lines in every direction count, and the search sees what must be seen."""

import pytest

from agentenv.envs.connect_four.board import Board, best_column, urgent_column
from agentenv.envs.connect_four.env import ConnectFourGame
from agentenv.game import IllegalMove


def after(*columns):
    """Return the position after drops into columns 1 to 7."""
    board = Board()
    for column in columns:
        board = board.drop(column - 1)
    return board


def test_discs_fall_on_each_other():
    assert after(4, 4, 5).rows(own="Y", other="R")[-2:] == ["...Y...", "...RR.."]


@pytest.mark.parametrize(
    "columns",
    [
        (1, 1, 2, 2, 3, 3, 4),  # a row
        (1, 2, 1, 2, 1, 2, 1),  # a column
        (1, 2, 2, 3, 3, 4, 3, 4, 4, 6, 4),  # a rising diagonal
        (7, 6, 6, 5, 5, 4, 5, 4, 4, 2, 4),  # a falling diagonal
    ],
)
def test_four_in_any_direction_win(columns):
    assert not after(*columns[:-1]).is_won
    assert after(*columns).is_won


def test_a_line_does_not_go_around_the_edge():
    # red has the top cells of columns 1 and 2 and the lowest of others; bits of neighbours must not join
    assert not after(1, 2, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2, 3).is_won


def test_a_full_column_is_refused():
    game = ConnectFourGame()
    game.board, game.num_moves = after(1, 1, 1, 1, 1, 1), 6
    with pytest.raises(IllegalMove, match="no column with room; there are 2, 3, 4, 5, 6, 7"):
        game.play("red", "1")


def test_an_own_four_comes_before_stopping_the_other():
    assert urgent_column(after(1, 7, 1, 7, 1, 7)) == 0
    assert urgent_column(after(1, 7, 1, 7, 1)) == 0
    assert urgent_column(after(1, 7)) is None


def test_the_search_makes_two_threats_at_once():
    # two red discs in the middle of the lowest row: a third leaves both ends open
    assert best_column(after(3, 3, 4, 4), depth=4) in (1, 4)


def test_the_last_mover_is_paid():
    game = ConnectFourGame()
    for seat, move in zip(("red", "yellow") * 4, "1122334", strict=False):
        game.play(seat, move)
    assert game.rewards() == {"red": 1.0, "yellow": 0.0}
