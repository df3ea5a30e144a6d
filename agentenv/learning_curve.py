"""The chart of a run: success, loss and reward over steps, warm-up and reinforcement learning side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentenv.errors import UsageError
from agentenv.evaluate import wilson_interval
from agentenv.report_data import Curve, ReportData, SuccessPoint

_MAX_POINTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours of a chart."""

    background: str
    ink: str
    muted: str
    grid: str
    sft: str
    rl: str
    target: str


LIGHT = Theme(
    background="#ffffff",
    ink="#1f2430",
    muted="#667085",
    grid="#e6e8ee",
    sft="#c2620a",
    rl="#2459c4",
    target="#17803d",
)
DARK = Theme(
    background="#171a21",
    ink="#e8eaf0",
    muted="#98a1b3",
    grid="#2b303b",
    sft="#f0a04b",
    rl="#7aa7ff",
    target="#5fce85",
)


def draw_learning_curve(data: ReportData, *, theme: Theme = LIGHT) -> bytes:
    """Return the chart as PNG.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError('the chart needs matplotlib; run `pip install "agentenv[train]"`') from None
    phases = _phases(data)
    figure = Figure(figsize=(10.0, 6.4), dpi=150, facecolor=theme.background)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2,
        len(phases),
        height_ratios=(1.55, 1.0),
        width_ratios=(1.0, 2.1) if len(phases) == 2 else (1.0,),
        left=0.075,
        right=0.88,
        top=0.875,
        bottom=0.085,
        hspace=0.14,
        wspace=0.2,
    )
    title = "".join(char if char.isprintable() else " " for char in data.title[:90])
    figure.text(0.075, 0.955, title, parse_math=False, color=theme.ink, fontsize=13.5, fontweight="bold", va="center")
    for column, phase in enumerate(phases):
        upper = figure.add_subplot(grid[0, column])
        lower = figure.add_subplot(grid[1, column], sharex=upper)
        is_last = column == len(phases) - 1
        _draw_success(upper, data, phase=phase, theme=theme, is_first=column == 0, is_last=is_last)
        if phase == "sft":
            _draw_curve(lower, data.sft_loss, colour=theme.sft, theme=theme)
            lower.set_ylabel("loss (nats per token)", color=theme.muted, fontsize=9)
            if len(data.sft_loss):
                lower.set_ylim(bottom=0)
        else:
            _draw_curve(lower, data.rl_reward, colour=theme.rl, theme=theme)
            lower.set_ylabel("mean reward", color=theme.muted, fontsize=9)
        lower.set_xlabel("step", color=theme.muted, fontsize=9)
        _fit_steps(lower, _steps_of(data, phase))
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor=theme.background, metadata={"Software": "agentenv"})
    return out.getvalue()


def _phases(data: ReportData) -> tuple[str, ...]:
    has_sft = len(data.sft_loss) > 0 or any(point.phase == "sft" for point in data.evaluations)
    has_rl = len(data.rl_success) > 0 or len(data.rl_reward) > 0 or any(p.phase == "rl" for p in data.evaluations)
    return (*(("sft",) if has_sft else ()), *(("rl",) if has_rl or not has_sft else ()))


def _draw_success(axes: Any, data: ReportData, *, phase: str, theme: Theme, is_first: bool, is_last: bool) -> None:
    _style(axes, theme)
    colour = theme.sft if phase == "sft" else theme.rl
    axes.set_title(
        "Supervised warm-up" if phase == "sft" else "Reinforcement learning",
        loc="left",
        color=colour,
        fontsize=10.5,
        fontweight="bold",
        pad=7,
    )
    _draw_levels(axes, data, theme=theme, has_names=is_last)
    points = [p for p in data.evaluations if p.phase == phase and p.num_episodes > 0 and np.isfinite(p.success_rate)]
    if phase == "rl" and (len(data.rl_success) or not points):
        _draw_curve(axes, data.rl_success, colour=colour, theme=theme, label="training episodes")
    _draw_points(axes, points, colour=colour, theme=theme)
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.tick_params(labelbottom=False, labelleft=is_first)
    if is_first:
        axes.set_ylabel("success rate", color=theme.muted, fontsize=9)
    if is_last and axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", frameon=False, fontsize=8.5, labelcolor=theme.muted)


def _draw_levels(axes: Any, data: ReportData, *, theme: Theme, has_names: bool) -> None:
    """Draw the target and the demonstrator's level, with their names at the right edge."""
    levels = [(data.target_success, "target", theme.target, (0, (1, 2)))]
    if data.demonstrator_success is not None:
        levels.append((data.demonstrator_success, "demonstrator", theme.muted, (0, (5, 3))))
    levels.sort(key=lambda level: level[0])
    is_tight = len(levels) == 2 and levels[1][0] - levels[0][0] < 0.12
    for index, (level, name, colour, dashes) in enumerate(levels):
        axes.axhline(level, color=colour, linewidth=1.3, linestyle=dashes, zorder=1.5)
        if has_names:
            axes.annotate(
                f"{name}\n{level:.2f}",
                xy=(1.0, level),
                xycoords=axes.get_yaxis_transform(),
                xytext=(7, 0),
                textcoords="offset points",
                va=("top", "bottom")[index] if is_tight else "center",
                color=colour,
                fontsize=9,
            )


