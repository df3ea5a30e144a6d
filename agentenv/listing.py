"""The catalogue as a table: environments by family, with difficulty and the returns of oracle and random policy."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agentenv.catalogue import families
from agentenv.registry import Registration, registered

SCORES = Path(__file__).parent / "envs" / "scores.json"
"""Written by docs/make_catalogue.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What was measured of an environment with its default options.

    Attributes:
        oracle: mean return of the oracle on the train split.
        random: mean return of the random policy.
        num_seeds: episodes of each.
        difficulty: default of the option `difficulty`; 0 where there is none.
        levels: largest difficulty.
        sample: one episode of the oracle as text.
    """

    oracle: float
    random: float
    num_seeds: int
    difficulty: int
    levels: int
    sample: str

    @property
    def level(self) -> str:
        """Difficulty in words, such as `2 of 5`."""
        return f"{self.difficulty} of {self.levels}" if self.levels else "-"


@functools.cache
def scores() -> Mapping[str, Score]:
    """Return what was measured, by id."""
    if not SCORES.is_file():
        return {}
    return {env_id: Score(**fields) for env_id, fields in json.loads(SCORES.read_text(encoding="utf-8")).items()}


def by_family() -> dict[str, list[Registration]]:
    """Return the registered environments: shipped families in order and from easy to hard, then the others by id."""
    known = {entry.env_id: entry for entry in registered()}
    out = {name: [known.pop(env_id) for env_id in ids if env_id in known] for name, ids in families().items()}
    for entry in known.values():
        out.setdefault(entry.family, []).append(entry)
    return {name: entries for name, entries in out.items() if entries}


def show_catalogue(*, as_json: bool = False) -> None:
    """Print the registered environments as a table, or as one JSON list."""
    console = Console(highlight=False)
    if as_json:
        console.file.write(json.dumps([_plain(entry) for group in by_family().values() for entry in group]) + "\n")
        return
    table = Table(title="Environments", title_justify="left")
    table.add_column("environment", no_wrap=True)  # ids are copied from here
    for name in ("task", "level", "oracle", "random"):
        table.add_column(name)
    for name, entries in by_family().items():
        table.add_section()
        table.add_row(f"[bold]{name}[/]", f"{len(entries)} environment{'s' * (len(entries) > 1)}")
        for entry in entries:
            table.add_row(entry.env_id, entry.description, *_figures(entry))
    console.print(table)


def _figures(entry: Registration) -> Sequence[str]:
    score = scores().get(entry.env_id)
    return ("-", "-", "-") if score is None else (score.level, f"{score.oracle:.2f}", f"{score.random:.2f}")


def _plain(entry: Registration) -> dict[str, object]:
    score = scores().get(entry.env_id)
    measured = {} if score is None else {key: value for key, value in asdict(score).items() if key != "sample"}
    return {
        "id": entry.env_id,
        "family": entry.family,
        "description": entry.description,
        "entry_point": entry.entry_point,
        **measured,
    }
