"""Negotiation: two sides share items whose worth to the other side neither knows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from agentenv.game import Game, IllegalMove
from agentenv.game_env import GameEnv

_ITEMS = ("books", "hats", "balls")
_TOTAL_WORTH = 10
_ROUNDS = 5
_FLOOR: Mapping[int, float] = {1: 0.4, 2: 0.6, 3: 0.7, 4: 0.85, 5: 1.0}
"""Difficulty to what the scripted side is content with at last, as a share of its part of the fair deal."""

Deal = tuple[int, ...]
"""How many items of each kind a seat gets."""


class NegotiationGame(Game):
    """Offers in turn, until one is accepted or both have spoken five times (after Lewis et al., arXiv 1706.05125)."""

    seats: ClassVar[tuple[str, ...]] = ("first", "second")
    max_moves: ClassVar[int] = _ROUNDS
    rules: ClassVar[str] = (
        "Share the items with the other side, to whom they are worth something else. A move is an offer that says what "
        'you keep of each kind, e.g. "offer 1 0 2", or "accept", which takes the last offer. Each of you has 5 moves; '
        "without a deal nobody gets anything."
    )

    counts: Deal = ()
    worth: tuple[Deal, ...] = ()
    num_moves = 0
    standing: Deal | None = None
    is_closed = False

    def deal(self, rng: np.random.Generator) -> None:
        """Draw how many items there are and what they are worth to each side: 10 in all."""
        choices: tuple[Deal, ...] = ()
        while not choices:  # three of everything cannot be worth 10
            self.counts = tuple(int(count) for count in rng.integers(1, 4, size=len(_ITEMS)))
            choices = _worths(self.counts)
        self.worth = tuple(choices[int(rng.integers(len(choices)))] for _ in self.seats)

    def whose_turn(self) -> str | None:
        """Return who speaks; None after a deal, or when both have spoken five times."""
        is_over = self.is_closed or self.num_moves == 2 * _ROUNDS
        return None if is_over else self.seats[self.num_moves % 2]

    def legal_moves(self, seat: str) -> tuple[str, ...]:
        """Return every offer, and accept once there is one."""
        offers = tuple(f"offer {' '.join(map(str, kept))}" for kept in _splits(self.counts))
        return offers if self.standing is None else ("accept", *offers)

    def act(self, seat: str, move: str) -> None:
        """Accept, or make an offer, which takes the place of the one before."""
        if move == "accept" and self.standing is not None:
            self.is_closed = True
            self.announce(f"{seat} accepts.")
        else:
            self.standing = self._read_offer(move)
            self.num_moves += 1
            self.announce(f"{seat} wants to keep {self._listed(self.standing)}.")

    def view(self, seat: str) -> str:
        """Return the items, what they are worth to the seat, and how many moves it has left."""
        worth = ", ".join(
            f"{name} {value}" for name, value in zip(_ITEMS, self.worth[self.seats.index(seat)], strict=True)
        )
        left = _ROUNDS - (self.num_moves + 1 - self.seats.index(seat)) // 2
        return f"Items: {self._listed(self.counts)}. Worth to you, each: {worth}. Moves left: {left}"

    def rewards(self) -> Mapping[str, float]:
        """Return 1.0 for a deal worth one's part of the fair one, down to 0.0 for half of that or no deal."""
        if not self.is_closed:
            return dict.fromkeys(self.seats, 0.0)
        fair = self._fair()
        shares = {
            seat: _value(self._part(seat), worth) / max(_value(self._of(seat, fair), worth), 1)
            for seat, worth in zip(self.seats, self.worth, strict=True)
        }
        return {seat: min(1.0, max(0.0, 2 * share - 1)) for seat, share in shares.items()}

    def oracle(self, seat: str) -> str:
        """Accept what is fair; else ask for the most that the other side would take now, the fair part at least."""
        own, other = self.seats.index(seat), self.seats[1 - self.seats.index(seat)]
        needed = _value(self._of(seat, self._fair()), self.worth[own])
        if self.standing is not None and _value(self._part(seat), self.worth[own]) >= needed:
            return "accept"
        # once this offer is made, the other side has spoken as often as it has now
        asked = self._aspiration(other)
        taken = [kept for kept in _splits(self.counts) if _value(self._rest(kept), self.worth[1 - own]) >= asked]
        best = max(taken, key=lambda kept: (_value(kept, self.worth[own]), kept))
        if _value(best, self.worth[own]) < needed:
            best = self._of(seat, self._fair())
        return f"offer {' '.join(map(str, best))}"

    def scripted_move(self, seat: str, rng: np.random.Generator) -> str:
        """Ask for less from move to move, never knowing what things are worth to the other side."""
        worth, asked = self.worth[self.seats.index(seat)], self._aspiration(seat)
        if self.standing is not None and _value(self._part(seat), worth) >= asked:
            return "accept"
        enough = [kept for kept in _splits(self.counts) if _value(kept, worth) >= asked]
        fewest = min(sum(kept) for kept in enough)
        offers = [kept for kept in enough if sum(kept) == fewest]
        return f"offer {' '.join(map(str, offers[int(rng.integers(len(offers)))]))}"

    def cheats(self, seat: str) -> tuple[str, ...]:
        """Ask for everything."""
        return (f"offer {' '.join(map(str, self.counts))}",)

    def rewards_after_giving_up(self, seat: str) -> Mapping[str, float]:
        """Return nothing for anybody: there is no deal."""
        return dict.fromkeys(self.seats, 0.0)

    def result(self, seat: str) -> str:
        """Say what the seat got."""
        if not self.is_closed or self.gave_up:
            return "There is no deal."
        return f"You get {self._listed(self._part(seat))}."

    def key(self) -> str:
        """Return items and worths."""
        return f"{self.counts} {self.worth}"

    def _aspiration(self, seat: str) -> float:
        """Return what the scripted side asks for at its next move: everything at first, its floor at last."""
        spoken = (self.num_moves + 1 - self.seats.index(seat)) // 2
        fair = _value(self._of(seat, self._fair()), self.worth[self.seats.index(seat)])
        floor = min(_FLOOR[self.difficulty] * fair, fair)
        return _TOTAL_WORTH + (floor - _TOTAL_WORTH) * spoken / (_ROUNDS - 1)

    def _fair(self) -> Deal:
        """Return what the first seat gets in the fair deal: the greatest product of worths (J. F. Nash, 1950)."""
        return _fair(self.counts, self.worth)

    def _part(self, seat: str) -> Deal:
        """Return what the standing offer gives to a seat."""
        assert self.standing is not None
        offered_by = self.seats[(self.num_moves + 1) % 2]
        return self.standing if seat == offered_by else self._rest(self.standing)

    def _of(self, seat: str, first_part: Deal) -> Deal:
        return first_part if seat == self.seats[0] else self._rest(first_part)

    def _rest(self, kept: Deal) -> Deal:
        return tuple(count - own for count, own in zip(self.counts, kept, strict=True))

    def _listed(self, deal: Deal) -> str:
        return ", ".join(f"{count} {name}" for name, count in zip(_ITEMS, deal, strict=True))

    def _read_offer(self, move: str) -> Deal:
        form = f"write offer and {len(_ITEMS)} numbers, at most {' '.join(map(str, self.counts))}"
        word, *numbers = move.split()[: len(_ITEMS) + 2] or [""]
        if word != "offer" or len(numbers) != len(_ITEMS) or not all(n.isdecimal() and len(n) < 3 for n in numbers):
            why = "there is no offer to accept" if word == "accept" else f"{move[:20]!r} is no move"
            raise IllegalMove(f"{why}; {form}")
        kept = tuple(map(int, numbers))
        if any(own > count for own, count in zip(kept, self.counts, strict=True)):
            raise IllegalMove(f"there are not so many items; {form}")
        return kept


