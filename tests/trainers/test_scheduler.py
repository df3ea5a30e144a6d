"""The scheduler's promises: bounded age, nothing twice, nobody starves, progress after crashes, exact resumption."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentenv.errors import CheckpointError, UsageError
from agentenv.trainers.scheduler import Batch, Phase, Scheduler, Ticket

PHASES: tuple[Phase, ...] = ("running", "waiting", "finished")


def admit_all(scheduler: Scheduler) -> list[Ticket]:
    out: list[Ticket] = []
    while (ticket := scheduler.admit()) is not None:
        out.append(ticket)
    return out


def groups(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [ticket.group for ticket in batch.tickets]


def saved_and_restored(scheduler: Scheduler) -> Scheduler:
    return Scheduler.from_json(json.loads(json.dumps(scheduler.to_json())))


def test_at_most_s_plus_one_steps_worth_of_groups_are_active():
    scheduler = Scheduler(max_staleness=2, groups_per_step=4)

    assert [ticket.group for ticket in admit_all(scheduler)] == list(range(12))
    assert scheduler.num_active == 12


def test_a_place_is_freed_when_the_new_weights_are_live_and_not_before():
    scheduler = Scheduler(max_staleness=0, groups_per_step=2)
    for ticket in admit_all(scheduler):
        assert scheduler.finish(ticket)

    assert groups(scheduler.take()) == [0, 1]
    assert scheduler.admit() is None
    assert scheduler.weights_live(1) == 2
    assert [(ticket.group, ticket.version) for ticket in admit_all(scheduler)] == [(2, 1), (3, 1)]


def test_a_strict_queue_waits_for_its_oldest_group():
    scheduler = Scheduler(max_staleness=1, groups_per_step=2, window=1)
    tickets = admit_all(scheduler)
    for ticket in tickets[1:]:
        scheduler.finish(ticket)

    assert scheduler.take() is None
    scheduler.finish(tickets[0])
    assert groups(scheduler.take()) == [0, 1]


def test_a_window_lets_later_groups_pass_but_only_within_it():
    scheduler = Scheduler(max_staleness=2, groups_per_step=2, window=3)
    tickets = admit_all(scheduler)
    for ticket in tickets[1:]:
        scheduler.finish(ticket)

    # while 0 is unfinished, only 1 and 2 may pass it
    assert groups(scheduler.take()) == [1, 2]
    assert scheduler.take() is None
    scheduler.finish(tickets[0])
    assert groups(scheduler.take()) == [0, 3]


def test_the_trainer_waits_for_a_slow_group_and_does_not_drop_it_for_its_age():
    scheduler = Scheduler(max_staleness=1, groups_per_step=2, window=3)
    slow, *others = admit_all(scheduler)
    for ticket in others:
        scheduler.finish(ticket)
    assert groups(scheduler.take()) == [1, 2]
    scheduler.weights_live(1)
    for ticket in admit_all(scheduler):
        scheduler.finish(ticket)

    assert scheduler.take() is None  # 3, 4 and 5 lie outside the window of 0
    scheduler.finish(slow)
    assert groups(scheduler.take()) == [0, 3]


def test_the_bound_on_age_is_attained_by_an_adversary():
    # S = 1, P = 2, W = 3: group 3 is the last one that version 0 admits. 4 and 5 come with version 1 and pass it.
    scheduler = Scheduler(max_staleness=1, groups_per_step=2, window=3)
    tickets = admit_all(scheduler)
    for ticket in tickets[:2]:
        scheduler.finish(ticket)
    assert groups(scheduler.take()) == [0, 1]
    scheduler.weights_live(1)
    scheduler.finish(tickets[2])
    later = admit_all(scheduler)
    for ticket in later:
        scheduler.finish(ticket)
    assert groups(scheduler.take()) == [2, 4]
    scheduler.weights_live(2)
    scheduler.finish(tickets[3])

    third = scheduler.take()

    assert groups(third) == [3, 5]
    assert third is not None
    assert third.ages == (2, 1)
    # S + ceil((W - 1) / P) = 1 + ceil(2 / 2)
    assert max(third.ages) == scheduler.max_age == 2


def test_a_failed_group_keeps_its_place_and_is_retried_before_anything_new():
    scheduler = Scheduler(max_staleness=1, groups_per_step=2)
    tickets = admit_all(scheduler)
    for ticket in tickets[:2]:
        scheduler.finish(ticket)
    scheduler.take()
    assert scheduler.fail(tickets[3])
    assert scheduler.num_active == 4
    scheduler.weights_live(1)

    assert scheduler.admit() == Ticket(group=3, attempt=1, version=1)
    assert scheduler.admit() == Ticket(group=4, attempt=0, version=1)


def test_the_result_of_an_attempt_that_was_given_up_is_refused():
    scheduler = Scheduler(max_staleness=0, groups_per_step=1)
    first = scheduler.admit()
    assert first is not None
    assert scheduler.fail(first)
    assert not scheduler.finish(first)  # it arrives while the group waits
    second = scheduler.admit()
    assert second is not None
    assert not scheduler.finish(first)  # and again while the retry runs
    assert not scheduler.fail(first)

    assert scheduler.finish(second)
    assert not scheduler.finish(second)
    assert groups(scheduler.take()) == [0]
    assert not scheduler.finish(second)
    assert scheduler.take() is None


def test_an_abandoned_group_frees_its_place_and_nothing_waits_for_it():
    scheduler = Scheduler(max_staleness=0, groups_per_step=2)
    hopeless, other = admit_all(scheduler)
    scheduler.finish(other)

    assert scheduler.abandon(hopeless)
    replacement = scheduler.admit()

    assert replacement is not None
    assert replacement.group == 2
    scheduler.finish(replacement)
    assert groups(scheduler.take()) == [1, 2]
    assert not scheduler.abandon(hopeless)


def test_weights_may_skip_versions_but_never_run_ahead_or_back():
    scheduler = Scheduler(max_staleness=2, groups_per_step=1)
    for ticket in admit_all(scheduler):
        scheduler.finish(ticket)
    scheduler.take()
    scheduler.take()

    with pytest.raises(UsageError, match=r"version 3 .* expected 1\.\.2"):
        scheduler.weights_live(3)
    assert scheduler.weights_live(2) == 2
    with pytest.raises(UsageError, match="version 2 cannot go live"):
        scheduler.weights_live(2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_staleness": -1, "groups_per_step": 1},
        {"max_staleness": 0, "groups_per_step": 0},
        {"max_staleness": 0, "groups_per_step": 1, "window": 0},
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, int]):
    with pytest.raises(UsageError, match="at least"):
        Scheduler(**arguments)


def test_a_ticket_that_was_never_given_out_is_refused():
    with pytest.raises(UsageError, match="never admitted"):
        Scheduler(max_staleness=0, groups_per_step=1).finish(Ticket(group=0, attempt=0, version=0))


def test_a_state_of_another_format_or_with_gaps_is_refused():
    with pytest.raises(CheckpointError, match="format None"):
        Scheduler.from_json({})
    state = Scheduler(max_staleness=0, groups_per_step=1).to_json()
    del state["next_group"]
    with pytest.raises(CheckpointError, match="'next_group'"):
        Scheduler.from_json(state)


def test_after_a_restart_finished_groups_stay_and_running_ones_are_played_again_as_the_same_attempt():
    scheduler = Scheduler(max_staleness=0, groups_per_step=3)
    first, second, third = admit_all(scheduler)
    scheduler.finish(second)
    scheduler.fail(third)

    restored = saved_and_restored(scheduler)

    assert restored.tickets("finished") == (second,)
    assert admit_all(restored) == [first, Ticket(group=2, attempt=1, version=0)]
    assert saved_and_restored(restored).to_json() == saved_and_restored(scheduler).to_json()


@settings(max_examples=60, deadline=None)
@given(groups_per_step=st.integers(1, 5), window=st.integers(1, 12), seed=st.integers(0, 2**16))
def test_staleness_zero_is_the_synchronous_loop_in_the_same_order(groups_per_step: int, window: int, seed: int):
    chance = random.Random(seed)
    scheduler = Scheduler(max_staleness=0, groups_per_step=groups_per_step, window=window)
    running: list[Ticket] = []
    for step in range(6):
        while (batch := scheduler.take()) is None:
            running += admit_all(scheduler)
            ticket = running.pop(chance.randrange(len(running)))
            assert ticket.version == step
            (scheduler.fail if chance.random() < 0.2 else scheduler.finish)(ticket)

        assert groups(batch) == list(range(step * groups_per_step, (step + 1) * groups_per_step))
        assert batch.ages == (0,) * groups_per_step
        assert scheduler.take() is None
        assert scheduler.admit() is None
        scheduler.weights_live(step + 1)


@settings(max_examples=60, deadline=None)
@given(max_staleness=st.integers(0, 3), groups_per_step=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_a_run_interrupted_anywhere_trains_on_the_same_groups_in_the_same_order(
    max_staleness: int, groups_per_step: int, seed: int
):
    chance = random.Random(seed)
    scheduler = Scheduler(max_staleness=max_staleness, groups_per_step=groups_per_step)
    order: list[int] = []
    running: list[Ticket] = []
    while len(order) < 40:
        running += admit_all(scheduler)
        if running and chance.random() < 0.7:
            scheduler.finish(running.pop(chance.randrange(len(running))))
        if (batch := scheduler.take()) is not None:
            order += groups(batch)
            scheduler.weights_live(batch.step + 1)
        if chance.random() < 0.1:
            scheduler, running = saved_and_restored(scheduler), []

    assert order == list(range(len(order)))


class Run(RuleBasedStateMachine):
    """Random crashes, timeouts, late results, restarts and slow weight updates, in any order."""

    @initialize(max_staleness=st.integers(0, 3), groups_per_step=st.integers(1, 4), window=st.integers(1, 9))
    def start(self, max_staleness: int, groups_per_step: int, window: int):
        self.scheduler = Scheduler(max_staleness=max_staleness, groups_per_step=groups_per_step, window=window)
        self.running: list[Ticket] = []
        self.given_up: list[Ticket] = []
        self.consumed: list[int] = []
        self.abandoned: set[int] = set()

    @rule()
    def admit(self):
        ticket = self.scheduler.admit()
        if ticket is not None:
            assert ticket.version == self.scheduler.live_version
            self.running.append(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject):
        assert self.scheduler.finish(self.pick(data))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def crash_or_time_out(self, data: st.DataObject):
        ticket = self.pick(data)
        assert self.scheduler.fail(ticket)
        self.given_up.append(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject):
        ticket = self.pick(data)
        assert self.scheduler.abandon(ticket)
        self.given_up.append(ticket)
        self.abandoned.add(ticket.group)

    @precondition(lambda self: self.given_up)
    @rule(data=st.data())
    def late_result(self, data: st.DataObject):
        ticket = data.draw(st.sampled_from(self.given_up))
        if ticket not in self.running:  # after a restart the same attempt may be played again
            assert not self.scheduler.finish(ticket)

    @rule()
    def take(self):
        batch = self.scheduler.take()
        if batch is not None:
            self.check(batch)

    @precondition(lambda self: self.scheduler.live_version < self.scheduler.num_steps)
    @rule(data=st.data())
    def publish(self, data: st.DataObject):
        lowest, highest = self.scheduler.live_version + 1, self.scheduler.num_steps
        self.scheduler.weights_live(data.draw(st.integers(lowest, highest)))

    @rule()
    def restart(self):
        self.scheduler = saved_and_restored(self.scheduler)
        self.running.clear()

    @invariant()
    def admission_is_bounded(self):
        capacity = (self.scheduler.max_staleness + 1) * self.scheduler.groups_per_step
        assert 0 <= self.scheduler.num_active <= capacity

    def teardown(self):
        """Liveness: whatever has happened, all that is open is trained on in the next steps once episodes succeed."""
        if not hasattr(self, "scheduler"):
            return
        open_groups = {ticket.group for phase in PHASES for ticket in self.scheduler.tickets(phase)}
        for _ in range(-(-len(open_groups) // self.scheduler.groups_per_step)):
            if self.scheduler.live_version < self.scheduler.num_steps:
                self.scheduler.weights_live(self.scheduler.num_steps)
            self.running += admit_all(self.scheduler)
            while self.running:
                assert self.scheduler.finish(self.running.pop())
            batch = self.scheduler.take()
            assert batch is not None, "no progress although every group has finished"
            self.check(batch)
        assert open_groups <= set(self.consumed), "a group starved"

    def pick(self, data: st.DataObject) -> Ticket:
        return self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))

    def check(self, batch: Batch):
        assert len(batch.tickets) == self.scheduler.groups_per_step
        assert groups(batch) == sorted(groups(batch))
        assert not set(groups(batch)) & (set(self.consumed) | self.abandoned)
        assert all(0 <= age <= self.scheduler.max_age for age in batch.ages)
        self.consumed += groups(batch)


Run.TestCase.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
TestRun = Run.TestCase
