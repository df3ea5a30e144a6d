"""Plays what the scheduler admits and hands finished groups back."""

from __future__ import annotations

import asyncio
from types import TracebackType

from agentenv.errors import RolloutsFailed
from agentenv.runner import Runner
from agentenv.trainers.scheduler import Batch, Scheduler, Ticket
from agentenv.trainers.source import GroupSource
from agentenv.trajectory import Group

MAX_GROUP_ATTEMPTS = 3
MAX_ABANDONED_IN_A_ROW = 8


class Rollouts:
    """The running groups of a training loop.

    Leaving the context cancels whatever still plays.

    Args:
        runner: plays groups.
        scheduler: decides which.
        source: says what a group is.
    """

    def __init__(self, *, runner: Runner, scheduler: Scheduler, source: GroupSource) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.source = source
        self.num_abandoned = 0
        self._abandoned_in_a_row = 0
        self._running: dict[asyncio.Task[Group], Ticket] = {}
        self._finished: dict[int, Group] = {}

    async def __aenter__(self) -> Rollouts:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()

    def admit(self) -> None:
        """Start every group that the scheduler lets in."""
        while (ticket := self.scheduler.admit()) is not None:
            spec = self.source.group(ticket.group, attempt=ticket.attempt)
            self._running[asyncio.create_task(self.runner.run_group(spec))] = ticket

    async def wait(self) -> None:
        """Wait until a group ends; one without a scored member is played again, in the end given up.

        Raises:
            RolloutsFailed: so many groups in a row were given up that the fault must be in the set-up.
        """
        assert self._running, "the scheduler admits a group whenever nothing runs"
        done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(done, key=lambda task: self._running[task].group):
            ticket = self._running.pop(task)
            group = task.result()
            if group.scored:
                self.scheduler.finish(ticket)
                self._finished[ticket.group] = group
                self._abandoned_in_a_row = 0
            elif ticket.attempt + 1 < MAX_GROUP_ATTEMPTS:
                self.scheduler.fail(ticket)
            else:
                self.scheduler.abandon(ticket)
                self._count_abandoned(group)

    def _count_abandoned(self, group: Group) -> None:
        self.num_abandoned += 1
        self._abandoned_in_a_row += 1
        if self._abandoned_in_a_row >= MAX_ABANDONED_IN_A_ROW:
            raise RolloutsFailed(
                f"{self._abandoned_in_a_row} groups in a row failed {MAX_GROUP_ATTEMPTS} times each; the last error: "
                f"{group.trajectories[0].error}. Mend the cause, then go on with --resume"
            )

    def take(self, batch: Batch) -> list[Group]:
        """Return the groups of a batch, in its order."""
        return [self._finished.pop(ticket.group) for ticket in batch.tickets]
