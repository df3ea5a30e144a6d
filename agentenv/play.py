"""What the terminal commands show: a played episode, an evaluation, the catalogue, the state of the installation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentenv.agent.human import HumanAgent, Left
from agentenv.agent.policy import PolicyAgent
from agentenv.agent.protocol import Agent
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import ScriptedEngine
from agentenv.episode import EpisodeSpec, Limits, Sampling
from agentenv.errors import UsageError
from agentenv.evaluate import EvalSummary, evaluate, evaluation_groups
from agentenv.registry import registered, registration
from agentenv.renderer import Renderer
from agentenv.runner import Runner, RunnerConfig
from agentenv.trajectory import Trajectory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Who = Literal["human", "oracle", "demonstrate", "random", "engine"]

# Scripted policies speak in bytes, so budgets in tokens are wide; a person may think for a day.
_WIDE = Limits(
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
    if who == "engine":
        if model is None:
            raise UsageError("--policy engine needs --model FOLDER_OR_HUB_ID")
        from agentenv.engine.hf import HFEngine
        from agentenv.tokenizer import load_tokenizer

        renderer = Renderer(load_tokenizer(model))
        engine = HFEngine.from_pretrained(model)
        try:
            yield Runner(engine=engine, renderer=renderer, sampling=Sampling(temperature=temperature))
        finally:
            await engine.close()
        return
    screen = console or Console()
    agent: Agent = (
        HumanAgent(ask=lambda text: screen.input(f"[bold cyan]{text}[/]"), show=lambda text: screen.print(escape(text)))
        if who == "human"
        else PolicyAgent(who)
    )
    renderer = Renderer(byte_tokenizer(), family="qwen3")
    config = RunnerConfig(limits=_WIDE, max_tokens=10**9, max_retries=0)
    yield Runner(engine=ScriptedEngine([()]), renderer=renderer, agent=agent, config=config)


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
            console.print(escape(f"{message.name or message.role}> {message.content}"))
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
        if message.content or not message.tool_calls:
            name = message.name or message.role
            screen.print(f"[{colours[message.role]}]{escape(name)}>[/] {escape(message.content)}")


def show_catalogue() -> None:
    """Print the registered environments."""
    table = Table("environment", "task", title="Environments", title_justify="left")
    for entry in registered():
        table.add_row(entry.env_id, entry.description)
    Console(highlight=False).print(table)


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