def _draw_points(axes: Any, points: Sequence[SuccessPoint], *, colour: str, theme: Theme) -> None:
    """Draw evaluations with their 95 % intervals."""
    if not points:
        return
    rates = np.array([point.success_rate for point in points])
    bounds = np.array(
        [wilson_interval(round(point.success_rate * point.num_episodes), point.num_episodes) for point in points]
    )
    axes.errorbar(
        [point.step for point in points],
        rates,
        yerr=np.clip(np.stack([rates - bounds[:, 0], bounds[:, 1] - rates]), 0, None),
        fmt="o",
        color=colour,
        markersize=6,
        markeredgecolor=theme.background,
        markeredgewidth=1.2,
        elinewidth=1.3,
        capsize=2.5,
        label="evaluation, 95 % interval",
        zorder=4,
    )


def _draw_curve(axes: Any, curve: Curve, *, colour: str, theme: Theme, label: str | None = None) -> None:
    """Draw the values faintly and their running mean strongly."""
    _style(axes, theme)
    if not len(curve):
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", va="center", color=theme.muted)
        return
    steps, values = np.array(curve.steps), np.array(curve.values)
    window = max(1, len(values) // 20)
    smooth = _running_mean(values, window)
    stride = max(1, len(steps) // _MAX_POINTS)
    if window > 1:
        axes.plot(steps[::stride], values[::stride], color=colour, linewidth=0.9, alpha=0.3, zorder=2)
        label = None if label is None else f"{label}, mean of {window} steps"
    axes.plot(steps[::stride], smooth[::stride], color=colour, linewidth=1.9, label=label, zorder=3)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over `window` values around each; over fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    start = np.maximum(0, place - (window - 1) // 2)
    end = np.minimum(len(values), place + window // 2 + 1)
    return (total[end] - total[start]) / (end - start)


def _steps_of(data: ReportData, phase: str) -> list[int]:
    curves = (data.sft_loss,) if phase == "sft" else (data.rl_success, data.rl_reward)
    return [step for curve in curves for step in curve.steps] + [p.step for p in data.evaluations if p.phase == phase]


def _fit_steps(axes: Any, steps: Sequence[int]) -> None:
    if steps:
        margin = max(1.0, max(steps) - min(steps)) * 0.025
        axes.set_xlim(min(steps) - margin, max(steps) + margin)
        axes.locator_params(axis="x", nbins=6, integer=True)
    else:
        axes.set_xticks([])


def _style(axes: Any, theme: Theme) -> None:
    axes.set_facecolor(theme.background)
    axes.grid(visible=True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.tick_params(colors=theme.muted, labelsize=8.5, length=0, pad=5)
