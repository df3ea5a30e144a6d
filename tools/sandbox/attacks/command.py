"""`agentenv check sandbox`: the attacks against the back end in use, as a table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from agentenv.errors import UsageError
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.sandbox.attacks.attack import KINDS
from agentenv.tools.sandbox.attacks.canaries import planted
from agentenv.tools.sandbox.attacks.suite import NEVER_BARE, Result, attacks_of, run_suite
from agentenv.tools.sandbox.choice import chosen, close_sandboxes

_STYLES = {"held": "green", "FAILED": "bold red", "allowed": "yellow", "skipped": "dim"}


def show_sandbox_check(
    *,
    backend: str,
    only: Sequence[str] = (),
    url: str | None = None,
    is_reduced: bool = False,
    as_markdown: bool = False,
) -> bool:
    """Run the attacks and print what held; True when everything that must hold did.

    Args:
        backend: name of a back end, or `auto`.
        only: classes of attacks; none means all.
        url: of a back end that needs one.
        is_reduced: a back end of isolation `reduced` will do.
        as_markdown: print the table of the documentation, one row for a class, instead of one for an attack.

    Raises:
        SandboxUnavailable: the back end does not work here.
        UsageError: there is no such back end or class, or the back end isolates nothing.
    """
    if backend == "none":
        raise UsageError(f"the back end none isolates nothing. {NEVER_BARE}")
    settings = SandboxSettings(backend=backend, url=url, min_isolation="reduced" if is_reduced else "strong")
    name, isolation, results = asyncio.run(_results(settings, only))
    if as_markdown:
        Console(soft_wrap=True, markup=False, highlight=False).print(markdown(name, isolation, results))
    else:
        _print_table(name, isolation, results)
    return not any(result.status == "FAILED" for result in results)


async def _results(settings: SandboxSettings, only: Sequence[str]) -> tuple[str, str, list[Result]]:
    attacks = attacks_of(only)
    with planted() as canaries:
        try:
            opened = (await chosen(settings)).backend
            results = [result async for result in run_suite(opened, canaries, attacks)]
            return opened.name, opened.isolation, results
        finally:
            await close_sandboxes()


def _print_table(name: str, isolation: str, results: Sequence[Result]) -> None:
    table = Table(title=f"{name}, isolation {isolation}", title_justify="left")
    for heading in ("class", "attack", "result", "seconds"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left")
    for result in results:
        style = _STYLES[result.status]
        told = f"{result.attack.name}: {result.detail}" if result.detail else result.attack.name
        table.add_row(result.attack.kind, told, f"[{style}]{result.status}[/]", f"{result.took_s:.2f}")
    console = Console()
    console.print(table)
    console.print(summary(name, results))


def summary(name: str, results: Sequence[Result]) -> str:
    """Return one sentence on how many held."""
    counts = {status: sum(result.status == status for result in results) for status in _STYLES}
    more = "".join(f", {counts[status]} {status}" for status in ("FAILED", "allowed", "skipped") if counts[status])
    return f"{name} held {counts['held']} of {len(results)} attacks{more}"


def markdown(name: str, isolation: str, results: Sequence[Result]) -> str:
    """Return the page of the documentation: a row for each class, then every attack."""
    lines = [
        "# Attacks on the sandbox",
        "",
        "<!-- Written by `agentenv check sandbox --markdown`. Change the attacks, not this page. -->",
        "",
        "`agentenv check sandbox` runs these attacks against the back end in use. Each is judged from outside, and",
        'after each the next call must work. "It" is the code inside; the class `still works` holds honest programs.',
        "",
        f"Back end `{name}`, isolation `{isolation}`: {summary(name, results)}.",
        "",
        "| class | attacks | held | seconds |",
        "|---|---|---|---|",
    ]
    for kind in KINDS:
        own = [result for result in results if result.attack.kind == kind]
        if own:
            held = sum(result.status == "held" for result in own)
            lines.append(f"| {kind} | {len(own)} | {held} | {sum(result.took_s for result in own):.1f} |")
    lines += ["", "| class | it | isolation `reduced` |", "|---|---|---|"]
    lines += [_row(result) for result in results]
    return "\n".join(lines)


def _row(result: Result) -> str:
    attack = result.attack
    reduced = f"not promised: no {attack.needs}" if attack.needs else "must hold"
    return f"| {attack.kind} | {attack.name} | {reduced} |"
