"""Sessions stick, new ones go where the fewest tokens are in flight, and nobody is lost, overtaken or overbooked."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentenv.engine.routing import Placement, Routing


def test_new_sessions_go_to_the_fewest_tokens_and_not_to_the_fewest_requests():
    routing = Routing(2)
    assert routing.submit("a", tokens=100) == (0, 0)
    assert routing.submit("b", tokens=30) == (1, 1)
    assert routing.submit("c", tokens=30) == (2, 1)
    assert routing.submit("d", tokens=30) == (3, 1)  # 3 requests, but 90 tokens against 100
    assert routing.submit("e", tokens=30) == (4, 1)
    assert routing.submit("f", tokens=30) == (5, 0)
    assert (routing.tokens_in_flight(0), routing.tokens_in_flight(1)) == (130, 120)


def test_a_session_stays_where_its_prefix_is_however_busy_that_replica():
    routing = Routing(2)
    routing.submit("a", tokens=100)
    assert routing.submit("a", tokens=500) == (1, 0)
    assert routing.submit("a", tokens=500) == (2, 0)
    assert routing.home("a") == 0


def test_a_session_that_ended_may_go_anywhere():
    routing = Routing(2)
    routing.submit("a", tokens=100)
    assert routing.forget("a") == (0, [])
    assert routing.forget("a") == (None, [])
    assert routing.submit("a", tokens=100) == (1, 1)


def test_what_still_waits_for_the_replica_of_a_session_that_ended_goes_elsewhere():
    routing = Routing(2, limit=100)
    routing.submit("a", tokens=100)
    turn, place = routing.submit("a", tokens=50)
    assert place is None
    assert routing.forget("a") == (0, [Placement(ticket=turn, replica=1, tokens=50)])
    assert routing.home("a") == 1


def test_what_does_not_fit_waits_in_order_and_small_ones_do_not_overtake():
    routing = Routing(1, limit=100)
    routing.submit("a", tokens=60)
    big, place = routing.submit("b", tokens=80)
    assert place is None
    small, place = routing.submit("c", tokens=10)  # would fit beside the first
    assert place is None
    assert routing.release(0, tokens=60) == [
        Placement(ticket=big, replica=0, tokens=80),
        Placement(ticket=small, replica=0, tokens=10),
    ]


def test_a_turn_of_a_session_waits_for_its_replica_while_others_go_elsewhere():
    routing = Routing(2, limit=100)
    routing.submit("a", tokens=90)
    routing.submit("b", tokens=10)
    turn, place = routing.submit("a", tokens=50)
    assert place is None
    assert routing.submit("c", tokens=50) == (3, 1)
    assert routing.release(1, tokens=10) == []
    assert routing.release(0, tokens=90) == [Placement(ticket=turn, replica=0, tokens=50)]


def test_a_request_larger_than_the_bound_is_served_alone():
    routing = Routing(1, limit=100)
    assert routing.submit("a", tokens=500) == (0, 0)
    second, place = routing.submit("b", tokens=1)
    assert place is None
    assert routing.release(0, tokens=500) == [Placement(ticket=second, replica=0, tokens=1)]


def test_a_replica_taken_out_loses_its_sessions_and_those_who_wait_for_it_go_elsewhere():
    routing = Routing(2, limit=100)
    routing.submit("a", tokens=90)  # replica 0
    turn, place = routing.submit("a", tokens=50)
    assert place is None
    assert routing.take_out(0) == [Placement(ticket=turn, replica=1, tokens=50)]
    assert routing.home("a") == 1
    assert routing.num_live == 1
    routing.release(0, tokens=90)  # what was in flight there ends whenever it ends
    assert routing.submit("b", tokens=10) == (2, 1)
    routing.put_back(0)
    assert routing.submit("c", tokens=10) == (3, 0)


def test_a_raised_bound_lets_those_in_who_wait():
    routing = Routing(1, limit=100)
    routing.submit("a", tokens=90)
    waiting, _ = routing.submit("b", tokens=90)
    assert routing.set_limit(0, limit=200) == [Placement(ticket=waiting, replica=0, tokens=90)]


def test_who_gives_up_frees_those_behind():
    routing = Routing(1, limit=100)
    routing.submit("a", tokens=60)
    big, _ = routing.submit("b", tokens=80)
    small, _ = routing.submit("c", tokens=10)
    assert routing.cancel(big) == [Placement(ticket=small, replica=0, tokens=10)]
    assert routing.cancel(big) == []


def test_the_memory_of_sessions_is_bounded():
    routing = Routing(1, max_sessions=3)
    for name in "abcd":
        routing.submit(name, tokens=1)
    assert [routing.home(name) for name in "abcd"] == [None, 0, 0, 0]


@dataclass
class Asked:
    session: str
    tokens: int
    replica: int | None


class Game(RuleBasedStateMachine):
    """Requests come, end and give up, replicas go and come, bounds move; the books are kept twice."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = [100.0, 100.0, 100.0]
        self.routing = Routing(3, limit=100.0)
        self.live = {0, 1, 2}
        self.asked: dict[int, Asked] = {}

    def note(self, placements: list[Placement]) -> None:
        tickets = [placement.ticket for placement in placements]
        assert tickets == sorted(tickets)
        for placement in placements:
            asked = self.asked[placement.ticket]
            assert (asked.replica, placement.tokens) == (None, asked.tokens)
            asked.replica = placement.replica
            self.check_placed(asked)

    def check_placed(self, asked: Asked) -> None:
        assert asked.replica is not None
        assert asked.replica in self.live
        assert self.routing.home(asked.session) == asked.replica
        # within the bound, or alone
        is_alone = self.routing.requests_in_flight(asked.replica) == 1
        assert is_alone or self.routing.tokens_in_flight(asked.replica) <= self.limits[asked.replica]

    @rule(session=st.sampled_from("abcdefgh"), tokens=st.integers(1, 150))
    def submit(self, session: str, tokens: int) -> None:
        home = self.routing.home(session)
        ticket, replica = self.routing.submit(session, tokens=tokens)
        assert ticket not in self.asked
        self.asked[ticket] = Asked(session, tokens, replica)
        if replica is not None:
            assert home in (None, replica)
            self.check_placed(self.asked[ticket])

    @precondition(lambda self: any(asked.replica is not None for asked in self.asked.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([t for t, asked in self.asked.items() if asked.replica is not None]))
        asked = self.asked.pop(ticket)
        assert asked.replica is not None
        self.note(self.routing.release(asked.replica, tokens=asked.tokens))

    @precondition(lambda self: any(asked.replica is None for asked in self.asked.values()))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([t for t, asked in self.asked.items() if asked.replica is None]))
        del self.asked[ticket]
        self.note(self.routing.cancel(ticket))

    @rule(session=st.sampled_from("abcdefgh"))
    def end_session(self, session: str) -> None:
        home = self.routing.home(session)
        forgotten, placements = self.routing.forget(session)
        assert forgotten == home
        self.note(placements)

    @rule(replica=st.integers(0, 2))
    def take_out(self, replica: int) -> None:
        self.live.discard(replica)
        self.note(self.routing.take_out(replica))
        assert replica not in {self.routing.home(session) for session in "abcdefgh"}

    @rule(replica=st.integers(0, 2))
    def put_back(self, replica: int) -> None:
        self.live.add(replica)
        self.note(self.routing.put_back(replica))

    @rule(replica=st.integers(0, 2), limit=st.integers(1, 300))
    def set_limit(self, replica: int, limit: int) -> None:
        self.limits[replica] = limit
        self.note(self.routing.set_limit(replica, limit=limit))

    @invariant()
    def the_books_agree(self) -> None:
        for replica in range(3):
            placed = [asked for asked in self.asked.values() if asked.replica == replica]
            assert self.routing.tokens_in_flight(replica) == sum(asked.tokens for asked in placed)
            assert self.routing.requests_in_flight(replica) == len(placed)
        assert self.routing.num_waiting == sum(asked.replica is None for asked in self.asked.values())
        assert self.routing.num_live == len(self.live)

    @invariant()
    def nobody_waits_for_an_idle_pool(self) -> None:
        """The oldest of all who wait would be served by any live replica that does nothing, if it may go there."""
        waiting = {ticket: asked for ticket, asked in self.asked.items() if asked.replica is None}
        if not waiting:
            return
        oldest = waiting[min(waiting)]
        home = self.routing.home(oldest.session)
        may_go_to = self.live if home is None else {home}
        assert all(self.routing.requests_in_flight(replica) > 0 for replica in may_go_to)


TestGame = Game.TestCase
TestGame.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("limit", [50.0, math.inf])
def test_a_bound_that_never_moves_is_never_exceeded_by_more_than_one_request(limit):
    routing = Routing(2, limit=limit)
    placed = [routing.submit(str(i), tokens=20)[1] for i in range(10)]
    expected = 4 if math.isfinite(limit) else 10  # two of 20 tokens fit into 50, on each of two replicas
    assert sum(place is not None for place in placed) == expected
