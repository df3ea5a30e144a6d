"""Where metrics go: JSON lines always; wandb and TensorBoard where asked for, which may fail without harm."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, Field

from agentenv.config import Config, public_values
from agentenv.errors import UsageError, describe
from agentenv.metrics_log import MetricsLog
from agentenv.trace import TracingConfig
from agentenv.transcript import TranscriptRow

_log = logging.getLogger(__name__)

BackEnd = Literal["wandb", "tensorboard"]


class TrackingConfig(Config):
    """Trackers beside the run folder's own `metrics.jsonl`."""

    timeout_s: ClassVar[float] = 60.0
    """Seconds to wait for a tracker to start, and again for it to finish; then training goes on without it."""

    back_ends: tuple[BackEnd, ...] = ()
    """Trackers to feed; each needs the extra of its name."""
    project: str = "agentenv"
    """Project name in wandb."""
    tracing: TracingConfig = TracingConfig()
    """Spans of episodes."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port on the loopback interface where Prometheus finds the run's metrics; 0 takes a free one, null serves none."""


class Tracker(Protocol):
    """Somewhere to send metrics. Names carry their topic: `train/`, `rollout/`, `eval/`, `time/`."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record the metrics of a step."""
        ...

    def log_transcripts(self, rows: Sequence[TranscriptRow], *, step: int) -> None:
        """Record episodes for people to read."""
        ...

    def close(self) -> None:
        """Finish; idempotent."""
        ...


class JsonlTracker:
    """Metrics as JSON lines. Transcripts are left to the trajectory store, which holds every episode.

    Unlike the others it raises `StoreError` when the disk fails: a run without its record should not go on.
    """

    def __init__(self, path: str | Path) -> None:
        self._metrics = MetricsLog(path)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Append one line."""
        self._metrics.write(metrics, step=step)

    def log_transcripts(self, rows: Sequence[TranscriptRow], *, step: int) -> None:
        """Do nothing: the trajectory store has them."""

    def forget(self, *, after_step: int) -> None:
        """Cut off the lines of later steps, which a resumed run writes again."""
        self._metrics.forget(after_step=after_step)

    def close(self) -> None:
        """Close the file."""
        self._metrics.close()


class WandbTracker:
    """A wandb run, online or (`WANDB_MODE=offline`) in a folder for `wandb sync`.

    The run's id is kept in `wandb_run_id` in the run folder, so that a resumed run goes on in the same chart. Command
    line and console are not sent, because they may hold secrets.

    Args:
        config: names and tags.
        folder: the run folder.
        run_name: name of the run.
        values: JSON-plain configuration, without secrets.
    """

    def __init__(self, config: TrackingConfig, *, folder: Path, run_name: str, values: Mapping[str, object]) -> None:
        import wandb

        options = {
            "console": "off",
            "disable_code": True,
            "disable_git": True,
            "x_disable_meta": True,
            "init_timeout": config.timeout_s,
            "login_timeout": config.timeout_s,
            "finish_timeout": config.timeout_s,
        }
        known = wandb.Settings.model_fields  # older releases lack some of them
        self._wandb = wandb
        self._timeout_s = config.timeout_s
        self._run: Any = wandb.init(
            project=config.project,
            name=run_name,
            config=dict(values),
            dir=os.environ.get("WANDB_DIR") or str(folder),
            id=_run_id(folder),
            resume=None if os.environ.get("WANDB_MODE") == "offline" else "allow",
            settings=wandb.Settings(**{name: value for name, value in options.items() if name in known}),
        )
        # an own axis: wandb silently drops what is logged for a step below its last one, as after a resume
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Send the metrics of a step."""
        self._run.log({**metrics, "step": step})

    def log_transcripts(self, rows: Sequence[TranscriptRow], *, step: int) -> None:
        """Send a table of episodes."""
        columns: list[str | int] = ["step", "phase", "episode", "reward", "stop_reason", "tokens", "transcript"]
        data = [
            [row.step, row.phase, row.title, row.reward, row.stop_reason, row.num_sampled_tokens, row.text]
            for row in rows
        ]
        self._run.log({"transcripts": self._wandb.Table(columns=columns, data=data), "step": step})

    def close(self) -> None:
        """Upload what is left, for `timeout_s` seconds at most; the rest stays on disk for `wandb sync`."""
        _within(self._timeout_s + 5, self._run.finish)


