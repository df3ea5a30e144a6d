"""What `agentenv train`, `quickstart`, `replay`, `export` and `config` do."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, NoReturn, cast

import transformers
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentenv.config import key_table, load_config, reference_markdown, schema, to_yaml
from agentenv.errors import UsageError
from agentenv.evaluate import EvalSummary
from agentenv.memory import relax_garbage_collection
from agentenv.play import show_transcript
from agentenv.progress import Unbreakable, open_progress
from agentenv.trainers.background import is_busy
from agentenv.trainers.channel import Follower
from agentenv.trainers.config import RunConfig
from agentenv.trainers.notice import NoticeGiven
from agentenv.trainers.pipeline import AFTER, BEFORE, DEMONSTRATOR, RunResult, run_pipeline
from agentenv.trainers.ranks import Team, follow, is_rank, open_team
from agentenv.trainers.run_report import write_run_report
from agentenv.trainers.site import is_inline, ray_module

QUICKSTART = Path(__file__).parent / "recipes" / "quickstart.yaml"
_SHOWN_TRANSCRIPTS = 3


def train(config: str | Path, overrides: Sequence[str], *, resume: bool, dry_run: bool) -> RunResult | None:
    """Run a configuration from demonstrations to report, or print it and stop.

    Started by torchrun, rank 0 runs it, and the other ranks train with it and return None.

    Raises:
        ConfigError: names file and line, or the override.
        RunFolderError: the run's folder is taken.
    """
    resolved = load_config(RunConfig, config, overrides=overrides)
    console = Console(highlight=False, file=cast("IO[str]", Unbreakable(sys.stdout)))
    if dry_run:
        console.print(escape(to_yaml(resolved)), end="", soft_wrap=True)
        return None
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    transformers.utils.logging.disable_progress_bar()  # bars for folders that load in milliseconds
    relax_garbage_collection()
    if is_rank() and not is_inline(resolved):
        raise UsageError(
            "torchrun started this process, and the configuration has a section cluster, which is Ray's; take one: "
            "start it without torchrun, or with cluster=inline"
        )
    team = open_team(resolved) if is_inline(resolved) else None
    if isinstance(team, Follower):
        follow(team, config=resolved)
        return None
    try:
        result, report = _run(resolved, resume=resume, console=console, team=team)
    except KeyboardInterrupt:
        _leave(resolved, console, told="stopped", code=130)
    except NoticeGiven as notice:
        _leave(resolved, console, told=f"{notice.signal.name} came", code=notice.exit_code)
    _show_result(result, console, report=report)
    return result


def quickstart(overrides: Sequence[str], *, resume: bool, dry_run: bool) -> RunResult | None:
    """Train the shipped small agent."""
    return train(QUICKSTART, overrides, resume=resume, dry_run=dry_run)


def replay(run: str, overrides: Sequence[str]) -> None:
    """Train again from the trajectories of a finished run."""
    from agentenv.trainers.replay import replay_run

    result = replay_run(run, overrides)
    console = Console(highlight=False)
    console.print(f"replayed {result.steps} updates of {run}")
    console.print(f"model: {result.folder / 'model'}")
    same = "the same as" if result.is_identical else "different from"
    console.print(f"weights are {same} those of the run ({result.checksum})")


def export(run: str, *, to: str, checkpoint: str | None) -> None:
    """Write the model of a checkpoint as a Hugging Face folder."""
    from agentenv.trainers.export import export_run

    transformers.utils.logging.disable_progress_bar()
    done = export_run(run, to=to, checkpoint=checkpoint)
    console = Console(highlight=False)
    console.print(f"model: {to}", soft_wrap=True)
    console.print(f"from {done.path.name}: {done.progress.phase}, step {done.progress.step}", soft_wrap=True)


def config_schema() -> dict[str, object]:
    """Return the JSON schema of a run file."""
    return dict(schema(RunConfig))


def config_reference() -> str:
    """Return all keys as Markdown."""
    return reference_markdown(RunConfig)


def show_keys() -> None:
    """Print all keys with their defaults."""
    table = Table("key", "type", "default", title="Keys of a run file", title_justify="left")
    rows = key_table(RunConfig)
    for row in rows:
        table.add_row(escape(row.key), escape(str(row.type)), escape(str(row.default)))
    Console(highlight=False).print(table)


def _run(config: RunConfig, *, resume: bool, console: Console, team: Team | None) -> tuple[RunResult, Path]:
    """Run here or on a cluster; returns the result and the report."""
    if team is None:
        return ray_module("cluster").train_on_cluster(config, resume=resume)
    with closing(team):
        result = run_pipeline(config, resume=resume, display=open_progress(console), team=team)
    return result, write_run_report(result, config)


def _leave(config: RunConfig, console: Console, *, told: str, code: int) -> NoReturn:
    """Say how to go on and end; a step that a second Ctrl-C cut is not waited for."""
    folder = Path(config.output_dir) / config.name
    console.print(f"\n{told}; {folder} keeps the run. Go on with the same command and --resume")
    if is_busy():
        sys.stdout.flush()
        os._exit(code)  # the interpreter's own end would crash into the thread that still computes
    raise SystemExit(code)


def _show_result(result: RunResult, console: Console, *, report: Path) -> None:
    for index, trajectory in enumerate(result.transcripts[:_SHOWN_TRANSCRIPTS]):
        show_transcript(trajectory, console=console, title=f"episode {index + 1} of {_SHOWN_TRANSCRIPTS}")
        console.print(f"[dim]{trajectory.stop_reason.value}, reward {trajectory.reward:g}[/]")
    console.print()
    console.print(_comparison(result.evaluations))
    console.print(_beats_teacher(result.evaluations))
    total = sum(result.seconds.values())
    phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    console.print(f"{result.steps} updates, {total:.0f} s: {phases}")
    for name, path in (
        ("report", report),
        ("curve", result.folder / "learning_curve.png"),
        ("metrics", result.folder / "metrics.jsonl"),
        ("trajectories", result.folder / "trajectories"),
        ("checkpoints", result.folder / "checkpoints"),
        ("model", result.folder / "model"),
    ):
        console.print(f"{name + ':':<14}{path}", soft_wrap=True)


def _comparison(evaluations: Mapping[str, EvalSummary]) -> Table:
    names = [name for name in (DEMONSTRATOR, BEFORE, AFTER) if name in evaluations]
    table = Table("", *names, title="Before and after", title_justify="left")
    rows = (
        ("success", lambda s: f"{s.success_rate:.3f}"),
        ("95 % interval", lambda s: f"{s.success_low:.3f} to {s.success_high:.3f}"),
        ("mean reward", lambda s: f"{s.mean_reward:.3f}"),
        ("turns", lambda s: f"{s.mean_turns:.2f}"),
        ("tokens written", lambda s: f"{s.mean_sampled_tokens:.1f}"),
        ("well-formed calls", lambda s: f"{s.format_compliance:.3f}"),
        ("episodes", lambda s: f"{s.num_episodes}"),
    )
    for label, text in rows:
        table.add_row(label, *(text(evaluations[name]) for name in names))
    return table


def _beats_teacher(evaluations: Mapping[str, EvalSummary]) -> str:
    teacher, after = evaluations.get(DEMONSTRATOR), evaluations.get(AFTER)
    if teacher is None or after is None:
        return ""
    verdict = "beats" if after.success_low > teacher.success_rate else "does not clearly beat"
    return f"The trained agent {verdict} its teacher: {after.success_rate:.3f} against {teacher.success_rate:.3f}."
