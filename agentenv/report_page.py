"""The report as one HTML page that needs nothing beside itself; every text in it is escaped."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentenv.evaluate import EvalSummary
from agentenv.messages import Message
from agentenv.report_data import PhaseTime, ReportData
from agentenv.report_style import CSS
from agentenv.transcript import TranscriptRow, call_text
from agentenv.vision import described_content

_MAX_TEXT = 20_000
# no scripts and no load from outside: a model's text could do nothing even if it came through unescaped
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charts:
    """The learning curve as PNG, for light and for dark pages."""

    light: bytes
    dark: bytes


def render_page(data: ReportData, *, charts: Charts | None) -> str:
    """Return the page; without charts it says so in their place."""
    sections = (
        _tiles(data),
        _section("Learning curve", _picture(charts)),
        _section("Evaluation", _eval_table(data.evals)),
        _section("Wall-clock time", _phase_table(data.phases)),
        _section("Notes", "".join(f"<p>{_text(note)}</p>" for note in data.notes)),
        _section(
            "Episodes", "".join(_transcript(row, is_open=index == 0) for index, row in enumerate(data.transcripts))
        ),
        _section("Set-up", _facts(data.facts)),
        _section(
            "Configuration", f"<details><summary>Show all keys</summary><pre>{_text(data.config_yaml)}</pre></details>"
        )
        if data.config_yaml
        else "",
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_text(data.title)}</title><style>{CSS}</style></head><body><main>"
        f"<header><h1>{_text(data.title)}</h1><p>{_text(data.env_id)} <i>·</i> {_text(data.model)} <i>·</i> "
        f"{_text(data.finished_at)}</p></header>{''.join(sections)}</main></body></html>\n"
    )


def _tiles(data: ReportData) -> str:
    tiles: list[str] = []
    if data.evals:
        first, last = data.evals[0], data.evals[-1]
        if len(data.evals) > 1:
            tiles.append(_tile("Success before", _percent(first.success_rate), _interval(first)))
        tiles.append(_tile("Success after", _percent(last.success_rate), _interval(last), kind="strong"))
        tiles.append(_tile("Target", _percent(data.target_success), *_verdict(data.target_success, last=last)))
    if data.demonstrator_success is not None:
        tiles.append(_tile("Demonstrator", _percent(data.demonstrator_success), "ceiling of imitation"))
    if data.phases:
        tiles.append(_tile("Wall clock", _duration(sum(phase.seconds for phase in data.phases)), "all phases"))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _verdict(target: float, *, last: EvalSummary) -> tuple[str, str]:
    if last.success_low >= target:
        return "clearly reached", "good"
    if last.success_rate >= target:
        return "reached", "good"
    return "not reached", "bad"


def _tile(name: str, value: str, below: str, kind: str = "") -> str:
    texts = f"<span>{_text(name)}</span><strong>{_text(value)}</strong><em>{_text(below)}</em>"
    return f'<div class="tile {kind}">{texts}</div>'


def _picture(charts: Charts | None) -> str:
    if charts is None:
        return '<p>The chart was left out because matplotlib is not installed: pip install "agentenv[train]".</p>'
    light, dark = (base64.b64encode(png).decode("ascii") for png in (charts.light, charts.dark))
    return (
        f'<picture class="chart"><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
        f'<img alt="Success rate, loss and reward over training steps" src="data:image/png;base64,{light}"></picture>'
    )


def _eval_table(evals: Sequence[EvalSummary]) -> str:
    if not evals:
        return ""
    heads = (
        "",
        "Success",
        "95 % interval",
        "Reward",
        "Turns",
        "Tokens",
        "Parsed calls",
        "Episodes",
        "Failed",
        "Endings",
    )
    rows = [
        (
            row.name,
            _percent(row.success_rate),
            _interval(row),
            _number(row.mean_reward, digits=3),
            _number(row.mean_turns, digits=2),
            _number(row.mean_sampled_tokens, digits=1),
            _percent(row.format_compliance),
            f"{row.num_episodes:,}",
            f"{row.num_failed:,}",
            _endings(row.stop_reasons),
        )
        for row in evals
    ]
    return _table(heads, rows, kind="wordy")


def _phase_table(phases: Sequence[PhaseTime]) -> str:
    if not phases:
        return ""
    total = sum(phase.seconds for phase in phases)
    rows = [
        (
            phase.name,
            _duration(phase.seconds),
            f"{phase.seconds / total:.0%}" if total > 0 else "",
            f"{phase.num_steps:,}" if phase.num_steps else "",
            f"{phase.num_tokens:,}" if phase.num_tokens else "",
            f"{phase.num_tokens / phase.seconds:,.0f}" if phase.num_tokens and phase.seconds > 0 else "",
        )
        for phase in phases
    ]
    return _table(
        ("", "Time", "Share", "Steps", "Tokens", "Tokens / s"), [*rows, ("Total", _duration(total), "", "", "", "")]
    )


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    return f"<dl>{items}</dl>" if items else ""


def _transcript(row: TranscriptRow, *, is_open: bool) -> str:
    chips = [
        f'<b class="chip {"good" if row.reward > 0 else ""}">reward {row.reward:.3g}</b>',
        f'<b class="chip">{_text(row.stop_reason)}</b>',
        f'<b class="chip">{row.num_sampled_tokens} tokens</b>',
        f'<b class="chip">{_text(row.phase)}, step {row.step}</b>',
    ]
    messages = "".join(
        _message(message, reward=row.reward_of_message(index)) for index, message in enumerate(row.messages)
    )
    earned = ", ".join(f"{name} {value:+.3g}" for name, value in row.reward_components.items())
    tail = f'<p class="earned">At the end: {_text(earned)}</p>' if earned else ""
    tail += f'<p class="earned bad">{_text(row.error)}</p>' if row.error else ""
    return (
        f'<details class="episode"{" open" if is_open else ""}><summary><span>{_text(row.title)}</span>{"".join(chips)}'
        f"</summary>{messages}{tail}</details>"
    )


def _message(message: Message, *, reward: float | None) -> str:
    head = message.role if not message.name else f"{message.role} · {message.name}"
    earned = f'<b class="chip {"good" if reward > 0 else ""}">{reward:+.3g}</b>' if reward else ""
    parts = [f'<pre class="thought">{_text(message.reasoning)}</pre>'] if message.reasoning else []
    content = described_content(message)
    parts += [f"<pre>{_text(content)}</pre>"] if content else []
    for call in message.tool_calls:
        if call.status == "ok":
            parts.append(f'<pre class="call">{_text(call_text(call.name, call.arguments))}</pre>')
        else:
            parts.append(f'<pre class="call wrong">{_text(call.status)}: {_text(call.raw)}</pre>')
    return f'<div class="message {message.role}"><div class="role">{_text(head)}{earned}</div>{"".join(parts)}</div>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>" if body else ""


def _text(text: str) -> str:
    """Escape text; control characters become their visible pictures, very long text is cut with its length told."""
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]}\n[... {len(text) - _MAX_TEXT:,} more characters]"
    visible = "".join(char if char >= " " or char in "\n\t" else chr(0x2400 + ord(char)) for char in text)
    return html.escape(visible.encode("utf-8", "backslashreplace").decode("utf-8"))


def _number(value: float, *, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "–"


def _interval(summary: EvalSummary) -> str:
    return f"{100 * summary.success_low:.1f} – {100 * summary.success_high:.1f} %"


def _endings(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(reasons.items(), key=lambda item: -item[1]))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
