"""Metrics reach every back end, and a back end that fails costs neither training nor a line."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentenv.config import Config
from agentenv.errors import StoreError
from agentenv.messages import Message, ToolCall
from agentenv.metrics_log import read_metrics
from agentenv.track import JsonlTracker, Trackers, TrackingConfig, open_trackers
from agentenv.transcript import TranscriptRow

ROOT = str(Path(__file__).resolve().parents[1])


class RunConfig(Config):
    learning_rate: float = 0.01
    api_key: str = "very-secret-value"


class FailsAt:
    """A back end that works until a given step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seen: list[int] = []

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        if step >= self.step:
            raise ConnectionError("the service is gone")
        self.seen.append(step)

    def log_transcripts(self, rows: Sequence[TranscriptRow], *, step: int) -> None:
        raise RuntimeError("no transcripts here")

    def close(self) -> None:
        raise RuntimeError("cannot be closed either")


def transcript(index: int = 0) -> TranscriptRow:
    call = ToolCall(call_id="c", name="guess", arguments={"number": 7})
    return TranscriptRow(
        title=f"agentenv/GuessNumber-v0 / {index}",
        phase="rl",
        step=2,
        messages=(Message(role="user", content="Guess."), Message(role="assistant", content="", tool_calls=(call,))),
        reward=1.0,
        turn_rewards=(0.25,),
        stop_reason="completed",
    )


def test_json_lines_are_always_written_also_without_back_ends(tmp_path):
    trackers = open_trackers(TrackingConfig(), folder=tmp_path, run_name="a", run_config=RunConfig())
    trackers.log({"train/loss": 0.5}, step=3)
    trackers.close()

    assert [(line.step, dict(line.metrics)) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        (3, {"train/loss": 0.5})
    ]


