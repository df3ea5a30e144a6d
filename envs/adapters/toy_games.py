"""Words and best play for the games that come with Gymnasium and need no other package."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agentenv.envs.adapters.value_iteration import Transitions, best_actions
from agentenv.wrappers.verbaliser import Words

_DIRECTIONS = ("left", "down", "right", "up")
_STOPS = ("R", "G", "Y", "B")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyGame:
    """What is known about a game.

    Attributes:
        words: how it is told.
        solved_at: last reward of a solved game; None where being solved means nothing.
        oracle_threshold: mean reward that its oracle reaches, for the game's default options.
        random_threshold: mean reward that the random policy does not pass.
        policy: best actions of an unwrapped game, by what `state` returns.
        state: reads the state off the unwrapped game and its observation.
    """

    words: Words
    solved_at: float | None = None
    oracle_threshold: float = 0.0
    random_threshold: float = 1.0
    policy: Callable[[Any], dict[Any, int]] | None = None
    state: Callable[[Any, Any], Any] = lambda game, observation: observation


def known(env_id: str) -> ToyGame | None:
    """Return what is known about a game, whatever its version."""
    return _GAMES.get(env_id.rpartition("-v")[0] or env_id)


_policies: dict[str, dict[Any, int]] = {}
_MAX_POLICIES = 64


def _policy_of(game: Any) -> dict[Any, int]:
    """Return best play by the game's own transitions; games with the same ones share it."""
    key = hashlib.sha256(repr(game.P).encode()).hexdigest()
    if key not in _policies:
        if len(_policies) >= _MAX_POLICIES:
            _policies.clear()
        _policies[key] = best_actions(game.P)
    return _policies[key]


def _describe_frozen_lake(game: Any, observation: Any) -> str:
    row, column = divmod(int(observation), game.ncol)
    board = [[cell.decode() for cell in line] for line in game.desc]
    board[row][column] = f"[{board[row][column]}]"
    lines = [" ".join(line) for line in board]
    return "\n".join([*lines, f"You are at row {row}, column {column}."])


def _describe_cliff(game: Any, observation: Any) -> str:
    row, column = divmod(int(observation), game.shape[1])
    return f"You are at row {row}, column {column} of {game.shape[0]} rows and {game.shape[1]} columns."


def _describe_taxi(game: Any, observation: Any) -> str:
    row, column, passenger, destination = game.decode(int(observation))
    stops = ", ".join(f"{name} (row {at[0]}, column {at[1]})" for name, at in zip(_STOPS, game.locs, strict=True))
    where = "is in the taxi" if passenger == 4 else f"waits at {_STOPS[passenger]}"
    walls = "\n".join("".join(cell.decode() for cell in line) for line in game.desc)
    return (
        f"{walls}\nStops: {stops}.\nThe taxi is at row {row}, column {column}. The passenger {where} and wants to go "
        f"to {_STOPS[destination]}."
    )


def _describe_blackjack(game: Any, observation: Any) -> str:
    total, shown, has_ace = (int(part) for part in observation)
    ace = "with an ace that counts 11" if has_ace else "without an ace that counts 11"
    return f"Your hand is worth {total}, {ace}. The dealer shows {'an ace' if shown == 1 else shown}."


@functools.cache
def _blackjack_policy() -> dict[Any, int]:
    return best_actions(_blackjack_transitions(), discount=1.0)


_CARDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10)


def _blackjack_transitions() -> Transitions:
    """Return the transitions of a player's hand; cards are drawn with replacement, as Gymnasium's game does."""
    table: dict[Any, dict[int, list[tuple[float, Any, float, bool]]]] = {}
    for total in range(4, 22):
        for shown in range(1, 11):
            for ace in (0, 1):
                hit = [(1 / 13, *_after_hit(total, shown, ace, card)) for card in _CARDS]
                stick = [(1.0, None, _value_of_sticking(total, shown), True)]
                table[(total, shown, ace)] = {0: stick, 1: hit}
    return table


