"""A week of half hours: people, rooms and bookings, and the first time that suits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from agentenv.envs.worlds.desk import find_row
from agentenv.errors import ToolError

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
FIRST_SLOT, END_SLOT = 18, 34
"""Half hours since midnight: 9:00 to 17:00."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A room; no two have the same number of seats."""

    name: str
    seats: int
    has_projector: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """A meeting; `start` and `length` in half hours. One without a room is private time."""

    title: str
    room: str
    day: str
    start: int
    length: int
    people: tuple[str, ...]

    @property
    def end(self) -> int:
        """The half hour in which it is over."""
        return self.start + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a meeting needs.

    Attributes:
        people: who takes part.
        length: in half hours.
        days: on which it may be, in order.
        from_slot: half hour before which it must not begin.
        to_slot: half hour after which it must not end.
        needs_projector: of the room.
    """

    people: tuple[str, ...]
    length: int
    days: tuple[str, ...] = DAYS
    from_slot: int = FIRST_SLOT
    to_slot: int = END_SLOT
    needs_projector: bool = False


@dataclass(kw_only=True)
class Week:
    """Rooms, people and bookings."""

    rooms: dict[str, Room] = field(default_factory=dict)
    people: tuple[str, ...] = ()
    bookings: dict[str, Booking] = field(default_factory=dict)
    last_id: int = 100

    def copy(self) -> Week:
        """Return an independent copy."""
        return Week(rooms=self.rooms, people=self.people, bookings=dict(self.bookings), last_id=self.last_id)

    def snapshot(self) -> object:
        """Return the bookings without their ids."""
        return Counter(self.bookings.values())

    def add(self, booking: Booking) -> str:
        """Add a booking and return its id."""
        self.last_id += 1
        self.bookings[f"K{self.last_id}"] = booking
        return f"K{self.last_id}"

    def book_room(self, title: str, room: str, day: str, start: str, minutes: int, people: Sequence[str]) -> str:
        """Book a room for a meeting.

        Raises:
            ToolError: somebody or the room is taken, or a value is not known.
        """
        find_row(self.rooms, room, kind="room")
        known = dict.fromkeys(self.people)
        for name in people:
            if name not in known:
                find_row(dict.fromkeys(known, 1), name, kind="person")
        length = _half_hours(minutes)
        booking = Booking(
            title=title.strip(),
            room=room,
            day=day,
            start=slot_of(start),
            length=length,
            people=tuple(sorted(set(people))),
        )
        self._require_free(booking, but="")
        return self.add(booking)

    def move_booking(self, booking_id: str, day: str, start: str) -> str:
        """Move a meeting to another time, in its room.

        Raises:
            ToolError: somebody or the room is taken, or there is no such booking.
        """
        moved = replace(find_row(self.bookings, booking_id, kind="booking"), day=day, start=slot_of(start))
        self._require_free(moved, but=booking_id)
        self.bookings[booking_id] = moved
        return f"{moved.title} is on {day} from {clock(moved.start)} to {clock(moved.end)}"

    def cancel_booking(self, booking_id: str) -> str:
        """Remove a booking."""
        find_row(self.bookings, booking_id, kind="booking")
        del self.bookings[booking_id]
        return f"{booking_id} is cancelled"

    def first_time(self, need: Need, *, rooms: Sequence[str] = (), but: str = "") -> tuple[str, int, str] | None:
        """Return day, half hour and the smallest room of the first time that suits; None where none does.

        Args:
            need: of the meeting.
            rooms: names that are allowed; empty allows every one with enough seats.
            but: id of a booking that does not count, because it is the one that moves.
        """
        allowed = [room for room in self.rooms.values() if not rooms or room.name in rooms]
        fitting = [r for r in allowed if r.seats >= len(need.people) and (r.has_projector or not need.needs_projector)]
        for day in need.days:
            taken = [b for key, b in self.bookings.items() if b.day == day and key != but]
            for start in range(need.from_slot, need.to_slot - need.length + 1):
                at = [b for b in taken if b.start < start + need.length and start < b.end]
                if any(person in b.people for b in at for person in need.people):
                    continue
                free = [room for room in fitting if all(b.room != room.name for b in at)]
                if free:
                    return day, start, min(free, key=lambda room: room.seats).name
        return None

    def of_person(self, name: str) -> Iterator[Booking]:
        """Yield what somebody takes part in."""
        return (booking for booking in self.bookings.values() if name in booking.people)

    def _require_free(self, new: Booking, *, but: str) -> None:
        if new.start < FIRST_SLOT or new.end > END_SLOT:
            raise ToolError(f"meetings are between {clock(FIRST_SLOT)} and {clock(END_SLOT)}")
        for key, other in self.bookings.items():
            if key == but or other.day != new.day or other.start >= new.end or new.start >= other.end:
                continue
            if other.room == new.room:
                raise ToolError(
                    f"room {new.room} is taken on {new.day} from {clock(other.start)} to {clock(other.end)}"
                )
            both = sorted(set(other.people) & set(new.people))
            if both:
                raise ToolError(f"{both[0]} is busy on {new.day} from {clock(other.start)} to {clock(other.end)}")


def clock(slot: int) -> str:
    """Return a half hour as a time of day."""
    return f"{slot // 2:02d}:{30 * (slot % 2):02d}"


def slot_of(time: str) -> int:
    """Return the half hour of a time of day.

    Raises:
        ToolError: it is not a time on the full or half hour.
    """
    hours, mark, minutes = time.strip().partition(":")
    if mark and hours.isascii() and hours.isdigit() and len(hours) <= 2 and minutes in ("00", "30"):
        return 2 * int(hours) + (minutes == "30")
    raise ToolError(f'{time[:20]!r} is no time; write it like "09:00" or "13:30"')


def _half_hours(minutes: int) -> int:
    if minutes < 30 or minutes % 30 or minutes > 480:
        raise ToolError(f"{minutes} minutes; meetings take 30, 60, 90 ... minutes")
    return minutes // 30
