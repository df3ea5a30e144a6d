"""Nim: the rules, and the seat that can force a win."""

import itertools

import pytest

from agentenv.envs.nim.env import Nim, NimGame
from agentenv.game import IllegalMove


def heaps(*sizes):
    game = NimGame()
    game.heaps = sizes
    return game


def test_who_takes_the_last_stone_wins():
    game = heaps(0, 2, 0)
    game.play("first", "2 2")
    assert (game.whose_turn(), game.rewards()) == (None, {"first": 1.0, "second": 0.0})


@pytest.mark.parametrize("move", ["1 1", "2 3", "2 0", "2", "4 1", "2 -1", "take one"])
def test_stones_that_are_not_there_cannot_be_taken(move):
    game = heaps(0, 2, 5)
    with pytest.raises(IllegalMove):
        game.play("first", move)
    assert game.heaps == (0, 2, 5)


def test_the_oracle_leaves_the_heaps_balanced():
    assert heaps(3, 4, 5).oracle("first") == "1 2"  # 3 ^ 4 ^ 5 = 2, and 1 ^ 4 ^ 5 = 0
    assert heaps(1, 1, 6).oracle("first") == "3 6"


def test_the_open_seat_wins_against_every_defence():
    def wins(game_heaps, is_mine):
        """True when the oracle, on move or not, takes the last stone whatever the other side does."""
        if not any(game_heaps):
            return not is_mine
        game = heaps(*game_heaps)
        moves = [game.oracle("first")] if is_mine else game.legal_moves("first")
        results = []
        for move in moves:
            heap, count = map(int, move.split())
            after = tuple(size - count if index == heap else size for index, size in enumerate(game_heaps, 1))
            results.append(wins(after, not is_mine))
        return all(results)

    for sizes in itertools.product(range(1, 4), repeat=3):
        assert wins(sizes, heaps(*sizes).open_seats() == ("first",)), sizes


def test_heaps_of_the_test_split_are_no_reordering_of_those_of_training():
    keys = {}
    for split in ("train", "test"):
        env = Nim(split=split)
        keys[split] = set()
        for seed in range(300):
            env.reset(seed=seed)
            if not env.game.events:
                keys[split].add(tuple(sorted(env.game.heaps)))  # type: ignore[attr-defined]
    assert not keys["train"] & keys["test"]
    assert len(keys["test"]) > 5