class TensorboardTracker:
    """TensorBoard event files below `tensorboard/` in the run folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(log_dir=str(folder / "tensorboard"), flush_secs=10)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), global_step=step)

    def log_transcripts(self, rows: Sequence[TranscriptRow], *, step: int) -> None:
        """Write episodes as preformatted text."""
        for index, row in enumerate(rows):
            head = f"{row.title}, reward {row.reward:g}, {row.stop_reason}"
            body = row.text.replace("\n", "\n    ")
            self._writer.add_text(f"transcripts/{index}", f"{head}\n\n    {body}", global_step=step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Trackers:
    """Sends everything to the JSON lines first, then to each back end; one that fails is dropped with one warning.

    From then on every line carries `tracking/failed_back_ends`.

    Args:
        jsonl: the tracker that must not fail.
        others: back ends by name.
        num_failed: back ends that were asked for and did not even start.

    Attributes:
        num_failed: back ends that were dropped, those included.
    """

    def __init__(
        self, jsonl: JsonlTracker, *, others: Mapping[str, Tracker] | None = None, num_failed: int = 0
    ) -> None:
        self._jsonl = jsonl
        self._others = dict(others or {})
        self.num_failed = num_failed

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the back ends that still work."""
        return tuple(self._others)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record the metrics of a step.

        Raises:
            StoreError: the JSON lines could not be written.
        """
        if self.num_failed:
            metrics = {**metrics, "tracking/failed_back_ends": float(self.num_failed)}
        self._jsonl.log(metrics, step=step)
        self._each(lambda tracker: tracker.log(metrics, step=step))

    def log_transcripts(self, rows: Sequence[TranscriptRow], *, step: int) -> None:
        """Record episodes for people to read."""
        self._jsonl.log_transcripts(rows, step=step)
        self._each(lambda tracker: tracker.log_transcripts(rows, step=step))

    def forget(self, *, after_step: int) -> None:
        """Take the steps after `after_step` out of the JSON lines; the back ends show them twice.

        Raises:
            StoreError: the JSON lines could not be cut.
        """
        self._jsonl.forget(after_step=after_step)

    def close(self) -> None:
        """Finish all of them; idempotent."""
        self._each(lambda tracker: tracker.close())
        self._others.clear()
        self._jsonl.close()

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in tuple(self._others.items()):
            try:
                action(tracker)
            except Exception as error:
                del self._others[name]
                self.num_failed += 1
                _warn(name, error)


def open_trackers(
    config: TrackingConfig,
    *,
    folder: str | Path,
    run_name: str,
    run_config: BaseModel,
    others: Mapping[str, Tracker] | None = None,
) -> Trackers:
    """Open `metrics.jsonl` and the back ends of the configuration.

    Args:
        config: which back ends.
        folder: the run folder.
        run_name: name of the run.
        run_config: sent to the back ends, without its secrets.
        others: further trackers by name, e.g. the gauges of a metrics endpoint.

    Raises:
        UsageError: a back end's package is not installed; names the extra.
        StoreError: `metrics.jsonl` cannot be opened.
    """
    for name in config.back_ends:
        _require(name)
    root = Path(folder)
    jsonl = JsonlTracker(root / "metrics.jsonl")
    makers: dict[BackEnd, Callable[[], Tracker]] = {
        "wandb": lambda: WandbTracker(config, folder=root, run_name=run_name, values=public_values(run_config)),
        "tensorboard": lambda: TensorboardTracker(root),
    }
    opened: dict[str, Tracker] = dict(others or {})
    for name in config.back_ends:
        try:
            opened[name] = makers[name]()
        except Exception as error:
            _warn(name, error)
    return Trackers(jsonl, others=opened, num_failed=len(set(config.back_ends) - set(opened)))


def _require(name: BackEnd) -> None:
    packages = {"wandb": ("wandb",), "tensorboard": ("torch", "tensorboard")}
    extras = {"wandb": "wandb", "torch": "train", "tensorboard": "tensorboard"}
    for package in packages[name]:
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f'tracking back end "{name}" needs the package {package}, which is not installed; '
                f'run `pip install "agentenv[{extras[package]}]"`, or leave "{name}" out of tracking.back_ends'
            )


def _warn(name: str, error: Exception) -> None:
    advice = "; set WANDB_MODE=offline to record without a network" if name == "wandb" else ""
    _log.warning(
        "tracker %s failed and is left out from here on (%s); metrics.jsonl goes on%s", name, describe(error), advice
    )


def _run_id(folder: Path) -> str:
    file = folder / "wandb_run_id"
    if not file.exists():
        file.write_text(f"{secrets.token_hex(6)}\n", encoding="ascii")
    return file.read_text(encoding="ascii").strip()


def _within(timeout_s: float, call: Callable[[], object]) -> None:
    """Run a foreign call that may hang; its thread is left behind at the deadline."""
    failures: list[Exception] = []

    def guarded() -> None:
        try:
            call()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True, name="finish-tracker")
    thread.start()
    thread.join(timeout_s)
    if failures:
        raise failures[0]
    if thread.is_alive():
        raise TimeoutError(f"not finished after {timeout_s:g} s")