class Negotiation(GameEnv):
    """Agree on how to share items, without knowing what they are worth to the other side.

    Reward: 1.0 for a deal that is worth at least as much as one's part of the fair deal (Nash's bargaining solution),
    falling to 0.0 for half of that, and 0.0 without a deal. Items and worths are drawn; every fifth draw belongs to the
    test split. `difficulty` 1 is an opponent who is content with little at last, 5 one who insists on its fair part.
    """

    game_class: ClassVar[type[Game]] = NegotiationGame
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.45
    # a seat does not see the other's worths, so that two draws of different splits may look alike to it
    split_by: ClassVar[Literal["content", "seed"]] = "seed"


def _value(deal: Deal, worth: Deal) -> int:
    return sum(count * value for count, value in zip(deal, worth, strict=True))


@functools.cache
def _splits(counts: Deal) -> tuple[Deal, ...]:
    return tuple(itertools.product(*(range(count + 1) for count in counts)))


@functools.cache
def _worths(counts: Deal) -> tuple[Deal, ...]:
    """Return the worths of single items with which all of them together are worth 10."""
    ranges = (range(_TOTAL_WORTH // count + 1) for count in counts)
    return tuple(worth for worth in itertools.product(*ranges) if _value(counts, worth) == _TOTAL_WORTH)


@functools.lru_cache(maxsize=4096)
def _fair(counts: Deal, worth: tuple[Deal, ...]) -> Deal:
    def product(part: Deal) -> tuple[int, int, Deal]:
        rest = tuple(count - own for count, own in zip(counts, part, strict=True))
        values = _value(part, worth[0]), _value(rest, worth[1])
        return values[0] * values[1], min(values), part

    return max(_splits(counts), key=product)
