"""Best play of small games whose transitions are known: value iteration over `env.P`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Transitions = Mapping[Any, Mapping[int, Sequence[tuple[float, Any, float, bool]]]]
"""State -> action -> (probability, next state, reward, ends); as the toy games of Gymnasium have it."""


def best_actions(
    transitions: Transitions, *, discount: float = 0.9999, tolerance: float = 1e-9, max_sweeps: int = 10_000
) -> dict[Any, int]:
    """Return the action of largest value in every state (Bellman's optimality equation, solved by sweeps).

    Args:
        transitions: of the game.
        discount: just below 1, so that of equally good ways the shortest wins.
        tolerance: largest change of a value in the last sweep.
        max_sweeps: bound.
    """
    values = dict.fromkeys(transitions, 0.0)
    for _ in range(max_sweeps):
        change = 0.0
        for state, actions in transitions.items():
            best = max(_worth(outcomes, values, discount) for outcomes in actions.values())
            change = max(change, abs(best - values[state]))
            values[state] = best
        if change < tolerance:
            break
    return {
        state: max(actions, key=lambda action: _worth(actions[action], values, discount))
        for state, actions in transitions.items()
    }


def _worth(outcomes: Sequence[tuple[float, Any, float, bool]], values: Mapping[Any, float], discount: float) -> float:
    return sum(p * (reward + (0.0 if ends else discount * values[after])) for p, after, reward, ends in outcomes)
