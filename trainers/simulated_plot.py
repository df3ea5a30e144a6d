"""The picture of `docs/async.md`: speedup and idle shares over staleness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = ("#b8c4de", "#7f9bd1", "#2459c4", "#12306f")
_INK, _MUTED, _GRID, _TRAINER, _ENGINE = "#1f2430", "#667085", "#e6e8ee", "#c2620a", "#17803d"


def draw(
    path: Path,
    *,
    staleness: Sequence[int],
    speedups: Mapping[float, Sequence[float]],
    trainer_idle: Sequence[float],
    engine_idle: Sequence[float],
    target: float,
) -> None:
    """Write the picture as PNG.

    Args:
        path: file to write; its folder must exist.
        staleness: S of every run, the same for all curves.
        speedups: sigma -> wall-clock of S = 0 over that of each S.
        trainer_idle: share of a step per S, for the middle workload.
        engine_idle: the same of the engine.
        target: speedup that is drawn as a line.
    """
    figure = Figure(figsize=(9.5, 3.9), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    places = range(len(staleness))
    for (sigma, values), colour in zip(speedups.items(), _COLOURS, strict=False):
        left.plot(places, values, marker="o", markersize=4, color=colour, label=f"sigma {sigma:g}")
    left.axhline(target, color=_MUTED, linewidth=1, linestyle="--")
    left.annotate(f"{target:g}x", (0, target), (0, 3), textcoords="offset points", color=_MUTED, fontsize=9)
    left.set_ylim(bottom=0)
    left.set_ylabel("times as fast as synchronous")
    left.set_title("Wall-clock", loc="left", fontsize=11, color=_INK)
    left.legend(frameon=False, fontsize=9, title="spread of lengths", title_fontsize=9)
    for values, colour, name in ((trainer_idle, _TRAINER, "trainer waits"), (engine_idle, _ENGINE, "engine is empty")):
        right.plot(places, [100 * value for value in values], marker="o", markersize=4, color=colour, label=name)
    right.set_ylim(bottom=0)
    right.set_ylabel("% of a step")
    right.set_title("Idle, at sigma 1", loc="left", fontsize=11, color=_INK)
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        _dress(axes, staleness)
    FigureCanvasAgg(figure)
    figure.savefig(path, metadata={"Software": None})


def _dress(axes: Any, staleness: Sequence[int]) -> None:
    axes.set_xticks(range(len(staleness)), [str(value) for value in staleness])
    axes.set_xlabel("max_staleness", color=_INK)
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
