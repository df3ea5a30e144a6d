"""Every example runs from the repository's root and shows what it promises."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentenv.metrics_log import read_metrics
from agentenv.trainers.losses import POLICY_LOSSES

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: str, timeout_s: float = 60) -> str:
    """Run an example in a process of its own, as a person would, and return what it printed."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    ran = subprocess.run(
        [sys.executable, f"examples/{name}.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def test_an_episode_is_played_through_gymnasium():
    assert "return 1, stop reason tool_stopped, components {'found': 1.0}" in run("01_play")


def test_an_own_environment_is_played_by_its_oracle_and_keeps_its_promises():
    out = run("02_write_an_environment")
    assert "return 0.9" in out
    assert "ok      the oracle solves it" in out
    assert "FAILED" not in out


def test_the_trajectory_of_a_scripted_engine_is_shown_token_by_token():
    out = run("03_agent_loop")
    # the first turn: what the script holds, at -0.5 a token
    assert re.search(r"^policy \[ 623,  673\)  log-prob  -25.0  .*\"guess\"", out, re.MULTILINE)
    assert "turn 1: tokens [708, 717), 1 malformed calls" in out
    assert "stop reason tool_stopped, return 0, members 2" in out


def test_the_embedded_engine_plays_episodes_at_once_and_repeats_itself():
    out = run("04_embedded_engine", timeout_s=110)
    assert "same seed, same tokens: True" in out
    assert "other seed, same tokens: False" in out


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_training_run_leaves_its_folder_and_only_documented_metrics(tmp_path):
    out = run("05_train", str(tmp_path), timeout_s=280)

    assert "2 updates, report in report.html" in out
    assert "64 training episodes are stored" in out
    success = dict(re.findall(r"^(\w+) +success ([0-9.]+)", out, re.MULTILINE))
    assert success.keys() == {"demonstrator", "before", "after"}
    assert float(success["demonstrator"]) > 0.4
    written = {name for line in read_metrics(tmp_path / "example" / "metrics.jsonl") for name in line.metrics}
    assert {"rollout/reward/found", "train/clip_high", "mismatch/k3", "eval/success", "sft/cross_entropy"} <= written
    assert sorted(_general(name) for name in written if _general(name) not in documented_metrics()) == []
    phases = {event["name"] for event in json.loads((tmp_path / "example" / "timeline.json").read_text())}
    assert {"rollout", "credit", "publish", "forward", "backward", "optimizer", "pause", "group 0"} <= phases


def test_policies_are_measured_and_pass_at_k_grows_with_k():
    out = run("06_evaluate")
    success = {name: float(value) for name, value in re.findall(r"^(\w+) +([01]\.\d+) ", out, re.MULTILINE)}
    assert success["oracle"] == 1.0 > success["demonstrate"] > success["random"]
    at_k = [float(value) for value in re.findall(r"pass@\d: ([0-9.]+)", out)]
    assert len(at_k) == 4
    assert at_k == sorted(at_k)


def test_the_metrics_of_every_policy_loss_are_documented():
    assert set(POLICY_LOSSES) == {"ppo_clip", "dppo_tv"}
    assert {"train/clip_low", "train/clip_high", "train/dual_clip", "train/tv_dropped"} <= documented_metrics()


def test_a_langgraph_graph_plays_a_group_and_every_sequence_becomes_a_sample():
    out = run("07_langgraph", timeout_s=110)
    episodes = re.findall(r"^episode (\d): turns (\d+), sequences (\d+), return ([01])", out, re.MULTILINE)
    samples = re.findall(r"^sample demo/(\d)/\d: (\d+) tokens trained, ([-+][0-9.]+)", out, re.MULTILINE)
    assert len(episodes) == 4
    assert len(samples) == sum(int(sequences) for _, _, sequences, _ in episodes) > 4  # a branch was drawn again
    assert {reward for *_, reward in episodes} == {"0", "1"}
    signs = {member: {float(a) > 0 for m, _, a in samples if m == member} for member, *_ in episodes}
    assert signs == {member: {reward == "1"} for member, _, _, reward in episodes}


def test_a_program_with_the_openai_client_plays_a_group_and_is_trained_token_by_token():
    out = run("08_train_any_program", timeout_s=110)
    found = re.findall(
        r"^member \d: (\d) turns in 1 sequence, return ([01]), \d+ trained tokens, advantage (\S+)", out, re.M
    )
    assert [(reward, advantage) for _, reward, advantage in found] == [
        # the baseline is the mean of the three others
        ("0", "-0.67"),
        ("1", "+0.67"),
        ("0", "-0.67"),
        ("1", "+0.67"),
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert text.startswith('"""')
    assert f"python examples/{path.name}" in text


def documented_metrics() -> set[str]:
    """Return the names in the tables of the metrics page."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([^`]+)`", page, re.MULTILINE))


def _general(name: str) -> str:
    """Replace the part of a name that environments and endings choose."""
    return re.sub(r"^(rollout/stop)/.*", r"\1/<reason>", re.sub(r"^(rollout/reward)/.*", r"\1/<component>", name))
