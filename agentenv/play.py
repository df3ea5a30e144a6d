"""What the terminal commands show: a played episode, an evaluation, the catalogue, the state of the installation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentenv.agent.human import HumanAgent, Left
from agentenv.compare import Comparison, compare
from agentenv.episode import EpisodeSpec, Limits
from agentenv.errors import UsageError
from agentenv.evaluate import EvalSummary, evaluate, evaluation_groups
from agentenv.player import (
    Player,
    PlayerOptions,
    byte_runner,
    check_player,
    open_player,
    parse_player,
    parse_players,
)
from agentenv.registry import registration
from agentenv.runner import Runner
from agentenv.trajectory import Trajectory
from agentenv.vision import described_content

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Who = Literal["human", "oracle", "demonstrate", "random", "engine"]

# A person may think for a day, and what a person says is recorded in bytes.
_PATIENT = Limits(
    max_turn_tokens=100_000,
    max_episode_tokens=1_000_000,
    max_context_tokens=2_000_000,
    max_observation_tokens=100_000,
    episode_timeout_s=86_400.0,
    step_timeout_s=3600.0,
)


@asynccontextmanager
async def runner_for(
    who: Who, *, model: str | None, temperature: float = 1.0, console: Console | None = None
) -> AsyncIterator[Runner]:
    """Give a runner whose episodes are played by `who`.

    Args:
        who: a person, a scripted policy of the environment, or a model in the embedded engine.
        model: folder or Hub id, for `"engine"`.
        temperature: of the engine's sampling.
        console: where a person is asked.

    Raises:
        UsageError: `"engine"` without a model.
    """
    if who == "human":
        screen = console or Console()
        agent = HumanAgent(
            ask=lambda text: screen.input(f"[bold cyan]{text}[/]"), show=lambda text: screen.print(escape(text))
        )
        yield byte_runner(agent, limits=_PATIENT)
        return
    if who == "engine":
        if model is None:
            raise UsageError("--policy engine needs --model FOLDER_OR_HUB_ID")
        player = Player(label=model, kind="model", model=model)
    else:
        player = parse_player(who)
    async with open_player(player, options=PlayerOptions(temperature=temperature)) as runner:
        yield runner


def play_in_terminal(
    env_id: str, *, policy: Who, seed: int, model: str | None, env_kwargs: Mapping[str, object]
) -> None:
    """Play one episode and show it."""
    console = Console(highlight=False)
    registration(env_id)

    async def once() -> Trajectory:
        async with runner_for(policy, model=model, console=console) as runner:
            return await runner.run_episode(EpisodeSpec(env_id=env_id, env_kwargs=env_kwargs, seed=seed))

    try:
        trajectory = asyncio.run(once())
    except (KeyboardInterrupt, Left):
        console.print("\nleft the game")
        return
    if policy == "human":
        for message in _after_last_turn(trajectory):
            console.print(escape(f"{message.name or message.role}> {described_content(message)}"))
    else:
        show_transcript(trajectory, console=console)
    _show_ending(trajectory, console)


def evaluate_policy(
    env_id: str,
    *,
    policy: Who,
    num_episodes: int,
    seed: int,
    temperature: float,
    success_reward: float,
    model: str | None,
    env_kwargs: Mapping[str, object],
) -> EvalSummary:
    """Play episodes on the environment's test split and summarise them."""
    if policy == "human":
        raise UsageError("a person cannot be evaluated in bulk; use `agentenv play`")
    if num_episodes < 1:
        raise UsageError(f"{num_episodes} episodes were asked for; at least 1 is needed")
    registration(env_id)
    groups = evaluation_groups(env_id, num_episodes=num_episodes, seed=seed, env_kwargs={"split": "test", **env_kwargs})

    async def measure() -> EvalSummary:
        async with runner_for(policy, model=model, temperature=temperature) as runner:
            summary, trajectories = await evaluate(
                runner, groups, name=f"{env_id} {policy}", success_reward=success_reward
            )
            if not summary.num_episodes:
                raise UsageError(f"all {num_episodes} episodes failed; the first: {trajectories[0].error}")
            return summary

    return asyncio.run(measure())


def compare_players(
    env_id: str,
    *,
    players: Sequence[str],
    num_episodes: int,
    seed: int,
    success_reward: float,
    env_kwargs: Mapping[str, object],
    options: PlayerOptions | None = None,
) -> Comparison:
    """Let players play the same episodes of the environment's test split, one player after the other.

    A player whose episodes fail is reported beside the others; what the others did is kept.

    Raises:
        UsageError: a player cannot play, or no episode of any player could be played.
    """
    if num_episodes < 1:
        raise UsageError(f"{num_episodes} episodes were asked for; at least 1 is needed")
    registration(env_id)
    parsed = parse_players(players)
    options = PlayerOptions() if options is None else options
    groups = evaluation_groups(env_id, num_episodes=num_episodes, seed=seed, env_kwargs={"split": "test", **env_kwargs})

    async def measure() -> Comparison:
        for player in parsed:
            await check_player(player, options=options)
        played: dict[str, list[Trajectory]] = {}
        for player in parsed:
            async with open_player(player, options=options) as runner:
                _, played[player.label] = await evaluate(runner, groups, name=player.label)
        result = compare(played, env_id=env_id, seed=seed, success_reward=success_reward)
        if not any(summary.num_episodes for summary in result.summaries):
            raise UsageError(f"all episodes of all players failed; the first: {next(iter(result.errors.values()))}")
        return result

    return asyncio.run(measure())


