"""`Game`: rules of a turn-based game for several seats, without a word about who sits there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from agentenv.errors import ToolError, UsageError
from agentenv.seeds import derive_seed

Split = Literal["train", "test"]

CARELESS: Mapping[int, float] = {1: 1.0, 2: 0.5, 3: 0.35, 4: 0.2, 5: 0.0}
"""Difficulty to the share of moves that the scripted player makes without thinking."""

_MAX_DRAWS = 10_000
_TEST_SHARE = 5


class IllegalMove(ToolError):
    """The rules forbid this move; the text is shown to whoever made it."""


class Game(ABC):
    """A game that is played in turns. Authors write `deal`, `whose_turn`, `legal_moves`, `act`, `view` and `rewards`.

    A move is a short text. What everybody may know is announced; what a seat alone may know is in its `view`.

    Args:
        difficulty: 1 (easy) to 5; how well the scripted player plays, and whatever else the game makes of it.

    Attributes:
        events: what was announced so far, in order.
        gave_up: the seat that left before the end; "" while nobody did.
    """

    seats: ClassVar[tuple[str, ...]] = ("first", "second")
    """Names of the seats."""
    max_moves: ClassVar[int] = 32
    """Moves that one seat can make at most."""
    rules: ClassVar[str] = ""
    """What every seat is told at the beginning, the form of a move included."""

    def __init__(self, *, difficulty: int = 2) -> None:
        if difficulty not in CARELESS:
            raise UsageError(f"difficulty is {difficulty!r}; allowed are {', '.join(map(str, CARELESS))}")
        self.difficulty = difficulty
        self.events: list[str] = []
        self.gave_up = ""

    # What authors write.

    @abstractmethod
    def deal(self, rng: np.random.Generator) -> None:
        """Put the game into its first state; all chance comes from `rng`."""

    @abstractmethod
    def whose_turn(self) -> str | None:
        """Return the seat that moves next; None when the game has come to its end."""

    @abstractmethod
    def legal_moves(self, seat: str) -> tuple[str, ...]:
        """Return the moves that a seat may make when its turn has come."""

    @abstractmethod
    def act(self, seat: str, move: str) -> None:
        """Make a move that `read_move` gave.

        Raises:
            IllegalMove: nothing has changed.
        """

    @abstractmethod
    def view(self, seat: str) -> str:
        """Return the state as a seat sees it."""

    @abstractmethod
    def rewards(self) -> Mapping[str, float]:
        """Return what every seat has earned in a game that has come to its end, from 0.0 to 1.0."""

    @abstractmethod
    def oracle(self, seat: str) -> str:
        """Return the best move."""

    @abstractmethod
    def key(self) -> str:
        """Name what was dealt; deals of the same name belong to the same split."""

    def open_seats(self) -> tuple[str, ...]:
        """Return the seats from which perfect play reaches the full reward; one of them is offered to a learner."""
        return self.seats

    def read_move(self, text: str) -> str:
        """Return the move that a text means."""
        return " ".join(text.split()).lower()

    def scripted_move(self, seat: str, rng: np.random.Generator) -> str:
        """Return the move of the scripted player: careless at times, as `difficulty` says, else the best one."""
        if rng.random() < CARELESS[self.difficulty]:
            return self.random_move(seat, rng)
        return self.oracle(seat)

    def random_move(self, seat: str, rng: np.random.Generator) -> str:
        """Return any legal move."""
        moves = self.legal_moves(seat)
        return moves[int(rng.integers(len(moves)))]

    def cheats(self, seat: str) -> tuple[str, ...]:
        """Return what somebody who cannot play would try at once; a proof expects that it earns nothing."""
        return (*self.legal_moves(seat), "win", "payoff 1.0")

    def rewards_after_giving_up(self, seat: str) -> Mapping[str, float]:
        """Return what everybody has earned when a seat left: nothing for that one, everything for the others."""
        return {other: float(other != seat) for other in self.seats}

    def result(self, seat: str) -> str:
        """Say how the game ended for a seat."""
        earned = self.reward_of(seat)
        return "You win." if earned == 1.0 else "You lose." if earned == 0.0 else "It is a draw."

    # What others call.

    @property
    def is_over(self) -> bool:
        """True at the end, and when a seat has left."""
        return bool(self.gave_up) or self.whose_turn() is None

    def announce(self, event: str) -> None:
        """Tell every seat something."""
        self.events.append(event)

    def play(self, seat: str, text: str) -> None:
        """Make a move for a seat.

        Raises:
            IllegalMove: it is not this seat's turn, or the rules forbid the move; nothing has changed.
        """
        if self.is_over or self.whose_turn() != seat:
            raise IllegalMove("it is not your turn; one move a turn")
        self.act(seat, self.read_move(text))

    def give_up(self, seat: str) -> None:
        """Let a seat leave a game that is not over."""
        if not self.is_over:
            self.gave_up = seat
            self.announce(f"{seat} gave up.")

    def reward_of(self, seat: str) -> float:
        """Return what a seat has earned; nothing before the end."""
        if self.gave_up:
            return float(self.rewards_after_giving_up(self.gave_up)[seat])
        return float(self.rewards()[seat]) if self.is_over else 0.0


def new_game(game_class: type[Game], rng: np.random.Generator, *, difficulty: int, split: Split) -> Game:
    """Deal a game of a split: of every five names that `key` gives, the test split has about one.

    Raises:
        UsageError: the game deals nothing for this split.
    """
    for _ in range(_MAX_DRAWS):
        game = game_class(difficulty=difficulty)
        game.deal(rng)
        if (derive_seed("split", game.key()) % _TEST_SHARE == 0) == (split == "test"):
            return game
    raise UsageError(f"{game_class.__name__} dealt nothing for split {split!r} in {_MAX_DRAWS} attempts")