def _after_hit(total: int, shown: int, ace: int, card: int) -> tuple[Any, float, bool]:
    total += card
    if card == 1 and not ace and total + 10 <= 21:
        total, ace = total + 10, 1
    if total > 21 and ace:
        total, ace = total - 10, 0
    return (None, -1.0, True) if total > 21 else ((max(total, 4), shown, ace), 0.0, False)


@functools.lru_cache(maxsize=512)
def _value_of_sticking(total: int, shown: int) -> float:
    dealer = _dealer(shown + 10 if shown == 1 else shown, shown == 1)
    return sum(p * (1.0 if end > 21 or end < total else 0.0 if end == total else -1.0) for end, p in dealer)


@functools.lru_cache(maxsize=512)
def _dealer(total: int, soft: bool) -> tuple[tuple[int, float], ...]:
    """Return where the dealer's hand ends, with probabilities; it draws below 17."""
    if total > 21 and soft:
        total, soft = total - 10, False
    if total >= 17:
        return ((total, 1.0),)
    ends: dict[int, float] = {}
    for card in _CARDS:
        as_eleven = card == 1 and total + 11 <= 21
        for end, p in _dealer(total + (11 if as_eleven else card), soft or as_eleven):
            ends[end] = ends.get(end, 0.0) + p / 13
    return tuple(ends.items())


_GAMES: dict[str, ToyGame] = {
    "FrozenLake": ToyGame(
        words=Words(
            title="FrozenLake",
            rules="Walk from S to G over frozen ground F and never step into a hole H. [ ] marks where you stand.",
            actions=_DIRECTIONS,
            describe=_describe_frozen_lake,
        ),
        solved_at=1.0,
        oracle_threshold=0.5,
        random_threshold=0.1,
        policy=_policy_of,
        state=lambda game, observation: int(observation),
    ),
    "CliffWalking": ToyGame(
        words=Words(
            title="CliffWalking",
            rules="Walk to the last column of the last row. The other cells of the last row, but for the first, are a "
            "cliff: who steps there begins again.",
            actions=("up", "right", "down", "left"),
            describe=_describe_cliff,
        ),
        solved_at=-1.0,
        oracle_threshold=1.0,
        random_threshold=0.1,
        policy=_policy_of,
        state=lambda game, observation: int(observation),
    ),
    "Taxi": ToyGame(
        words=Words(
            title="Taxi",
            rules="Fetch the passenger and bring it where it wants to go. A taxi cannot drive through |.",
            actions=("south", "north", "east", "west", "pickup", "dropoff"),
            describe=_describe_taxi,
        ),
        solved_at=20.0,
        oracle_threshold=1.0,
        random_threshold=0.1,
        policy=_policy_of,
        state=lambda game, observation: int(observation),
    ),
    "Blackjack": ToyGame(
        words=Words(
            title="Blackjack",
            rules="Come closer to 21 than the dealer without going over it.",
            actions=("stick", "hit"),
            describe=_describe_blackjack,
        ),
        solved_at=1.0,
        oracle_threshold=0.35,
        random_threshold=0.45,
        policy=lambda game: _blackjack_policy(),
        state=lambda game, observation: tuple(int(part) for part in observation),
    ),
    "CartPole": ToyGame(
        words=Words(
            title="CartPole",
            rules="Keep the pole upright and the cart near the middle.",
            actions=("left", "right"),
            numbers=("position", "velocity", "angle", "angular velocity"),
        )
    ),
    "MountainCar": ToyGame(
        words=Words(
            title="MountainCar",
            rules="Reach the flag on the right hill, at position 0.5.",
            actions=("left", "coast", "right"),
            numbers=("position", "velocity"),
        )
    ),
    "Acrobot": ToyGame(
        words=Words(
            title="Acrobot",
            rules="Swing the free end of the two links above the bar.",
            actions=("left", "none", "right"),
            numbers=("cos 1", "sin 1", "cos 2", "sin 2", "angular velocity 1", "angular velocity 2"),
        )
    ),
}