def show_comparison(result: Comparison) -> None:
    """Print players as columns, then the paired differences."""
    console = Console(highlight=False)
    names = {label: escape(name) for label, name in _short_names([s.name for s in result.summaries]).items()}
    told = [dict(summary_rows(summary)) for summary in result.summaries]
    table = Table("", *names.values(), title=result.env_id, title_justify="left")
    for row in dict.fromkeys(name for rows in told for name in rows):
        table.add_row(escape(row), *(escape(rows.get(row, "")) for rows in told))
    console.print(table)
    for player, error in result.errors.items():
        console.print(f"[red]{escape(player)}[/]: first failure: {escape(error)}")
    if not result.differences:
        return
    title = f"minus {names[result.differences[0].baseline]}; {result.method}"
    heads = ("player", "metric", "difference", "interval", "pairs", "higher", "lower")
    pairs = Table(*heads, title=title, title_justify="left")
    for row in result.differences:
        interval = f"[{row.low:+.3f}, {row.high:+.3f}]"
        counts = map(str, (row.num_pairs, row.num_higher, row.num_lower))
        pairs.add_row(names[row.player], row.metric, f"{row.difference:+.3f}", escape(interval), *counts)
    console.print(pairs)


def show_summary(summary: EvalSummary) -> None:
    """Print an evaluation as a table."""
    table = Table(title=summary.name, show_header=False, title_justify="left")
    for name, value in summary_rows(summary):
        table.add_row(name, value)
    Console(highlight=False).print(table)


def summary_rows(summary: EvalSummary) -> list[tuple[str, str]]:
    """Return an evaluation as (name, text) rows."""
    interval = f"[{summary.success_low:.3f}, {summary.success_high:.3f}]"
    rows = [
        ("episodes", f"{summary.num_episodes}" + (f" (+{summary.num_failed} failed)" if summary.num_failed else "")),
        ("success", f"{summary.success_rate:.3f}  95 % {interval}"),
        ("mean reward", f"{summary.mean_reward:.3f}"),
        ("mean turns", f"{summary.mean_turns:.2f}"),
        ("mean sampled tokens", f"{summary.mean_sampled_tokens:.1f}"),
        ("well-formed calls", f"{summary.format_compliance:.3f}"),
        ("endings", ", ".join(f"{name} {count}" for name, count in summary.stop_reasons.items())),
    ]
    return rows + [(f"reward: {name}", f"{value:.3f}") for name, value in summary.components.items()]


def show_transcript(trajectory: Trajectory, *, console: Console | None = None, title: str = "") -> None:
    """Print a whole episode."""
    screen = console or Console(highlight=False)
    if title:
        screen.rule(escape(title), align="left")
    colours = {"system": "dim", "user": "cyan", "assistant": "green", "tool": "yellow"}
    for message in trajectory.messages:
        for call in message.tool_calls:
            said = call.raw if call.status != "ok" else f"{call.name}({_arguments(call.arguments)})"
            screen.print(f"[green]assistant>[/] [bold]call[/] {escape(said)}")
        content = described_content(message)
        if content or not message.tool_calls:
            name = message.name or message.role
            screen.print(f"[{colours[message.role]}]{escape(name)}>[/] {escape(content)}")


def show_diagnosis() -> None:
    """Print what is installed and what to do about the rest."""
    from agentenv.doctor import as_table, diagnose

    Console(highlight=False).print(as_table(diagnose()))


def show_env_check(env_id: str, *, num_seeds: int, env_kwargs: Mapping[str, object]) -> bool:
    """Print the contract checks of an environment; returns whether all hold."""
    from agentenv.check import check_env

    registration(env_id)
    options: dict[str, Any] = {"num_seeds": num_seeds, "env_kwargs": dict(env_kwargs), "raise_on_failure": False}
    report = check_env(env_id, **options)
    table = Table("promise", "", "detail", title=env_id, title_justify="left")
    for row in report.rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    Console(highlight=False).print(table)
    return report.is_ok


def _short_names(labels: Sequence[str]) -> dict[str, str]:
    """Return, for the heads of columns, the model's name or the last folder; the whole label where two would agree."""
    short = {label: label.rpartition("#")[2].rstrip("/").rpartition("/")[2] for label in labels}
    return {label: name if list(short.values()).count(name) == 1 else label for label, name in short.items()}


def _after_last_turn(trajectory: Trajectory) -> tuple[Any, ...]:
    last = max((i for i, m in enumerate(trajectory.messages) if m.role == "assistant"), default=-1)
    return trajectory.messages[last + 1 :]


def _show_ending(trajectory: Trajectory, console: Console) -> None:
    parts = {**trajectory.reward_components}
    for turn in trajectory.turns:
        for name, value in turn.reward_components.items():
            parts[name] = parts.get(name, 0.0) + value
    told = ", ".join(f"{name} {value:g}" for name, value in parts.items())
    console.print(
        f"[bold]{trajectory.stop_reason.value}[/]  reward {trajectory.reward:g}  ({escape(told) or 'no reward'})"
    )
    if trajectory.error:
        console.print(f"[red]{escape(trajectory.error)}[/]")


def _arguments(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
