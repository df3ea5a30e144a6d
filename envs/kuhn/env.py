"""Kuhn: twelve hands of three-card poker, in which every deal comes once with either side starting."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from agentenv.envs.kuhn.strategy import (
    CARDS,
    LINES,
    MOVES,
    Strategy,
    best_move,
    is_finished,
    move_of,
    strategies,
    winnings,
)
from agentenv.game import CARELESS, Game, IllegalMove
from agentenv.game_env import GameEnv

_HANDS = tuple((starter, cards) for starter in range(2) for cards in itertools.permutations(CARDS, 2))


class KuhnGame(Game):
    """A match of Kuhn poker. Nobody has better cards than the other over the match, so play alone decides."""

    seats: ClassVar[tuple[str, ...]] = ("north", "south")
    max_moves: ClassVar[int] = 18
    rules: ClassVar[str] = (
        "Kuhn poker, 12 hands. The cards are J, Q and K; K is the highest. Both pay 1 chip and hold one card. Moves "
        "are check, bet (1 chip), call and fold. After two checks, or a call, the higher card takes the pot. Every "
        "deal comes once with either of you starting, in a drawn order. Who has won more chips at the end wins."
    )

    hands: tuple[tuple[int, tuple[str, str]], ...] = ()
    styles: tuple[Strategy, ...] = ()
    num_played = 0
    line = ""
    chips = 0

    def deal(self, rng: np.random.Generator) -> None:
        """Draw the order of the hands, and how the scripted players play."""
        self.hands = tuple(_HANDS[int(index)] for index in rng.permutation(len(_HANDS)))
        known = strategies()
        size = len(known) // len(CARELESS)
        low = size * (self.difficulty - 1)
        self.styles = tuple(known[low + int(rng.integers(size))] for _ in self.seats)

    def whose_turn(self) -> str | None:
        """Return who acts; None after the last hand."""
        if self.num_played == len(self.hands):
            return None
        return self.seats[(self.hands[self.num_played][0] + len(self.line.split())) % 2]

    def legal_moves(self, seat: str) -> tuple[str, ...]:
        """Return what may be done in this place of a hand."""
        return MOVES[self.line]

    def act(self, seat: str, move: str) -> None:
        """Act, and deal the next hand when this one is over."""
        if move not in MOVES[self.line]:
            raise IllegalMove(f"{move[:20]!r} is not possible now; write {' or '.join(MOVES[self.line])}")
        self.line = f"{self.line} {move}".strip()
        self.announce(f"{seat} {move}s.")
        if is_finished(self.line):
            self._settle()

    def view(self, seat: str) -> str:
        """Return the hand, the own card, and the score."""
        ahead = self.chips if seat == self.seats[0] else -self.chips
        if self.num_played == len(self.hands):
            return f"Chips won: {ahead:+d}"
        return f"Hand {self.num_played + 1}. You hold {self._card(seat)}. Chips won: {ahead:+d}"

    def rewards(self) -> Mapping[str, float]:
        """Return 1.0 for who is ahead in chips, 0.5 for both when nobody is."""
        north = 0.5 if self.chips == 0 else float(self.chips > 0)
        return {self.seats[0]: north, self.seats[1]: 1.0 - north}

    def oracle(self, seat: str) -> str:
        """Return the best answer to how the other scripted player plays; its card stays unseen."""
        return best_move(self.styles[1 - self.seats.index(seat)], self.line, self._card(seat))

    def scripted_move(self, seat: str, rng: np.random.Generator) -> str:
        """Follow a fixed strategy."""
        return move_of(self.styles[self.seats.index(seat)], self.line, self._card(seat))

    def key(self) -> str:
        """Return the order of the hands."""
        return " ".join(f"{starter}{''.join(cards)}" for starter, cards in self.hands)

    def _card(self, seat: str) -> str:
        return self.hands[self.num_played][1][self.seats.index(seat)]

    def _settle(self) -> None:
        starter, cards = self.hands[self.num_played]
        won = winnings(self.line, first=cards[starter], second=cards[1 - starter])
        winner = self.seats[starter if won > 0 else 1 - starter]
        shown = (
            ""
            if self.line.endswith("fold")
            else f" with {max(cards, key=CARDS.index)} against {min(cards, key=CARDS.index)}"
        )
        self.announce(f"{winner} wins {abs(won)}{shown}.")
        self.chips += won if starter == 0 else -won
        self.num_played, self.line = self.num_played + 1, LINES[0]


class Kuhn(GameEnv):
    """Win a match of three-card poker against an opponent with a fixed, imperfect strategy.

    Reward: 1.0 for being ahead in chips after twelve hands, 0.5 for being level, 0.0 for being behind. Each deal comes
    once with either side starting, so nobody is dealt better cards. The order is drawn; every fifth one belongs to the
    test split. `difficulty` 1 are the opponents that lose most to the best answer, 5 those that lose least.
    """

    game_class: ClassVar[type[Game]] = KuhnGame
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.25
