"""The report says what happened, shows what was said, and lets nothing that a model wrote act in the page."""

from __future__ import annotations

import base64
import dataclasses
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from agentenv.errors import StoreError
from agentenv.evaluate import EvalSummary, wilson_interval
from agentenv.learning_curve import LIGHT, draw_learning_curve
from agentenv.messages import Message, ToolCall, malformed_call
from agentenv.metrics_log import MetricsLine
from agentenv.report import Curve, PhaseTime, ReportData, SuccessPoint, curve_of, transcript_of, write_report
from agentenv.trajectory import StopReason, Trajectory, Turn
from agentenv.transcript import TranscriptRow

ROOT = str(Path(__file__).resolve().parents[1])
VOID = {"meta", "img", "source"}


class Page(HTMLParser):
    """Reads a page and checks that every element is closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open[-1:] == ["td"]:
            self.cells.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def summary(name: str, *, num_solved: int, num_episodes: int = 100) -> EvalSummary:
    low, high = wilson_interval(num_solved, num_episodes)
    return EvalSummary(
        name=name,
        num_episodes=num_episodes,
        num_failed=2,
        success_rate=num_solved / num_episodes,
        success_low=low,
        success_high=high,
        mean_reward=0.75,
        mean_turns=2.5,
        mean_sampled_tokens=31.25,
        format_compliance=0.999,
        stop_reasons={"max_turns": 10, "tool_stopped": 90},
        components={},
    )


def transcript(content: str) -> TranscriptRow:
    call = ToolCall(call_id="c", name="guess", arguments={"number": 7, "why": content})
    broken = malformed_call(call_id="d", status="invalid_json", raw=content)
    return TranscriptRow(
        title=content,
        phase="rl",
        step=5,
        messages=(
            Message(role="user", content=content),
            Message(role="assistant", content=content, reasoning=content, tool_calls=(call, broken)),
            Message(role="tool", content=content, name=content),
        ),
        turn_rewards=(0.25,),
        reward=1.25,
        reward_components={content: 1.0},
        stop_reason="tool_stopped",
        num_sampled_tokens=12,
        error=content,
    )


def report(**changes: object) -> ReportData:
    data = ReportData(
        title="GuessNumber",
        env_id="agentenv/GuessNumber-v0",
        model="tiny",
        finished_at="2025-01-01 12:00",
        evals=(summary("before", num_solved=10), summary("after", num_solved=97)),
        phases=(
            PhaseTime(name="warm-up", seconds=30.0),
            PhaseTime(name="rl", seconds=90.0, num_steps=9, num_tokens=900),
        ),
        sft_loss=Curve(steps=(0, 1, 2), values=(3.0, 2.0, 1.0)),
        rl_success=Curve(steps=(0, 1, 2), values=(0.5, 0.6, 0.7)),
        rl_reward=Curve(steps=(0, 1, 2), values=(0.5, 0.6, 0.7)),
        evaluations=(SuccessPoint(phase="rl", step=2, success_rate=0.7, num_episodes=50),),
        demonstrator_success=0.6,
        config_yaml="seed: 3\n",
        transcripts=(transcript("hello"),),
        facts={"torch": "2.6"},
        notes=("Same secrets as in training.",),
    )
    return dataclasses.replace(data, **changes)  # type: ignore[arg-type]


def pixels(png: bytes) -> np.ndarray:
    import io

    from matplotlib.image import imread

    return np.round(imread(io.BytesIO(png))[..., :3] * 255).astype(int)


def has_colour(png: bytes, colour: str) -> np.ndarray:
    """bool[height, width]"""
    wanted = np.array([int(colour[index : index + 2], 16) for index in (1, 3, 5)])
    return np.abs(pixels(png) - wanted).max(axis=-1) <= 2


def num_pixels(png: bytes, colour: str) -> int:
    return int(has_colour(png, colour).sum())


def test_the_page_holds_the_numbers_of_both_evaluations(tmp_path):
    page = Page(write_report(tmp_path, report()).read_text())

    # Wilson for 10 of 100: centre (0.1 + 0.0192)/1.0384 = 0.1148, half width 0.0596
    assert page.cells[:10] == [
        "before",
        "10.0 %",
        "5.5 – 17.4 %",
        "0.750",
        "2.50",
        "31.2",
        "99.9 %",
        "100",
        "2",
        "tool_stopped 90, max_turns 10",
    ]
    assert "97.0 %" in page.cells
    assert page.cells[page.cells.index("rl") :][:6] == ["rl", "1 min 30 s", "75%", "9", "900", "10"]
    assert "2 min 00 s" in page.cells
    assert "Same secrets as in training." in page.text
    assert "seed: 3" in page.text


@pytest.mark.parametrize(
    ("target", "verdict"), [(0.95, "reached"), (0.90, "clearly reached"), (0.98, "not reached"), (0.97, "reached")]
)
def test_the_verdict_looks_at_the_interval(tmp_path, target, verdict):
    # 97 of 100: interval 0.915 to 0.990
    text = write_report(tmp_path, report(target_success=target)).read_text()
    assert f"<em>{verdict}</em>" in text


def test_the_page_needs_nothing_from_outside_and_forbids_scripts(tmp_path):
    text = write_report(tmp_path, report()).read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    links = [value or "" for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert len(links) == 2
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes


HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\"' &amp; \x1b[31m\x00 \ud800 \u202e"


def test_whatever_a_model_writes_stays_text(tmp_path):
    data = report(
        transcripts=(transcript(HOSTILE),),
        title=HOSTILE,
        config_yaml=HOSTILE,
        notes=(HOSTILE,),
        facts={HOSTILE: HOSTILE},
    )
    page = Page(write_report(tmp_path, data).read_text(encoding="utf-8"))

    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>\"' &amp; ␛[31m␀ \\ud800" in page.text


def test_an_episode_shows_roles_calls_malformed_calls_rewards_and_its_end(tmp_path):
    text = Page(write_report(tmp_path, report()).read_text()).text
    for part in ("user", "assistant", "tool · hello", 'guess(number=7, why="hello")', "invalid_json: hello", "+0.25"):
        assert part in text
    assert "reward 1.25" in text
    assert "At the end: hello +1" in text
    assert "tool_stopped" in text


def test_very_long_text_is_cut_and_says_how_much(tmp_path):
    row = dataclasses.replace(transcript("x"), messages=(Message(role="user", content="y" * 50_000),))
    text = write_report(tmp_path, report(transcripts=(row,))).read_text()
    assert "[... 30,000 more characters]" in text
    assert "y" * 20_001 not in text


def test_an_empty_report_and_one_without_scored_episodes_can_be_written(tmp_path):
    empty = ReportData(title="t", env_id="e", model="m", finished_at="now")
    Page(write_report(tmp_path, empty).read_text())

    nothing = dataclasses.replace(
        summary("after", num_solved=0), num_episodes=0, success_rate=math.nan, mean_reward=math.nan
    )
    page = Page(write_report(tmp_path, report(evals=(nothing,))).read_text())
    assert page.cells[1] == "–"


def test_the_chart_draws_the_target_the_warm_up_and_the_policy_in_their_colours(tmp_path):
    write_report(tmp_path, report())
    png = (tmp_path / "learning_curve.png").read_bytes()

    assert pixels(png).shape == (960, 1500, 3)
    for colour in (LIGHT.target, LIGHT.sft, LIGHT.rl, LIGHT.muted):
        assert num_pixels(png, colour) > 100
    assert f"data:image/png;base64,{base64.b64encode(png).decode()}" in (tmp_path / "report.html").read_text()


def test_target_and_demonstrator_are_lines_across_the_chart_with_the_higher_one_above():
    png = draw_learning_curve(report(target_success=0.9, demonstrator_success=0.6))
    target, demonstrator = has_colour(png, LIGHT.target).sum(axis=1), has_colour(png, LIGHT.muted).sum(axis=1)
    assert target.max() > 200  # dotted, over about 1,200 pixels of panels
    assert demonstrator.max() > 400  # dashed
    assert target.argmax() < demonstrator.argmax()


def test_a_phase_that_did_not_run_has_no_panel_and_an_unknown_demonstrator_no_line():
    whole = draw_learning_curve(report())
    no_warm_up = draw_learning_curve(report(sft_loss=Curve()))
    assert num_pixels(no_warm_up, LIGHT.sft) == 0

    assert num_pixels(draw_learning_curve(report(demonstrator_success=None)), LIGHT.muted) < num_pixels(
        whole, LIGHT.muted
    )
    only_warm_up = draw_learning_curve(report(rl_success=Curve(), rl_reward=Curve(), evaluations=()))
    assert num_pixels(only_warm_up, LIGHT.rl) == 0


def test_drawing_is_a_function_of_its_data():
    assert draw_learning_curve(report()) == draw_learning_curve(report())


def test_without_matplotlib_the_page_is_written_and_says_what_is_missing(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.modules['matplotlib'] = None\n"
        "from agentenv.report import *\n"
        "write_report(sys.argv[2], ReportData(title='t', env_id='e', model='m', finished_at='now'))\n"
    )
    subprocess.run([sys.executable, "-c", program, ROOT, str(tmp_path)], check=True, timeout=60)
    assert os.listdir(tmp_path) == ["report.html"]
    assert "agentenv[train]" in (tmp_path / "report.html").read_text()


def test_a_folder_that_is_gone_is_told(tmp_path):
    with pytest.raises(StoreError, match="cannot write"):
        write_report(tmp_path / "gone", report())


def test_writing_again_replaces_the_report_and_leaves_nothing_else(tmp_path):
    write_report(tmp_path, report())
    write_report(tmp_path, report(title="second"))
    assert sorted(os.listdir(tmp_path)) == ["learning_curve.png", "report.html"]
    assert re.search("<title>second</title>", (tmp_path / "report.html").read_text())


def test_a_curve_takes_the_later_value_of_a_step_and_leaves_out_what_is_not_finite():
    lines = [
        MetricsLine(step=2, time_s=0, metrics={"a": 9.0}),
        MetricsLine(step=1, time_s=0, metrics={"a": 1.0, "b": 5.0}),
        MetricsLine(step=2, time_s=1, metrics={"a": 2.0}),
        MetricsLine(step=3, time_s=1, metrics={"a": math.nan}),
    ]
    assert curve_of(lines, "a") == Curve(steps=(1, 2), values=(1.0, 2.0))
    assert len(curve_of(lines, "none")) == 0


def test_a_trajectory_becomes_a_transcript():
    turn = Turn(sequence=0, start=0, end=5, finish_reason="stop", reward_components={"near": 0.5})
    played = Trajectory(
        env_id="agentenv/GuessNumber-v0",
        task_id="3",
        group_id="g",
        member=0,
        seed=0,
        stop_reason=StopReason.COMPLETED,
        turns=(turn,),
        sequences=(),
        reward_components={"found": 1.0},
        messages=(Message(role="user", content="go"), Message(role="assistant", content="7")),
    )

    row = transcript_of(played, step=4, phase="rl")

    assert (row.title, row.reward, row.turn_rewards) == ("agentenv/GuessNumber-v0 / 3", 1.5, (0.5,))
    assert (row.num_sampled_tokens, row.stop_reason) == (5, "completed")
    assert row.text == "[user] go\n\n[assistant] 7"
