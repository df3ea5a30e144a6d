"""The audit log of tool calls: who called what with which arguments, what came of it, and when."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["ok", "error", "refused", "retried", "failed"]
"""Of a call: `ok`; the tool told the model an `error`; it was `refused` and not run (malformed, wrong arguments, not
allowed); its infrastructure failed and it was `retried`; or the failure ended the episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One line of the audit log of tool calls.

    Attributes:
        caller: who called.
        call_id: as the model's turn has it.
        tool: name as the model wrote it.
        arguments: as the model wrote them.
        outcome: what came of the call.
        result_sha256: of the UTF-8 text that the model was told, then of the images in it; of nothing for failures.
        started_at_s: seconds since 1970, in UTC.
        duration_s: seconds.
    """

    caller: str
    call_id: str
    tool: str
    arguments: Mapping[str, object]
    outcome: Outcome
    result_sha256: str
    started_at_s: float
    duration_s: float

    @property
    def is_error(self) -> bool:
        """True when the model was told of an error, or the call failed."""
        return self.outcome != "ok"


def append_audit(path: Path | str, entries: Iterable[AuditEntry]) -> None:
    """Append entries to a file, one JSON object a line; missing folders are made."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_plain(entry), default=str, ensure_ascii=True) + "\n" for entry in entries]
    with place.open("a", encoding="ascii") as file:
        file.writelines(lines)


def _plain(entry: AuditEntry) -> dict[str, object]:
    return {**asdict(entry), "arguments": dict(entry.arguments)}
