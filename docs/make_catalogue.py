"""Measures every shipped environment into `envs/scores.json` and writes `docs/catalogue.md` from it.

python docs/make_catalogue.py            # measure all of them; write both files
python docs/make_catalogue.py NAME ...   # measure these only, e.g. Wordle
python docs/make_catalogue.py --page     # write the page from the stored numbers
python docs/make_catalogue.py --check    # exit 1 with a message if the page or the list of environments is stale

The test suite measures again and compares with the stored numbers. An environment that cannot be played on this machine
keeps what was measured elsewhere.
"""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without an installation

from agentenv.catalogue import families
from agentenv.check import subject_of
from agentenv.check_policies import play
from agentenv.env import ToolEnv
from agentenv.errors import UsageError
from agentenv.listing import SCORES, Score, by_family, scores
from agentenv.registry import Registration, make_bare, registration
from agentenv.tool import tools_of_class

PAGE = Path(__file__).parent / "catalogue.md"
_MAX_LEVELS = 20
_MAX_LINES = 24
_MAX_LINE_CHARS = 240
_MAX_TOOLS = 12


def measure(entry: Registration) -> Score:
    """Play an environment with its default options."""
    env_class = entry.load()
    subject = subject_of(entry.env_id, num_seeds=env_class.check_seeds, env_kwargs={})
    difficulty = getattr(subject.make(), "difficulty", 0) if subject.has_difficulty else 0
    return Score(
        oracle=round(subject.played("oracle").mean_return, 4),
        random=round(subject.played("random").mean_return, 4),
        num_seeds=env_class.check_seeds,
        difficulty=difficulty,
        levels=_levels(entry) if difficulty else 0,
        sample=sample(entry),
    )


def _levels(entry: Registration) -> int:
    """Return the largest difficulty that the constructor takes."""
    for level in range(1, _MAX_LEVELS + 1):
        try:
            make_bare(entry.env_id, difficulty=level).close()
        except UsageError:
            return level - 1
    return _MAX_LEVELS


def sample(entry: Registration) -> str:
    """Return one episode of the oracle as text, shortened to a screen."""
    env = make_bare(entry.env_id, render_mode="ansi")
    play(env, "oracle", seed=0)
    lines = (env.render() or "").splitlines()
    env.close()
    shown = [line if len(line) <= _MAX_LINE_CHARS else f"{line[:_MAX_LINE_CHARS]}..." for line in lines]
    if len(shown) > _MAX_LINES:
        half = _MAX_LINES // 2
        shown = [*shown[:half], f"[... {len(shown) - 2 * half} lines ...]", *shown[-half:]]
    return "\n".join(line.rstrip() for line in shown)


def page_text(measured: dict[str, Score]) -> str:
    """Return the page; it follows from the stored numbers and the classes alone."""
    groups = {name: [e for e in entries if e.env_id in measured] for name, entries in _shipped().items()}
    groups = {name: entries for name, entries in groups.items() if entries}
    total = sum(map(len, groups.values()))
    parts = [
        "# Catalogue",
        "",
        "<!-- Written by docs/make_catalogue.py. Change the environments, not this page. -->",
        "",
        f"{total} environments in {len(groups)} families, in each from easy to hard. All run without a download, an",
        "account or a container. *Oracle* and *random* are mean returns over the stated number of seeds on the train",
        "split with default options; every cheating policy earns 0. `agentenv list` prints the same table, and",
        "[Environments](environments.md) says how to make, play and write one.",
        "",
    ]
    for name, entries in groups.items():
        parts += [
            f"## {name[:1].upper()}{name[1:]}",
            "",
            "| id | task | level | oracle | random |",
            "|---|---|---|---|---|",
        ]
        parts += [_row(entry, measured[entry.env_id]) for entry in entries]
        for entry in entries:
            parts += ["", *_section(entry, measured[entry.env_id])]
        parts += [""]
    return "\n".join(parts)


def _row(entry: Registration, score: Score) -> str:
    figures = f"{score.level} | {score.oracle:.2f} | {score.random:.2f}"
    return f"| `{entry.env_id}` | {entry.description} | {figures} |"


def _section(entry: Registration, score: Score) -> list[str]:
    description = (inspect.getdoc(entry.load()) or "").partition("\nArgs:")[0].strip()
    measured = f"oracle {score.oracle:.2f}, random {score.random:.2f} over {score.num_seeds} seeds"
    difficulty = f"difficulty {score.level}; " if score.levels else ""
    return [
        f"### {entry.env_id.partition('/')[2].partition('-v')[0]}",
        "",
        description.replace("<", "&lt;"),
        "",
        f"*{_tools(entry)}; {difficulty}{measured}.*",
        "",
        "```text",
        score.sample.replace("```", "'''"),
        "```",
    ]


def _tools(entry: Registration) -> str:
    """Return the names of the tools as the class declares them, without starting an episode."""
    env_class = entry.load()
    if not issubclass(env_class, ToolEnv):
        return "Text only"
    names = [f"`{tool.name}`" for tool in tools_of_class(env_class)]
    if not names:
        return "Tools differ from task to task"
    more = f" and {len(names) - _MAX_TOOLS} more" if len(names) > _MAX_TOOLS else ""
    return f"Tools: {', '.join(names[:_MAX_TOOLS])}{more}"


def _shipped() -> dict[str, list[Registration]]:
    """Return the environments of the package, without plug-ins."""
    return {name: [e for e in by_family().get(name, []) if e.env_id in ids] for name, ids in families().items()}


def _store(measured: dict[str, Score]) -> None:
    ordered = {
        e.env_id: asdict(measured[e.env_id]) for group in _shipped().values() for e in group if e.env_id in measured
    }
    SCORES.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _stale(stored: dict[str, Score], page: Path) -> str:
    """Return what is out of date; empty when nothing is."""
    ids = [entry.env_id for group in _shipped().values() for entry in group]
    if sorted(ids) != sorted(stored):
        differing = sorted(set(ids) ^ set(stored))
        return f"{SCORES} does not list the environments that ship ({', '.join(differing)})"
    if not page.is_file() or page.read_text(encoding="utf-8") != page_text(stored):
        return f"{page} does not describe the environments"
    return ""


def main(arguments: list[str], *, page: Path = PAGE) -> int:
    """Measure, write or check; returns the exit code."""
    stored = dict(scores())
    if arguments == ["--check"]:
        why = _stale(stored, page)
        if why:
            print(f"{why}; run `python docs/make_catalogue.py`", file=sys.stderr)
        return int(bool(why))
    if arguments != ["--page"]:
        shipped = [entry for group in _shipped().values() for entry in group]
        chosen = [registration(f"agentenv/{name}-v0") for name in arguments] or shipped
        for entry in chosen:
            why = entry.load().unavailable()
            print(f"{entry.env_id}: {f'not measured, because {why}' if why else 'measured'}")
            if not why:
                stored[entry.env_id] = measure(entry)
        stored = {entry.env_id: stored[entry.env_id] for entry in shipped if entry.env_id in stored}
        _store(stored)
    page.write_text(page_text(stored), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
