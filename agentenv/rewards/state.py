"""Whether an agent brought a database into its goal state, and what else it changed on the way."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentenv.errors import UsageError

Record = Mapping[str, object] | Sequence[object]
State = Mapping[str, Iterable[Record]]
"""Tables by name; a row is a mapping or a sequence of values. The order of rows does not count, repetition does."""

_Key = tuple[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateComparison:
    """How a final state differs from the start and from the goal; every row that appears or vanishes is one change.

    Attributes:
        num_required: changes that lead from the start to the goal.
        num_done: those among them that were made.
        num_side_effects: changes against the start that the goal does not ask for.
    """

    num_required: int
    num_done: int
    num_side_effects: int

    @property
    def is_goal(self) -> bool:
        """True when the final state is the goal."""
        return self.num_done == self.num_required and not self.num_side_effects

    def score(self, *, penalty: float) -> float:
        """Return 1 minus `penalty` for every side effect, at least 0; and 0 unless every required change was made."""
        if not 0 <= penalty <= 1:
            raise UsageError(f"penalty is {penalty}; it must lie in [0, 1]")
        if self.num_done < self.num_required:
            return 0.0
        return max(0.0, 1.0 - penalty * self.num_side_effects)


def compare_states(*, start: State, goal: State, final: State) -> StateComparison:
    """Compare three states of one database."""
    before, wanted, after = _counted(start), _counted(goal), _counted(final)
    appear, vanish = wanted - before, before - wanted
    appeared, vanished = after - before, before - after
    done = (appeared & appear).total() + (vanished & vanish).total()
    return StateComparison(
        num_required=appear.total() + vanish.total(),
        num_done=done,
        num_side_effects=appeared.total() + vanished.total() - done,
    )


def sqlite_state(database: sqlite3.Connection | Path | str) -> dict[str, list[tuple[object, ...]]]:
    """Return the rows of every table of a database, for `compare_states`.

    A table without rows is the same as no table. A file is opened read-only.

    Raises:
        UsageError: it is no database, or is not there.
    """
    if isinstance(database, sqlite3.Connection):
        return _tables(database)
    place = Path(database)
    try:
        connection = sqlite3.connect(f"{place.resolve().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise UsageError(f"{place}: cannot be opened as a sqlite database ({error})") from error
    try:
        return _tables(connection)
    except sqlite3.Error as error:
        raise UsageError(f"{place}: cannot be read as a sqlite database ({error})") from error
    finally:
        connection.close()


def _tables(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    found = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    names = [row[0] for row in found]
    quoted = {name: name.replace('"', '""') for name in names}
    return {name: [tuple(row) for row in connection.execute(f'SELECT * FROM "{quoted[name]}"')] for name in names}


def _counted(state: State) -> Counter[_Key]:
    return Counter((table, _frozen(row)) for table, rows in state.items() for row in rows)


def _frozen(value: object) -> object:
    """Return a value that can be counted, in which 1, 1.0 and True differ."""
    if isinstance(value, Mapping):
        return (dict, frozenset((key, _frozen(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return (list, tuple(_frozen(item) for item in value))
    if isinstance(value, (set, frozenset)):
        return (set, frozenset(_frozen(item) for item in value))
    return (type(value), value)
