"""Progress is shown live, in lines or not at all, and a terminal that goes away stops nothing."""

from __future__ import annotations

import io
import math
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from agentenv.progress import PlainProgress, Progress, RichProgress, SilentProgress, duration_text, open_progress

ROOT = str(Path(__file__).resolve().parents[1])


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def screen() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=150, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_progress_prints_a_line_per_interval_with_numbers_and_the_time_left():
    clock, out = Clock(), io.StringIO()
    with PlainProgress(out, interval_s=10, clock=clock) as progress:
        progress.phase("reinforcement learning", total=100)
        for _ in range(25):
            clock.now += 1
            progress.advance(1, success=0.5, reward=-0.25, tokens_per_s=12_345.0)

    assert out.getvalue().splitlines() == [
        "reinforcement learning: started, 100 steps",
        # 10 steps took 10 s, so 90 more take 90 s
        "reinforcement learning: 10/100  success 0.500  reward -0.250  tokens 12.3k/s  10 s  1:30 left",
        "reinforcement learning: 20/100  success 0.500  reward -0.250  tokens 12.3k/s  20 s  1:20 left",
        "reinforcement learning: finished after 25 steps, 25 s  success 0.500  reward -0.250  tokens 12.3k/s",
    ]


def test_plain_progress_keeps_the_numbers_of_a_phase_apart_and_says_when_it_was_stopped():
    clock, out = Clock(), io.StringIO()

    def interrupted() -> None:
        with PlainProgress(out, clock=clock) as progress:
            progress.phase("warm start")
            progress.advance(3, loss=math.nan)
            progress.phase("evaluation", total=None)
            progress.message("half way")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert out.getvalue().splitlines() == [
        "warm start: started",
        "warm start: finished after 3 steps, 0 s  loss nan",
        "evaluation: started",
        "half way",
        "evaluation: stopped after 0 steps, 0 s",
    ]


def test_rich_progress_shows_phases_counts_and_numbers():
    console = screen()
    with RichProgress(console) as progress:
        progress.phase("demonstrations")
        progress.advance(40)
        progress.phase("reinforcement learning", total=30)
        progress.advance(12, success=0.625)
        progress.message("checkpoint [bold]12[/]")
        progress.advance(18)

    text = shown(console)
    for part in (
        "demonstrations",
        "40/40",
        "reinforcement learning",
        "30/30",
        "success 0.625",
        "checkpoint [bold]12[/]",
    ):
        assert part in text


def test_a_phase_that_ends_early_is_shown_as_ended_and_a_stopped_one_as_it_stood():
    console = screen()
    with RichProgress(console) as progress:
        progress.phase("a", total=30)
        progress.advance(12)
        progress.phase("b", total=9)
    assert "12/12" in shown(console)

    console = screen()

    def interrupted() -> None:
        with RichProgress(console) as progress:
            progress.phase("a", total=30)
            progress.advance(12)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "12/30" in shown(console)
    assert "12/12" not in shown(console)


def test_the_console_gets_its_own_stream_back():
    console = screen()
    stream = console.file
    with RichProgress(console):
        assert console.file is not stream
    assert console.file is stream


def test_the_display_suits_the_console():
    assert isinstance(open_progress(screen()), RichProgress)
    assert isinstance(open_progress(Console(file=io.StringIO())), PlainProgress)


@pytest.mark.parametrize("make", [SilentProgress, lambda: PlainProgress(io.StringIO()), lambda: RichProgress(screen())])
def test_every_display_takes_the_same_calls_in_any_order(make):
    display: Progress = make()
    with display as progress:
        progress.advance()
        progress.message("before any phase")
        progress.phase("a", total=0)
        progress.advance(2, loss=1e9, steps_left=3)
        progress.advance(0)
        progress.phase("b")


def test_a_closed_stream_is_no_fault():
    out = io.StringIO()
    progress = PlainProgress(out, interval_s=0)
    out.close()
    progress.phase("a")
    progress.advance()
    progress.message("into nothing")


@pytest.mark.fault("terminal goes away", then="the work goes on", metric="none: nothing is lost")
@pytest.mark.parametrize("kind", ["PlainProgress(console.file, interval_s=0)", "RichProgress(console)"])
def test_a_run_outlives_the_terminal_it_was_started_from(tmp_path, kind):
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from rich.console import Console\n"
        "from agentenv.progress import PlainProgress, RichProgress\n"
        "console = Console(force_terminal=True)\n"
        f"with {kind} as progress:\n"
        "    progress.phase('a', total=100)\n"
        "    progress.advance(1)\n"
        "    sys.stdin.readline()\n"  # until the test has closed the terminal
        "    for _ in range(6): progress.advance(1, loss=0.5); progress.message('x'); time.sleep(0.1)\n"
        "open(sys.argv[2], 'w').write('done')\n"
    )
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program, ROOT, str(tmp_path / "done")],
        stdin=subprocess.PIPE,
        stdout=side,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(side)
    assert os.read(terminal, 1000)
    os.close(terminal)
    _, errors = process.communicate("\n", timeout=60)

    assert (tmp_path / "done").read_text() == "done"
    assert "Traceback" not in errors


def test_durations_read_like_a_clock():
    assert [duration_text(s) for s in (0.4, 59.4, 125, 3725, -3)] == ["0 s", "59 s", "2:05", "1:02:05", "0 s"]


def test_importing_progress_does_not_import_rich():
    program = "import sys; sys.path.insert(0, sys.argv[1]); import agentenv.progress; print('rich' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program, ROOT], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "False"