@pytest.mark.fault("tracker back end down", then="metrics.jsonl is complete", metric="tracking/failed_back_ends")
def test_a_back_end_that_fails_is_dropped_with_one_warning_and_no_line_is_lost(tmp_path, caplog):
    failing, working = FailsAt(2), FailsAt(99)
    trackers = Trackers(JsonlTracker(tmp_path / "metrics.jsonl"), others={"failing": failing, "working": working})

    with caplog.at_level(logging.WARNING):
        for step in range(5):
            trackers.log({"train/loss": 0.5}, step=step)

    assert [line.step for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    assert (failing.seen, working.seen) == ([0, 1], [0, 1, 2, 3, 4])
    assert trackers.active == ("working",)
    failed = [line.metrics.get("tracking/failed_back_ends") for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert failed == [None, None, None, 1.0, 1.0]  # known from the step after the one in which it failed
    assert [record.getMessage() for record in caplog.records] == [
        "tracker failing failed and is left out from here on (ConnectionError: the service is gone); "
        "metrics.jsonl goes on"
    ]


def test_transcripts_and_closing_may_fail_too(tmp_path, caplog):
    trackers = Trackers(JsonlTracker(tmp_path / "metrics.jsonl"), others={"a": FailsAt(99)})
    trackers.log_transcripts([transcript()], step=0)
    assert trackers.active == ()

    trackers = Trackers(JsonlTracker(tmp_path / "metrics.jsonl"), others={"a": FailsAt(99)})
    trackers.close()
    trackers.close()
    assert len(caplog.records) == 2


def test_a_disk_that_fails_is_not_hidden(tmp_path):
    trackers = open_trackers(TrackingConfig(), folder=tmp_path, run_name="a", run_config=RunConfig())
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(StoreError):
        trackers.log({"a": 1.0}, step=0)
    trackers.close()


@pytest.mark.parametrize(
    ("package", "back_end", "extra"),
    [("wandb", "wandb", "wandb"), ("tensorboard", "tensorboard", "tensorboard"), ("torch", "tensorboard", "train")],
)
def test_a_missing_package_names_its_extra(tmp_path, package, back_end, extra):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        f"sys.modules[{package!r}] = None\n"  # how Python marks a module that cannot be imported
        "from agentenv.track import *; from agentenv.config import Config; from agentenv.errors import UsageError\n"
        f"config = TrackingConfig(back_ends=({back_end!r},))\n"
        "try: open_trackers(config, folder=sys.argv[2], run_name='a', run_config=Config())\n"
        "except UsageError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, ROOT, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert f'pip install "agentenv[{extra}]"' in ran.stdout


def test_an_unknown_back_end_is_refused_by_the_configuration():
    with pytest.raises(ValueError, match="wandb"):
        TrackingConfig.model_validate({"back_ends": ["mlflow"]})


def test_importing_the_trackers_imports_neither_torch_nor_wandb():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import agentenv.track\n"
        "print([name for name in ('torch', 'wandb', 'tensorboard') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, ROOT], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"


def test_tensorboard_files_hold_scalars_and_transcripts(tmp_path):
    pytest.importorskip("torch")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = TrackingConfig(back_ends=("tensorboard",))
    trackers = open_trackers(config, folder=tmp_path, run_name="a", run_config=RunConfig())
    for step in range(3):
        trackers.log({"train/loss": 1.0 / (step + 1), "rollout/reward": 0.5}, step=step)
    trackers.log_transcripts([transcript()], step=2)
    trackers.close()

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (0, 1.0),
        (1, 0.5),
        (2, pytest.approx(1 / 3)),
    ]
    text = events.Tensors("transcripts/0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "[user] Guess." in text
    assert "guess(number=7)" in text


def wandb_records(file: Path) -> Iterator[bytes]:
    """Yield the records of wandb's file: a LevelDB log behind a header of 7 bytes."""
    data = file.read_bytes()
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def offline_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Trackers:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(folder / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
    config = TrackingConfig(back_ends=("wandb",))
    return open_trackers(config, folder=folder, run_name="first", run_config=RunConfig())


def test_an_offline_wandb_run_holds_metrics_config_and_a_table_but_no_secret(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    record_type: Any = importlib.import_module("wandb.proto.wandb_internal_pb2").Record  # generated, without types

    monkeypatch.setattr(sys, "argv", ["agentenv", "train", "engine.api_key=very-secret-value"])
    trackers = offline_run(tmp_path, monkeypatch)
    assert trackers.active == ("wandb",)
    trackers.log({"train/loss": 0.5, "time/step_s": 2.0}, step=7)
    trackers.log({"train/loss": 0.25}, step=5)  # earlier, as after a resume: kept all the same
    trackers.log_transcripts([transcript()], step=5)
    trackers.close()

    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30  # another process writes the file, and on a busy machine it may still be at it
    records: list[Any] = []
    while time.monotonic() < deadline and not any(record.HasField("run") for record in records):
        records = [record_type.FromString(record) for record in wandb_records(file)]
    history = [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    runs = [record.run for record in records if record.HasField("run")]
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}

    assert [(row["step"], row.get("train/loss"), row.get("time/step_s")) for row in history] == [
        (7, 0.5, 2.0),
        (5, 0.25, None),
        (5, None, None),
    ]
    assert runs[0].display_name == "first"
    assert config["learning_rate"] == 0.01
    assert config["api_key"] == "<hidden>"
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    assert "guess(number=7)" in table.read_text()
    assert not any(b"very-secret-value" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_resumed_wandb_run_keeps_its_id_and_one_that_ended_from_outside_is_dropped(tmp_path, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")
    offline_run(tmp_path, monkeypatch).close()
    first = (tmp_path / "wandb_run_id").read_text().strip()

    trackers = offline_run(tmp_path, monkeypatch)
    assert wandb.run is not None
    assert wandb.run.id == first
    wandb.run.finish()
    with caplog.at_level(logging.WARNING, logger="agentenv.track"):
        trackers.log({"train/loss": 1.0}, step=0)
        trackers.log({"train/loss": 1.0}, step=1)
    trackers.close()

    assert [line.step for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]
    assert [record.name for record in caplog.records].count("agentenv.track") == 1


@pytest.mark.fault("wandb server out of reach", then="metrics.jsonl is complete", metric="tracking/failed_back_ends")
def test_a_wandb_server_that_cannot_be_reached_does_not_stop_the_run(tmp_path):
    pytest.importorskip("wandb")
    program = (
        "import logging, sys; sys.path.insert(0, sys.argv[1])\n"
        "from agentenv.track import *; from agentenv.config import Config\n"
        "class Hasty(TrackingConfig):\n    timeout_s = 1.0\n"
        "config = Hasty(back_ends=('wandb',))\n"
        "trackers = open_trackers(config, folder=sys.argv[2], run_name='a', run_config=Config())\n"
        "trackers.log({'train/loss': 1.0}, step=0); trackers.close()\n"
        "print(trackers.active, trackers.num_failed)\n"
    )
    unreachable = {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": "http://127.0.0.1:9",  # the discard port: nobody listens
        "WANDB_API_KEY": "0" * 40,
        "WANDB_SILENT": "true",
    }
    ran = subprocess.run(
        [sys.executable, "-c", program, ROOT, str(tmp_path)],
        env={**os.environ, **unreachable},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert ran.stdout.strip() == "() 1"
    assert ran.stderr.count("tracker wandb failed and is left out from here on") == 1
    assert "WANDB_MODE=offline" in ran.stderr
    assert "0" * 40 not in ran.stderr
    assert [line.step for line in read_metrics(tmp_path / "metrics.jsonl")] == [0]


def test_the_reward_of_a_turn_stands_with_the_last_assistant_messages():
    example = Message(role="assistant", content="an example in the prompt")
    messages = (example, Message(role="user", content="go"), Message(role="assistant", content="a turn"))
    row = TranscriptRow(
        title="e", phase="rl", step=0, messages=messages, turn_rewards=(0.5,), reward=0.5, stop_reason="completed"
    )
    assert [row.reward_of_message(index) for index in range(3)] == [None, None, 0.5]
