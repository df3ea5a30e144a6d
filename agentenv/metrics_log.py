"""The file of metrics: one JSON object per line, complete up to the last finished write."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentenv.errors import StoreError, describe

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsLine:
    """One line of the file.

    Attributes:
        step: training step.
        time_s: wall-clock seconds since 1970, when the line was written.
        metrics: name -> value.
    """

    step: int
    time_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)


class MetricsLog:
    """Appends metrics; every line reaches the operating system before `write` returns.

    Numbers that JSON does not know are written as the texts "nan", "inf" and "-inf", so that every reader of JSON lines
    can read the file. A line that a killed process left torn is removed on opening.

    Args:
        path: the file; its folder must exist.

    Raises:
        StoreError: the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115 - closed by close()
            _mend_end(self._file)
        except OSError as error:
            raise StoreError(f"cannot open {self.path} ({describe(error)})") from error

    def write(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Append one line.

        Raises:
            StoreError: the line could not be written; the lines before it are intact.
        """
        values = {name: _plain(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, "time_s": round(time.time(), 3), "metrics": values}, allow_nan=False)
        before = None
        try:
            before = os.fstat(self._file.fileno()).st_size
            if not self.path.exists():
                raise FileNotFoundError("the file was removed while it was written")
            _write_all(self._file.fileno(), line.encode() + b"\n")
        except (OSError, ValueError) as error:
            if before is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file.fileno(), before)
            raise StoreError(
                f"cannot append to {self.path} ({describe(error)}). The lines before are intact. Free disk space or "
                "restore the folder, then resume."
            ) from error

    def forget(self, *, after_step: int) -> None:
        """Cut off the lines from the first one whose step is larger: a resumed run writes them again.

        Raises:
            StoreError: the file cannot be read or cut.
        """
        keep = 0
        try:
            for line in self.path.read_bytes().splitlines(keepends=True):
                if int(json.loads(line)["step"]) > after_step:
                    os.ftruncate(self._file.fileno(), keep)
                    break
                keep += len(line)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"cannot cut {self.path} back to step {after_step} ({describe(error)})") from error

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()


def read_metrics(path: str | Path) -> Iterator[MetricsLine]:
    """Yield the lines of a file that may still be written; a torn last line is left out.

    Raises:
        StoreError: the file is missing, or a line before the last is damaged; names the line.
    """
    file = Path(path)
    try:
        text = file.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {file} ({describe(error)})") from error
    lines = text.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _line(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                return
            raise StoreError(f"{file}, line {number}: not a line of metrics ({describe(error)}); remove it") from error


def _line(value: Mapping[str, Any]) -> MetricsLine:
    metrics = {name: _NOT_FINITE[one] if isinstance(one, str) else float(one) for name, one in value["metrics"].items()}
    return MetricsLine(step=int(value["step"]), time_s=float(value["time_s"]), metrics=metrics)


def _plain(value: float) -> float | str:
    number = float(value)
    if math.isfinite(number):
        return number
    return "nan" if math.isnan(number) else ("inf" if number > 0 else "-inf")


def _mend_end(file: Any) -> None:
    """Cut off a last line without its newline: it was never finished."""
    size = file.seek(0, os.SEEK_END)
    position, tail = size, b""
    while position > 0 and b"\n" not in tail:
        start = max(0, position - 65536)
        file.seek(start)
        tail = file.read(position - start)
        position = start
    keep = position + tail.rfind(b"\n") + 1
    if keep < size:
        file.truncate(keep)
    file.seek(0, os.SEEK_END)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write everything; a full disk may take a part first."""
    while data:
        data = data[os.write(descriptor, data) :]
