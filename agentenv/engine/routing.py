"""Which replica serves which request: sessions stick, new ones go to the fewest tokens in flight. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

MAX_SESSIONS = 100_000
"""Sessions whose replica is remembered; beyond, the oldest ones may move, which costs them their prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A waiting request that got its place.

    Attributes:
        ticket: of the request.
        replica: index of who serves it.
        tokens: as they were asked for.
    """

    ticket: int
    replica: int
    tokens: int


@dataclass(slots=True, kw_only=True)
class _Waiting:
    ticket: int
    session_id: str
    tokens: int


@dataclass(slots=True)
class _Lane:
    """One replica: what it computes, how much it may, and who waits for it alone."""

    limit: float
    is_live: bool = True
    tokens: int = 0
    requests: int = 0

    def has_room(self, tokens: int) -> bool:
        # a request larger than the bound is served alone: the bound slows a run down and never stops it
        return self.is_live and (self.requests == 0 or self.tokens + tokens <= self.limit)


class Routing:
    """Places requests on replicas while their tokens in flight stay within each replica's bound.

    A request whose session has a replica waits for that one; any other takes the live replica with the fewest tokens in
    flight. Nobody overtakes: a replica that has room serves the oldest of those who wait for it or for anyone, and if
    that one does not fit yet, it drains.

    Args:
        num_replicas: all of them live at first.
        limit: tokens that one replica may have in flight; `set_limit` changes it.
        max_sessions: sessions that are remembered.
    """

    def __init__(self, num_replicas: int, *, limit: float = math.inf, max_sessions: int = MAX_SESSIONS) -> None:
        self.max_sessions = max_sessions
        self._lanes = [_Lane(limit) for _ in range(num_replicas)]
        self._home: dict[str, int] = {}
        self._own_line: list[deque[_Waiting]] = [deque() for _ in range(num_replicas)]
        self._shared_line: deque[_Waiting] = deque()
        self._next_ticket = 0

    @property
    def num_live(self) -> int:
        """Replicas that take requests."""
        return sum(lane.is_live for lane in self._lanes)

    @property
    def num_waiting(self) -> int:
        """Requests without a place."""
        return len(self._shared_line) + sum(map(len, self._own_line))

    def tokens_in_flight(self, replica: int) -> int:
        """Tokens of the requests that a replica computes."""
        return self._lanes[replica].tokens

    def requests_in_flight(self, replica: int) -> int:
        """Requests that a replica computes."""
        return self._lanes[replica].requests

    def home(self, session_id: str) -> int | None:
        """The replica that holds a session's prefix."""
        return self._home.get(session_id)

    def submit(self, session_id: str, *, tokens: int) -> tuple[int, int | None]:
        """Ask for a place.

        Args:
            session_id: the episode.
            tokens: prompt and expected output.

        Returns:
            A ticket, and the replica, or None where the request has to wait; a later call then returns its placement.
        """
        ticket = self._next_ticket
        self._next_ticket += 1
        home = self._home.get(session_id)
        if not self._shared_line:
            replica = self._least_loaded(tokens) if home is None else home
            if replica is not None and not self._own_line[replica] and self._lanes[replica].has_room(tokens):
                self._take(replica, session_id=session_id, tokens=tokens)
                return ticket, replica
        line = self._shared_line if home is None else self._own_line[home]
        line.append(_Waiting(ticket=ticket, session_id=session_id, tokens=tokens))
        return ticket, None

    def release(self, replica: int, *, tokens: int) -> list[Placement]:
        """Give a place back that `submit` or a placement gave, with the same number of tokens."""
        lane = self._lanes[replica]
        lane.tokens -= tokens
        lane.requests -= 1
        return self._fill() if self.num_waiting else []

    def cancel(self, ticket: int) -> list[Placement]:
        """Take a waiting request out of its line."""
        for line in (self._shared_line, *self._own_line):
            for waiting in line:
                if waiting.ticket == ticket:
                    line.remove(waiting)
                    return self._fill()  # it may have held up those behind it
        return []

    def forget(self, session_id: str) -> tuple[int | None, list[Placement]]:
        """Forget a session; requests of it that still wait for its replica may go anywhere.

        Returns:
            The replica that holds its prefix, and the requests that got a place by that.
        """
        home = self._home.pop(session_id, None)
        if home is None or not self.num_waiting:
            return home, []
        freed = [waiting for waiting in self._own_line[home] if waiting.session_id == session_id]
        self._own_line[home] = deque(w for w in self._own_line[home] if w.session_id != session_id)
        self._share(freed)
        return home, self._fill()

    def set_limit(self, replica: int, *, limit: float) -> list[Placement]:
        """Change how many tokens a replica may have in flight."""
        self._lanes[replica].limit = limit
        return self._fill()

    def take_out(self, replica: int) -> list[Placement]:
        """Give a replica nothing any more; its sessions and those who wait for it may go anywhere."""
        self._lanes[replica].is_live = False
        self._home = {session: home for session, home in self._home.items() if home != replica}
        self._share(self._own_line[replica])
        self._own_line[replica].clear()
        return self._fill()

    def put_back(self, replica: int) -> list[Placement]:
        """Let a replica serve again."""
        self._lanes[replica].is_live = True
        return self._fill()

    def _share(self, freed: Iterable[_Waiting]) -> None:
        """Let requests that waited for one replica go anywhere, each where its age puts it."""
        self._shared_line = deque(sorted((*self._shared_line, *freed), key=lambda waiting: waiting.ticket))

    def _least_loaded(self, tokens: int) -> int | None:
        """The live replica with room and nobody waiting for it that has the fewest tokens in flight."""
        best, fewest = None, math.inf
        for replica, lane in enumerate(self._lanes):
            if lane.tokens < fewest and lane.has_room(tokens) and not self._own_line[replica]:
                best, fewest = replica, lane.tokens
        return best

    def _take(self, replica: int, *, session_id: str, tokens: int) -> None:
        lane = self._lanes[replica]
        lane.tokens += tokens
        lane.requests += 1
        if session_id not in self._home:
            if len(self._home) >= self.max_sessions:
                del self._home[next(iter(self._home))]  # the oldest: dicts keep their order
            self._home[session_id] = replica

    def _fill(self) -> list[Placement]:
        """Place waiting requests, the oldest first, until none can be placed."""
        placed: list[Placement] = []
        while (found := self._next()) is not None:
            replica, waiting = found
            line = self._shared_line if self._is_shared(waiting) else self._own_line[replica]
            line.popleft()
            self._take(replica, session_id=waiting.session_id, tokens=waiting.tokens)
            placed.append(Placement(ticket=waiting.ticket, replica=replica, tokens=waiting.tokens))
        return placed

    def _next(self) -> tuple[int, _Waiting] | None:
        """The oldest request at the head of a line that fits, and who serves it."""
        best: tuple[int, int] | None = None
        found: tuple[int, _Waiting] | None = None
        for replica, lane in enumerate(self._lanes):
            head = self._head(replica)
            if head is not None and lane.has_room(head.tokens):
                key = (head.ticket, lane.tokens)
                if best is None or key < best:
                    best, found = key, (replica, head)
        return found

    def _head(self, replica: int) -> _Waiting | None:
        """Whom a replica serves next: the oldest of those who wait for it or for anyone."""
        own = self._own_line[replica][0] if self._own_line[replica] else None
        shared = self._shared_line[0] if self._shared_line else None
        # a session may have got its replica while another of its requests stood in the shared line
        if shared is not None and self._home.get(shared.session_id, replica) != replica:
            shared = None
        if own is None or shared is None:
            return own or shared
        return min(own, shared, key=lambda waiting: waiting.ticket)

    def _is_shared(self, waiting: _Waiting) -> bool:
        return bool(self._shared_line) and self._shared_line[0] is waiting
