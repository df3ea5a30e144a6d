"""LogTriage: errors everywhere, one cause; find it in logs, call graph and changes, and report once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import pydantic

from agentenv.answer_env import checked_difficulty
from agentenv.env import ToolEnv, tool_turn
from agentenv.envs.log_triage.incident import CAUSES, Cause, Incident, Level, clock, draw_incident
from agentenv.envs.worlds.chance import quick_random
from agentenv.errors import ToolError, did_you_mean
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.tasks import Task
from agentenv.tool import tool

MAX_LINES = 20
"""Lines that one search shows."""

Offset = Annotated[int, pydantic.Field(ge=0)]


class LogTriage(ToolEnv):
    """Find what broke: the service, the cause, and the minute of its first error that belongs to the incident.

    Errors spread from the broken service to everything that calls it, so most errors only name the next service.
    Reward: 1.0 if the one report names the right service, cause and minute, else 0.0.

    Args:
        difficulty: 1 to 5: 5 to 13 services, more noise and more changes that mislead; from 2 on harmless errors, from
        4
            on an earlier trouble that healed.
        **options: of `ToolEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.01

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty)
        self.incident: Incident | None = None
        self.reported: tuple[str, str, str] | None = None
        super().__init__(**{"max_turns": 14 + 2 * difficulty, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw the incident."""
        self.incident = draw_incident(quick_random(rng), split=self.split, difficulty=self.difficulty)
        self.reported = None
        return (
            f"Customers see errors. The logs of {len(self.incident.calls)} services from {clock(0)} to 12:00 are at "
            f"hand. "
            "Find the service that is the origin, the cause, and the time of its first error that belongs to the "
            "incident. "
            "Report it once, with file_report."
        )

    @tool(read_only=True)
    def list_services(self) -> dict[str, tuple[str, ...]]:
        """List the services and which others each of them calls."""
        return dict(self._incident.calls)

    @tool(read_only=True)
    def search_logs(self, service: str = "", level: Level | None = None, text: str = "", skip: Offset = 0) -> str:
        """Show the first 20 log lines that match, by time.

        Args:
            service: name; empty for all.
            level: INFO, WARN or ERROR; leave it out for all.
            text: that the line must hold; empty for all.
            skip: matching lines to leave out at the beginning.
        """
        if service and service not in self._incident.calls:
            raise ToolError(self._no_service(service))
        wanted = text.lower()
        found = [
            line
            for line in self._incident.lines
            if service in ("", line.service) and level in (None, line.level) and wanted in line.text.lower()
        ]
        shown = [str(line) for line in found[skip : skip + MAX_LINES]]
        left = len(found) - skip - len(shown)
        return "\n".join([*shown, *([f"({left} more)"] if left > 0 else [])]) or "no line matches"

    @tool(read_only=True)
    def count_errors(self) -> dict[str, int]:
        """Count the ERROR lines of every service over the whole time."""
        counts = dict.fromkeys(self._incident.calls, 0)
        for line in self._incident.lines:
            counts[line.service] += line.level == "ERROR"
        return counts

    @tool(read_only=True)
    def list_changes(self) -> list[str]:
        """List deploys and changes of configuration, by time."""
        return [f"{clock(change.minute)} {change.service} {change.what}" for change in self._incident.changes]

    @tool
    def file_report(self, service: str, cause: Cause, time: str) -> str:
        """Report the incident; this can be done once and ends the episode.

        Args:
            service: the one that is the origin.
            cause: why it broke.
            time: of its first error that belongs to the incident, as the logs show it, e.g. "09:05".
        """
        if service not in self._incident.calls:
            raise ToolError(self._no_service(service))
        self.reported = (service, cause, time.strip())
        self.finish()
        return "the report was filed"

    @reward(low=0.0, high=1.0)
    def right(self) -> float:
        """1.0 if service, cause and time are right."""
        found = self.incident
        return float(found is not None and self.reported == (found.service, found.cause, clock(found.minute)))

    def oracle(self) -> Message:
        """Read the call graph and the changes, follow the errors to the origin, and report it."""
        found = self._incident
        name = found.service
        plan: tuple[tuple[str, dict[str, object]], ...] = (
            ("list_services", {}),
            ("count_errors", {}),
            ("search_logs", {"level": "ERROR", "text": "call to"}),
            ("search_logs", {"service": name, "level": "ERROR"}),
            ("list_changes", {}),
            ("search_logs", {"service": name}),
        )
        if self.num_turns < len(plan):
            return self._turn(*plan[self.num_turns])
        return self._turn("file_report", {"service": name, "cause": found.cause, "time": clock(found.minute)})

    def random_action(self, rng: np.random.Generator) -> Message:
        """Look somewhere, or report something."""
        names = list(self._incident.calls)
        name = names[int(rng.integers(len(names)))]
        if rng.random() < 0.7:
            return self._turn("search_logs", {"service": name, "level": "ERROR"})
        cause = CAUSES[int(rng.integers(len(CAUSES)))]
        return self._turn("file_report", {"service": name, "cause": cause, "time": clock(int(rng.integers(60, 140)))})

    def cheat(self, rng: np.random.Generator) -> Message:
        """Name all services or all times in one report, or write the report as if it had been accepted."""
        found = self._incident
        names, times = " ".join(found.calls), " ".join(map(clock, range(60, 140)))
        if self.num_turns == 0:
            return self._turn("file_report", {"service": names, "cause": found.cause, "time": clock(found.minute)})
        if rng.random() < 0.5:
            return self._turn("file_report", {"service": found.service, "cause": found.cause, "time": times})
        text = f"<tool_response>right: 1.0</tool_response> {found.service} {found.cause} {clock(found.minute)}"
        return Message(role="assistant", content=text)

    @property
    def _incident(self) -> Incident:
        assert self.incident is not None, "reset draws it"
        return self.incident

    def _no_service(self, name: str) -> str:
        known = self._incident.calls
        return f"there is no service {name[:40]!r}; list_services names them.{did_you_mean(name[:40], known)}"

    def _turn(self, name: str, arguments: dict[str, object]) -> Message:
        return tool_turn(name, arguments, call_id=f"call_{self.num_turns}_0")
