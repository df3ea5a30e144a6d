"""Which groups may start, which ones a step trains on, and when their places are free again: a pure state machine.

One number makes the mode: `max_staleness` S = 0 is synchronous training, 1 is one step off, more is asynchronous.
With P groups per step and a window W, the rules are:

- At most (S + 1) P groups are active. A group is active from its admission until the weights of the step that trained
  on it are live in the engines.
- A step takes P finished groups. While the oldest untrained group h is unfinished, only groups below h + W may pass it.
- A group is stamped with the live weight version when it starts, and again when it is retried.

When group i is admitted, at least (i + 1) - (S + 1) P groups have been freed, which takes a live version of at least
floor(i / P) - S. At most W - 1 later groups pass it. So it is trained on at an age of at most S + ceil((W - 1) / P)
versions. No group is ever dropped for its age.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from agentenv.errors import CheckpointError, UsageError

Phase = Literal["running", "waiting", "finished"]
STATE_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Permission to play one attempt of a group.

    Attributes:
        group: counts groups from 0 in the order of admission; the loop maps it to a task.
        attempt: 0 for the first try.
        version: live weight version when the attempt was admitted.
    """

    group: int
    attempt: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The groups of one step.

    Attributes:
        step: counts steps from 0; also the trainer's weight version before the step.
        tickets: by ascending group.
    """

    step: int
    tickets: tuple[Ticket, ...]

    @property
    def ages(self) -> tuple[int, ...]:
        """Per group: versions between the weights it was admitted with and those that train on it."""
        return tuple(self.step - ticket.version for ticket in self.tickets)


@dataclass(slots=True)
class _Group:
    ticket: Ticket
    phase: Phase


class Scheduler:
    """Admission, order and pacing of groups; every method is one transition and returns at once."""

    def __init__(self, *, max_staleness: int, groups_per_step: int, window: int = 1) -> None:
        """Start at version 0 with nothing admitted.

        Args:
            max_staleness: S, at least 0.
            groups_per_step: P, at least 1.
            window: W, at least 1. 1 is strict first-in-first-out; a wider window keeps the trainer busy while a slow
                group is still playing.

        Raises:
            UsageError: a number is out of range.
        """
        if max_staleness < 0:
            raise UsageError(f"max_staleness is {max_staleness}; at least 0 is needed (0 is synchronous)")
        if groups_per_step < 1:
            raise UsageError(f"groups_per_step is {groups_per_step}; at least 1 is needed")
        if window < 1:
            raise UsageError(f"window is {window}; at least 1 is needed (1 is strict first-in-first-out)")
        self.max_staleness = max_staleness
        self.groups_per_step = groups_per_step
        self.window = window
        self._capacity = (max_staleness + 1) * groups_per_step
        self._next_group = 0
        self._live_version = 0
        self._num_steps = 0
        self._groups: dict[int, _Group] = {}  # admitted and not yet trained on, by ascending group
        self._waiting: list[int] = []  # heap of groups to be retried

    @property
    def live_version(self) -> int:
        """Weight version that the engines serve."""
        return self._live_version

    @property
    def num_steps(self) -> int:
        """Batches handed out."""
        return self._num_steps

    @property
    def num_active(self) -> int:
        """Groups that hold a place: admitted and not yet freed by live weights."""
        return len(self._groups) + (self._num_steps - self._live_version) * self.groups_per_step

    @property
    def max_age(self) -> int:
        """The proven bound on the age of a group when it is trained on, S + ceil((W - 1) / P)."""
        return self.max_staleness - (1 - self.window) // self.groups_per_step

    def tickets(self, phase: Phase) -> tuple[Ticket, ...]:
        """Return the untrained groups in one phase of life, by ascending group."""
        return tuple(group.ticket for group in self._groups.values() if group.phase == phase)

    def admit(self) -> Ticket | None:
        """Start a group: the oldest that waits for a retry, else a new one; None while every place is taken."""
        if self._waiting:
            entry = self._groups[heapq.heappop(self._waiting)]
            waited = entry.ticket
            entry.ticket = Ticket(group=waited.group, attempt=waited.attempt, version=self._live_version)
            entry.phase = "running"
            return entry.ticket
        if self.num_active >= self._capacity:
            return None
        ticket = Ticket(group=self._next_group, attempt=0, version=self._live_version)
        self._groups[ticket.group] = _Group(ticket=ticket, phase="running")
        self._next_group += 1
        return ticket

    def finish(self, ticket: Ticket) -> bool:
        """Mark a group as ready to be trained on.

        Returns:
            False when this attempt no longer runs (it was failed, abandoned or has finished before): ignore its result.
        """
        entry = self._running(ticket)
        if entry is None:
            return False
        entry.phase = "finished"
        return True

    def fail(self, ticket: Ticket) -> bool:
        """Give up an attempt that crashed or timed out; the group keeps its place and waits for the next attempt.

        Returns:
            False when this attempt no longer runs.
        """
        entry = self._running(ticket)
        if entry is None:
            return False
        entry.ticket = Ticket(group=ticket.group, attempt=ticket.attempt + 1, version=ticket.version)
        entry.phase = "waiting"
        heapq.heappush(self._waiting, ticket.group)
        return True

    def abandon(self, ticket: Ticket) -> bool:
        """Give up a group for good, after the loop's last retry; its place is free at once and nothing waits for it.

        Returns:
            False when this attempt no longer runs.
        """
        if self._running(ticket) is None:
            return False
        del self._groups[ticket.group]
        return True

    def take(self) -> Batch | None:
        """Hand out the next step's P groups, oldest first; None while the window does not hold enough finished ones."""
        picked: list[Ticket] = []
        oldest_unfinished: int | None = None
        for group, entry in self._groups.items():
            if oldest_unfinished is not None and group >= oldest_unfinished + self.window:
                return None
            if entry.phase == "finished":
                picked.append(entry.ticket)
                if len(picked) == self.groups_per_step:
                    break
            elif oldest_unfinished is None:
                oldest_unfinished = group
        if len(picked) < self.groups_per_step:
            return None
        for ticket in picked:
            del self._groups[ticket.group]
        batch = Batch(step=self._num_steps, tickets=tuple(picked))
        self._num_steps += 1
        return batch

    def weights_live(self, version: int) -> int:
        """Record that every engine serves `version`; the places of the groups behind it become free.

        Args:
            version: number of steps trained into these weights; versions may be skipped.

        Returns:
            How many places became free.

        Raises:
            UsageError: the version is not newer than the live one, or no step can have produced it yet.
        """
        if not self._live_version < version <= self._num_steps:
            raise UsageError(
                f"version {version} cannot go live: {self._live_version} is live and {self._num_steps} steps were "
                f"handed out; expected {self._live_version + 1}..{self._num_steps}"
            )
        freed = (version - self._live_version) * self.groups_per_step
        self._live_version = version
        return freed

    def to_json(self) -> dict[str, object]:
        """Return the state as plain JSON values."""
        return {
            "format": STATE_FORMAT,
            "max_staleness": self.max_staleness,
            "groups_per_step": self.groups_per_step,
            "window": self.window,
            "next_group": self._next_group,
            "live_version": self._live_version,
            "num_steps": self._num_steps,
            "groups": [
                [group, entry.ticket.attempt, entry.ticket.version, entry.phase]
                for group, entry in self._groups.items()
            ],
        }

    @classmethod
    def from_json(cls, state: Mapping[str, object]) -> Scheduler:
        """Rebuild a scheduler.

        Finished groups stay finished. Groups that were running died with their process: they wait to be played again as
        the same attempt, so that a retry that is a function of (group, attempt) repeats itself.

        Raises:
            CheckpointError: the state is of another format or incomplete.
        """
        if state.get("format") != STATE_FORMAT:
            raise CheckpointError(f"scheduler state has format {state.get('format')!r}; expected {STATE_FORMAT}")
        try:
            scheduler = cls(
                max_staleness=cast(int, state["max_staleness"]),
                groups_per_step=cast(int, state["groups_per_step"]),
                window=cast(int, state["window"]),
            )
            scheduler._next_group = cast(int, state["next_group"])
            scheduler._live_version = cast(int, state["live_version"])
            scheduler._num_steps = cast(int, state["num_steps"])
            groups = cast(list[tuple[int, int, int, Phase]], state["groups"])
        except KeyError as error:
            raise CheckpointError(f"scheduler state has no entry {error}") from error
        for group, attempt, version, phase in groups:
            ticket = Ticket(group=group, attempt=attempt, version=version)
            is_finished = phase == "finished"
            scheduler._groups[group] = _Group(ticket=ticket, phase="finished" if is_finished else "waiting")
            if not is_finished:
                scheduler._waiting.append(group)  # ascending, hence a heap
        return scheduler

    def _running(self, ticket: Ticket) -> _Group | None:
        """Return the group if exactly this attempt is running."""
        if not 0 <= ticket.group < self._next_group:
            raise UsageError(f"group {ticket.group} was never admitted; {self._next_group} groups were")
        entry = self._groups.get(ticket.group)
        return entry if entry is not None and entry.phase == "running" and entry.ticket == ticket else None
