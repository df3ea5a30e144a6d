"""Moves of textarena's games: which are legal, which is best, and a player that takes any of them."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from agentenv.errors import UsageError

_BRACKETED = re.compile(r"\[[^\[\]\n]{1,40}\]")
_LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


def any_move(game: Any, *, heard: str, rng: random.Random) -> str:
    """Return a legal move drawn without skill; in games that are not known here, something in brackets that it heard.

    Args:
        game: the game without wrappers.
        heard: what the player was told last.
        rng: source of chance.
    """
    moves = legal_moves(game)
    if not moves:
        moves = _BRACKETED.findall(heard) or [f"[{number}]" for number in range(10)]
    return moves[rng.randrange(len(moves))]


def legal_moves(game: Any) -> list[str]:
    """Return the legal moves of the games that are known here; of others none."""
    find = _LEGAL.get(type(game).__name__)
    return [] if find is None else find(game)


def best_move(game: Any) -> str:
    """Return the best move, which may look at what is hidden.

    Raises:
        UsageError: the game is not known here.
    """
    find = _BEST.get(type(game).__name__)
    if find is None:
        raise UsageError(f"there is no oracle for {type(game).__name__}; there are those of {', '.join(_BEST)}")
    return find(game)


def _cells(game: Any) -> tuple[str, ...]:
    return tuple(cell for row in game.state.game_state["board"] for cell in row)


def _free_cells(game: Any) -> list[str]:
    return [f"[{place}]" for place, cell in enumerate(_cells(game)) if not cell]


def _open_columns(game: Any) -> list[str]:
    return [f"[col {column}]" for column, cell in enumerate(game.state.game_state["board"][0]) if cell == "."]


def _takings(game: Any) -> list[str]:
    piles = game.state.game_state["piles"]
    return [f"[{index} {count}]" for index, pile in enumerate(piles) for count in range(1, pile + 1)]


def _poker_actions(game: Any) -> list[str]:
    return [f"[{action}]" for action in game.state.game_state["current_legal_action_tree"]]


def _codes(game: Any) -> list[str]:
    length, count = game.code_length, game.num_numbers
    tried = {tuple(entry["guess"]) for entry in game.state.game_state["history"]}
    digits = range(1, count + 1)
    may_repeat = game.duplicate_numbers
    every = itertools.product(digits, repeat=length) if may_repeat else itertools.permutations(digits, length)
    return [f"[{' '.join(map(str, code))}]" for code in every if code not in tried]


def _consistent_code(game: Any) -> str:
    """Return the first code that agrees with all that was answered so far."""
    history = [(entry["guess"], entry["black"], entry["white"]) for entry in game.state.game_state["history"]]
    for text in _codes(game):
        code = [int(digit) for digit in text[1:-1].split()]
        if all(_pegs(code, guess) == (black, white) for guess, black, white in history):
            return text
    raise UsageError("no code agrees with the answers of this game of Mastermind")


def _pegs(code: list[int], guess: list[int]) -> tuple[int, int]:
    """Return how many digits stand right, and how many stand elsewhere."""
    black = sum(a == b for a, b in zip(code, guess, strict=True))
    return black, sum(min(code.count(digit), guess.count(digit)) for digit in set(guess)) - black


def _numbers(game: Any) -> list[str]:
    return [f"[{n}]" for n in range(game.min_number, game.max_number + 1) if n not in game.guessed_numbers]


def _win_nim(game: Any) -> str:
    """Leave piles whose binary digits add up to nothing (Bouton, "Nim, a game with a complete theory", 1901)."""
    piles = game.state.game_state["piles"]
    total = functools.reduce(lambda a, b: a ^ b, piles)
    for index, pile in enumerate(piles):
        if pile ^ total < pile:
            return f"[{index} {pile - (pile ^ total)}]"
    return _takings(game)[0]


def _win_tic_tac_toe(game: Any) -> str:
    mark = "X" if game.state.current_player_id == 1 else "O"
    cells = _cells(game)
    free = [place for place, cell in enumerate(cells) if not cell]
    return f"[{max(free, key=lambda place: -_worth(_put(cells, place, mark), _other(mark)))}]"


@functools.cache
def _worth(cells: tuple[str, ...], mark: str) -> float:
    """Return what the position is worth for the player who is to move, with a little less for later wins."""
    if any(cells[a] and cells[a] == cells[b] == cells[c] for a, b, c in _LINES):
        return -1.0
    free = [i for i, cell in enumerate(cells) if not cell]
    return max((-0.99 * _worth(_put(cells, i, mark), _other(mark)) for i in free), default=0.0)


def _put(cells: tuple[str, ...], place: int, mark: str) -> tuple[str, ...]:
    return (*cells[:place], mark, *cells[place + 1 :])


def _other(mark: str) -> str:
    return "O" if mark == "X" else "X"


_LEGAL: Mapping[str, Callable[[Any], list[str]]] = {
    "TicTacToeEnv": _free_cells,
    "ConnectFourEnv": _open_columns,
    "NimEnv": _takings,
    "KuhnPokerEnv": _poker_actions,
    "MastermindEnv": _codes,
    "GuessTheNumberEnv": _numbers,
}
_BEST: Mapping[str, Callable[[Any], str]] = {
    "MastermindEnv": _consistent_code,
    "GuessTheNumberEnv": lambda game: f"[{game.state.game_state['game_number']}]",
    "TicTacToeEnv": _win_tic_tac_toe,
    "NimEnv": _win_nim,
}
