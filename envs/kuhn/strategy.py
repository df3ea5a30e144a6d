"""Strategies of Kuhn poker: the scripted players, and the best answer to each (H. W. Kuhn, 1950)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

CARDS = "JQK"
LINES = ("", "check", "bet", "check bet")
"""What was done in a hand before a decision; the second and third are the other side's."""

MOVES = {"": ("check", "bet"), "check": ("check", "bet"), "bet": ("call", "fold"), "check bet": ("call", "fold")}

Strategy = tuple[tuple[str, str, str], ...]
"""(line, card, move) for every decision."""


@functools.lru_cache(maxsize=1)
def strategies() -> tuple[Strategy, ...]:
    """Return every strategy that never calls with the worst card, never folds the best, and bets it when asked last.

    They are ordered from the one that loses most against its best answer to the one that loses least.
    """
    fixed = [("bet", "J", "fold"), ("check bet", "J", "fold"), ("bet", "K", "call"), ("check bet", "K", "call")]
    fixed.append(("check", "K", "bet"))
    free = [(line, card) for line in LINES for card in CARDS if not any((line, card) == rule[:2] for rule in fixed)]
    made = [
        tuple(sorted([*fixed, *((line, card, move) for (line, card), move in zip(free, moves, strict=True))]))
        for moves in itertools.product(*(MOVES[line] for line, _ in free))
    ]
    return tuple(sorted(made, key=lambda strategy: (-value_against(strategy), strategy)))


@functools.cache
def move_of(strategy: Strategy, line: str, card: str) -> str:
    """Return what a strategy does."""
    return next(move for at, held, move in strategy if (at, held) == (line, card))


@functools.cache
def best_move(against: Strategy, line: str, card: str) -> str:
    """Return the move that wins most chips, on average over the other's cards that fit what it has done."""
    totals = {
        move: sum(_chips(against, f"{line} {move}".strip(), card, other) for other in _possible(against, line, card))
        for move in MOVES[line]
    }
    return max(MOVES[line], key=lambda move: (totals[move], move))


@functools.cache
def value_against(strategy: Strategy) -> int:
    """Return the chips that its best answer wins from a strategy when every deal comes once in both positions."""
    total = 0
    for card, other in itertools.permutations(CARDS, 2):
        total += _chips(strategy, best_move(strategy, "", card), card, other)
        line = move_of(strategy, "", other)
        total += _chips(strategy, f"{line} {best_move(strategy, line, card)}", card, other, is_first=False)
    return total


def winnings(line: str, *, first: str, second: str) -> int:
    """Return the chips that the first player of a finished hand wins; a card against a card where none folded."""
    moves = line.split()
    stake = 2 if "call" in moves else 1
    if moves[-1] == "fold":
        return 1 if len(moves) == 2 else -1
    return stake if CARDS.index(first) > CARDS.index(second) else -stake


def is_finished(line: str) -> bool:
    """True when a hand is over."""
    return line.endswith(("call", "fold")) or line == "check check"


def _possible(against: Strategy, line: str, card: str) -> list[str]:
    """Return the other's cards with which its strategy would have come here; all where none would."""
    others = [other for other in CARDS if other != card]
    done: dict[str, Callable[[str], bool]] = {
        "check": lambda other: move_of(against, "", other) == "check",
        "bet": lambda other: move_of(against, "", other) == "bet",
        "check bet": lambda other: move_of(against, "check", other) == "bet",
    }
    fitting = [other for other in others if line not in done or done[line](other)]
    return fitting or others


def _chips(against: Strategy, line: str, card: str, other: str, *, is_first: bool | None = None) -> int:
    """Return what one wins with a card once `line` has been done, the last move of it by oneself."""
    first = len(line.split()) != 2 if is_first is None else is_first
    while not is_finished(line):
        own_turn = (len(line.split()) % 2 == 0) == first
        move = best_move(against, line, card) if own_turn else move_of(against, line, other)
        line = f"{line} {move}"
    cards = (card, other) if first else (other, card)
    return winnings(line, first=cards[0], second=cards[1]) * (1 if first else -1)
