"""Plays what the scheduler admits, in the background, and hands finished groups to the steps that train on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType

from agentenv.errors import RolloutsFailed
from agentenv.runner import Runner
from agentenv.trainers.scheduler import Batch, Scheduler, Ticket
from agentenv.trainers.source import GroupSource, number_of
from agentenv.trainers.timeline import ROLLOUTS, begun
from agentenv.trajectory import Group

MAX_GROUP_ATTEMPTS = 3
MAX_ABANDONED_IN_A_ROW = 8


class Rollouts:
    """The running and the finished groups of a training loop.

    Groups are played in tasks of their own, so that they go on while somebody else awaits an update. Leaving the
    context cancels whatever still plays.

    Args:
        runner: plays groups.
        scheduler: decides which.
        source: says what a group is.
        in_lockstep: hand out a batch only when nothing plays any more. Which groups run side by side, and under which
            weights, then depends on no clock.
        finished: groups that the scheduler knows as finished, from a checkpoint.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        scheduler: Scheduler,
        source: GroupSource,
        in_lockstep: bool = False,
        finished: Sequence[Group] = (),
    ) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.source = source
        self.in_lockstep = in_lockstep
        self._num_abandoned = 0
        self._abandoned_in_a_row = 0
        self._counted = (0, runner.num_retries)  # abandoned groups and retries that a step has reported
        self._running: dict[int, asyncio.Task[None]] = {}  # by group
        self._finished = {number_of(group): group for group in finished}
        self._has_news = asyncio.Event()
        self._failure: Exception | None = None
        self._idle_s = 0.0
        self._idle_since: float | None = None

    async def __aenter__(self) -> Rollouts:
        self._note_load()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.gather(*running, return_exceptions=True)
        self._running.clear()

    @property
    def finished(self) -> tuple[Group, ...]:
        """Groups that wait to be trained on, oldest first."""
        return tuple(self._finished[number] for number in sorted(self._finished))

    @property
    def idle_s(self) -> float:
        """Seconds of the event loop's clock, since the start, in which no group was being played."""
        since = self._idle_since
        return self._idle_s if since is None else self._idle_s + asyncio.get_running_loop().time() - since

    async def next_batch(self) -> Batch:
        """Admit what may start and wait for the groups of the next step.

        Raises:
            RolloutsFailed: so many groups in a row were given up that the fault must be in the set-up.
        """
        self._admit()
        while True:
            if self._failure is not None:
                raise self._failure
            if not (self.in_lockstep and self._running):
                batch = self.scheduler.take()
                if batch is not None:
                    return batch
            assert self._running, "the scheduler admits a group whenever nothing runs"
            self._has_news.clear()
            await self._has_news.wait()

    def take(self, batch: Batch) -> list[Group]:
        """Return the groups of a batch, in its order; they are no longer kept here."""
        return [self._finished.pop(ticket.group) for ticket in batch.tickets]

    def take_counts(self) -> dict[str, float]:
        """Return metrics of what went wrong since the last call."""
        abandoned, retries = self._num_abandoned, self.runner.num_retries
        counts = {
            "rollout/abandoned_groups": float(abandoned - self._counted[0]),
            "rollout/retries": float(retries - self._counted[1]),
        }
        self._counted = (abandoned, retries)
        return counts

    def _admit(self) -> None:
        """Start every group that the scheduler lets in."""
        while (ticket := self.scheduler.admit()) is not None:
            self._running[ticket.group] = asyncio.create_task(self._play(ticket))
        self._note_load()

    async def _play(self, ticket: Ticket) -> None:
        """Play one attempt; what must be played again starts at once, whatever the loop is waiting for."""
        ended = begun(f"group {ticket.group}", track=ROLLOUTS)
        try:
            group = await self.runner.run_group(self.source.group(ticket.group, attempt=ticket.attempt))
            del self._running[ticket.group]
            self._settle(ticket, group)
            self._admit()
        except Exception as error:
            self._failure = error
        finally:
            ended(None)
        self._has_news.set()

    def _settle(self, ticket: Ticket, group: Group) -> None:
        """Note the result; a group without a scored member is played again, in the end given up."""
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
        self._num_abandoned += 1
        self._abandoned_in_a_row += 1
        if self._abandoned_in_a_row >= MAX_ABANDONED_IN_A_ROW:
            raise RolloutsFailed(
                f"{self._abandoned_in_a_row} groups in a row failed {MAX_GROUP_ATTEMPTS} times each; the last error: "
                f"{group.trajectories[0].error}. Mend the cause, then go on with --resume"
            )

    def _note_load(self) -> None:
        """Start or stop the watch on idle time."""
        now = asyncio.get_running_loop().time()
        if not self._running:
            self._idle_since = now if self._idle_since is None else self._idle_since
        elif self._idle_since is not None:
            self._idle_s += now - self._idle_since
            self._idle_since = None
