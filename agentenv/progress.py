"""Shows how far a run is: a live display on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """Something that shows progress; used as a context manager. Showing never raises: a closed terminal is no fault."""

    def phase(self, name: str, *, total: int | None = None) -> None:
        """Begin the next part of the run; the one before is finished.

        Args:
            name: shown in front.
            total: steps that it will take, or None where that is unknown.
        """
        ...

    def advance(self, steps: int = 1, **fields: float) -> None:
        """Count steps of the current phase and show named numbers; those not given keep their last value."""
        ...

    def message(self, text: str) -> None:
        """Show a line that stays."""
        ...

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SilentProgress:
    """Shows nothing."""

    def phase(self, name: str, *, total: int | None = None) -> None:
        """Ignore it."""

    def advance(self, steps: int = 1, **fields: float) -> None:
        """Ignore it."""

    def message(self, text: str) -> None:
        """Ignore it."""

    def __enter__(self) -> SilentProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class PlainProgress:
    """Prints a line at the start and end of a phase, and at most one per `interval_s` between.

    Args:
        stream: where to.
        interval_s: seconds between lines.
        clock: seconds that never go back.
    """

    def __init__(
        self, stream: IO[str], *, interval_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = Unbreakable(stream)
        self._interval_s = interval_s
        self._clock = clock
        self._name = ""
        self._total: int | None = None
        self._done = 0
        self._fields: dict[str, float] = {}
        self._started = self._printed = clock()

    def phase(self, name: str, *, total: int | None = None) -> None:
        """Print the end of the phase before, and the name of the new one."""
        self._end()
        self._name, self._total, self._done, self._fields = name, total, 0, {}
        self._started = self._printed = self._clock()
        self.message(f"{name}: started" + (f", {total:,} steps" if total else ""))

    def advance(self, steps: int = 1, **fields: float) -> None:
        """Count, and print a line when it is time."""
        self._done += steps
        self._fields.update(fields)
        if self._clock() - self._printed >= self._interval_s:
            self._printed = self._clock()
            self.message(self._line())

    def message(self, text: str) -> None:
        """Print a line."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(word="finished" if kind is None else "stopped")

    def _line(self) -> str:
        spent = self._clock() - self._started
        count = f"{self._done:,}/{self._total:,}" if self._total else f"{self._done:,}"
        parts = [f"{self._name}: {count}", *_field_texts(self._fields), duration_text(spent)]
        if self._total and 0 < self._done < self._total:
            parts.append(f"{duration_text(spent / self._done * (self._total - self._done))} left")
        return "  ".join(parts)

    def _end(self, *, word: str = "finished") -> None:
        if self._name:
            spent = duration_text(self._clock() - self._started)
            parts = [f"{self._name}: {word} after {self._done:,} steps, {spent}", *_field_texts(self._fields)]
            self.message("  ".join(parts))
        self._name = ""


class RichProgress:
    """A live display with one bar per phase.

    Args:
        console: of rich; its stream is wrapped so that a terminal that goes away does no harm.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._console = console
        self._file = console.file
        console.file = cast(Any, Unbreakable(console.file))
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}", markup=False, style="cyan"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=4,
        )
        self._task: Any = None
        self._fields: dict[str, float] = {}

    def phase(self, name: str, *, total: int | None = None) -> None:
        """Finish the bar before and add the next."""
        self._end()
        self._fields = {}
        self._task = self._bars.add_task(name, total=total, shown="")

    def advance(self, steps: int = 1, **fields: float) -> None:
        """Move the bar and show the numbers."""
        if self._task is not None:
            self._fields.update(fields)
            self._bars.update(self._task, advance=steps, shown="  ".join(_field_texts(self._fields)))

    def message(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end()
        self._bars.stop()
        self._console.file = self._file

    def _end(self) -> None:
        """Fill the bar and stop its clock, also where the phase ended early or its length was unknown."""
        if self._task is not None:
            done = self._bars.tasks[self._bars.task_ids.index(self._task)].completed
            self._bars.update(self._task, total=max(done, 1), completed=max(done, 1))
            self._bars.stop_task(self._task)
        self._task = None


def open_progress(console: Console) -> RichProgress | PlainProgress:
    """Return the display that suits a console: live on a terminal, lines elsewhere."""
    return RichProgress(console) if console.is_terminal else PlainProgress(console.file)


def duration_text(seconds: float) -> str:
    """Return e.g. `8 s`, `2:05` or `1:02:05`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _field_texts(fields: dict[str, float]) -> list[str]:
    return [
        f"{name.removesuffix('_per_s')} {_number(value)}{'/s' * name.endswith('_per_s')}"
        for name, value in fields.items()
    ]


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value / 1000:.1f}k" if abs(value) < 1e6 else f"{value / 1e6:.1f}M"
    return str(value) if isinstance(value, int) else (f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}")


class Unbreakable:
    """A stream whose writes never raise: a run outlives the terminal, or the reader, that it was started from."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or lose the text."""
        # ValueError covers a closed stream and characters that its encoding lacks
        with contextlib.suppress(OSError, ValueError), self._discarding():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or lose the text."""
        with contextlib.suppress(OSError, ValueError), self._discarding():
            self._stream.flush()

    @contextlib.contextmanager
    def _discarding(self) -> Iterator[None]:
        """Once nobody reads a pipe, write into nothing: what is still buffered would fail when the program ends."""
        try:
            yield
        except BrokenPipeError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
