"""Writes the report of a run: one HTML page and the learning curve."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from agentenv.errors import StoreError, UsageError, describe
from agentenv.learning_curve import DARK, LIGHT, draw_learning_curve
from agentenv.report_data import Curve, PhaseTime, ReportData, SuccessPoint, curve_of
from agentenv.report_page import Charts, render_page
from agentenv.transcript import TranscriptRow, transcript_of

__all__ = [
    "Curve",
    "PhaseTime",
    "ReportData",
    "SuccessPoint",
    "TranscriptRow",
    "curve_of",
    "transcript_of",
    "write_report",
]


def write_report(folder: str | Path, data: ReportData) -> Path:
    """Write `report.html` and `learning_curve.png`, replacing older ones whole; return the page's path.

    Without matplotlib the page is written without its chart.

    Raises:
        StoreError: the folder cannot be written.
    """
    target = Path(folder)
    try:
        charts = Charts(light=draw_learning_curve(data, theme=LIGHT), dark=draw_learning_curve(data, theme=DARK))
    except UsageError:
        charts = None
    if charts is not None:
        _replace(target / "learning_curve.png", charts.light)
    page = target / "report.html"
    _replace(page, render_page(data, charts=charts).encode("utf-8"))
    return page


def _replace(file: Path, content: bytes) -> None:
    beside = file.with_name(f".{file.name}.tmp")
    try:
        beside.write_bytes(content)
        os.replace(beside, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write {file} ({describe(error)}); free disk space or make the folder writable"
        ) from error
