"""What a run remembers beside its checkpoints: finished evaluations and the seconds of each phase."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from agentenv.errors import RunFolderError
from agentenv.evaluate import EvalSummary


@dataclass(kw_only=True)
class RunRecord:
    """Survives a restart; every change is written at once, whole or not at all.

    Attributes:
        path: JSON file.
        evaluations: by name: `"demonstrator"`, `"before"`, `"after"`.
        seconds: wall-clock per phase, summed over restarts.
    """

    path: Path
    evaluations: dict[str, EvalSummary] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, summary: EvalSummary) -> None:
        """Remember an evaluation."""
        self.evaluations[name] = summary
        self._write()

    def drop(self, name: str) -> None:
        """Forget an evaluation that no longer speaks of the newest weights."""
        self.evaluations.pop(name, None)
        self._write()

    def spend(self, phase: str, seconds: float) -> None:
        """Add to a phase's wall-clock."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self._write()

    def _write(self) -> None:
        value = {
            "evaluations": {name: summary.as_dict() for name, summary in self.evaluations.items()},
            "seconds": self.seconds,
        }
        beside = self.path.with_suffix(".partial")
        beside.write_text(json.dumps(value, indent=1), encoding="utf-8")
        os.replace(beside, self.path)


def open_record(path: str | Path) -> RunRecord:
    """Read a record, or start an empty one.

    Raises:
        RunFolderError: the file is damaged.
    """
    file = Path(path)
    if not file.is_file():
        return RunRecord(path=file)
    try:
        value = cast("Mapping[str, Any]", json.loads(file.read_text(encoding="utf-8")))
        evaluations = {name: EvalSummary(**summary) for name, summary in value["evaluations"].items()}
        return RunRecord(path=file, evaluations=evaluations, seconds=dict(value["seconds"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{file}: damaged ({error}); move it away, the evaluations are then made again") from error
