"""TicTacToe: the rules, the values of openings, and turns in which too much is done."""

from typing import Any

import pytest

from agentenv import Message, ToolCall, tool_turn
from agentenv.envs.tic_tac_toe.env import TicTacToe, TicTacToeGame
from agentenv.errors import UsageError
from agentenv.game import IllegalMove


def board(marks):
    game = TicTacToeGame()
    game.board = marks
    return game


def test_marks_alternate_and_a_line_wins():
    game = board("XX.OO....")
    assert game.whose_turn() == "X"
    game.play("X", " 3 ")
    assert (game.whose_turn(), game.rewards()) == (None, {"X": 1.0, "O": 0.0})
    assert game.result("X") == "You win."


def test_a_full_board_without_a_line_is_a_draw():
    game = board("XOXXOOOX.")
    game.play("X", "9")
    assert game.rewards() == {"X": 0.5, "O": 0.5}


@pytest.mark.parametrize("move", ["1", "0", "10", "", "x", "3 4", "²"])
def test_taken_squares_and_other_texts_are_refused_and_change_nothing(move):
    game = board("X...O....")
    with pytest.raises(IllegalMove, match="no free square; free are 2, 3, 4, 6, 7, 8, 9"):
        game.play("X", move)
    assert game.board == "X...O...."


def test_a_seat_cannot_move_for_the_other():
    with pytest.raises(IllegalMove, match="not your turn"):
        board("X...O....").play("O", "2")


def test_the_oracle_wins_at_once_and_else_stops_the_other_side():
    assert board("XX.OO....").oracle("X") == "3"
    assert board("X..OO..X.").oracle("X") == "6"


def test_only_seats_that_perfect_play_does_not_lose_are_offered():
    # X in the centre and O at an edge: X wins by force; X at an edge and O in the centre: nobody does
    assert board(".O..X....").open_seats() == ("X",)
    assert board("O...X....").open_seats() == ("X", "O")


def test_several_moves_in_one_turn_play_one_and_cost_errors():
    env = TicTacToe(seat="X", opponent="oracle")
    env.reset(seed=0)
    free = env.game.legal_moves("X")
    calls = tuple(ToolCall(call_id=move, name="play", arguments={"move": move}) for move in free[:3])
    observation, value, terminated, _, _ = env.step(Message(role="assistant", content="", tool_calls=calls).to_dict())
    assert observation.count("it is not your turn") == 2
    board: Any = env.game.board  # type: ignore[attr-defined]
    assert (value, terminated, env.num_illegal, board.count("X")) == (0.0, False, 2, 2)


def test_the_third_error_loses():
    env = TicTacToe(seat="O")
    env.reset(seed=0)
    assert "2 more such errors are allowed" in env.step(tool_turn("play", {"move": "99"}).to_dict())[0]
    assert "1 more such errors" in env.step("I take the centre.")[0]
    observation, value, terminated, _, _ = env.step(tool_turn("play", {"move": "99"}).to_dict())
    assert "You made too many errors and have lost." in observation
    assert (value, terminated, env.game.gave_up, env.game.reward_of("X")) == (0.0, True, "O", 1.0)


def test_no_opening_belongs_to_both_splits():
    openings = {}
    for split in ("train", "test"):
        env = TicTacToe(split=split, seat="X")  # moves first, so the board is the opening
        keys = set()
        for seed in range(300):
            env.reset(seed=seed)
            keys.add(env.game.board)  # type: ignore[attr-defined]
        openings[split] = keys
    assert not openings["train"] & openings["test"]
    assert len(openings["train"]) + len(openings["test"]) == 72  # 9 squares for X, 8 left for O


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seat": "Z"}, "seat is 'Z'; allowed are any, X, O"),
        ({"difficulty": 9}, "difficulty is 9; allowed are 1, 2, 3, 4, 5"),
        ({"max_illegal": 0}, "max_illegal is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        TicTacToe(**options)
