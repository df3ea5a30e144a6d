"""What is asked of the scheduler: new meetings with conditions, and meetings that must move."""

from __future__ import annotations

import random

from agentenv.envs.scheduler.week import DAYS, END_SLOT, FIRST_SLOT, Booking, Need, Room, Week, clock
from agentenv.envs.worlds.errand import Call, Errand
from agentenv.envs.worlds.people import draw_people
from agentenv.splits import Split

_ROOMS = ("Amber", "Birch", "Cobalt", "Denim", "Ember")
_TITLES = (
    "Kick-off",
    "Review",
    "Planning",
    "Interview",
    "Demo",
    "Workshop",
    "Audit",
    "Training",
    "Briefing",
    "Forecast",
)


class WeekBuilder:
    """Fills a week and makes requests, each solved on top of the ones before.

    Args:
        rnd: source of all chance.
        split: whose names are used.
        difficulty: 1 to 5: more people, fuller calendars, more conditions.
    """

    def __init__(self, rnd: random.Random, *, split: Split, difficulty: int) -> None:
        self.rnd, self.difficulty = rnd, difficulty
        people = tuple(sorted(p.name for p in draw_people(rnd, split=split, count=3 + difficulty)))
        seats = rnd.sample(range(2, 12), 3)
        self.rooms = [
            Room(name=name, seats=count, has_projector=rnd.random() < 0.6)
            for name, count in zip(rnd.sample(_ROOMS, 4), [*seats, 14], strict=True)
        ]
        self.rooms[-1] = Room(name=self.rooms[-1].name, seats=14, has_projector=True)
        self.week = Week(rooms={room.name: room for room in self.rooms}, people=people)
        self.titles = rnd.sample(_TITLES, len(_TITLES))
        for _ in range(6 + 4 * difficulty):
            self._meeting(length=rnd.randrange(1, 5))
        for name in people:
            for _ in range(2 + difficulty):
                self._private(name)
        self.solved = self.week.copy()
        self.away: set[tuple[str, str]] = set()

    def make(self, index: int) -> Errand:
        """Make the request with that number; from difficulty 2 on some are meetings that must move."""
        errand = None
        while errand is None:  # a full week or an absence may rule a request out
            moves = self.difficulty >= 2 and self.rnd.random() < 0.4
            errand = self._moved(index) if moves else self._new(index)
        for name, arguments in errand.writes:
            getattr(self.solved, name)(**arguments)
        return errand

    def _new(self, index: int) -> Errand | None:
        rnd, title = self.rnd, self.titles[-1 - index]
        people = tuple(sorted(rnd.sample(self.week.people, rnd.randrange(2, min(2 + self.difficulty, 5) + 1))))
        need, told = self._conditions(people, length=rnd.randrange(1, 5))
        found = self.solved.first_time(need)
        if found is None or self._is_away(people, found[0]):
            return None
        day, start, room = found
        arguments: dict[str, object] = {
            "title": title,
            "room": room,
            "day": day,
            "start": clock(start),
            "minutes": 30 * need.length,
            "people": list(people),
        }
        return Errand(
            text=f'Book "{title}" for {30 * need.length} minutes with {_joined(people)}{told}.',
            reads=(("list_rooms", {}), *self._looks(people), *self._rooms_up_to(room, seats=len(people))),
            writes=(("book_room", arguments),),
        )

    def _moved(self, index: int) -> Errand | None:
        meetings = [(key, b) for key, b in self.week.bookings.items() if b.room and self.solved.bookings.get(key) == b]
        if not meetings:
            return None
        key, meeting = self.rnd.choice(meetings)
        absent, place = self.rnd.choice(meeting.people), DAYS.index(meeting.day)
        later = DAYS[place + 1 :]
        need = Need(people=meeting.people, length=meeting.length, days=later)
        found = self.solved.first_time(need, rooms=[meeting.room], but=key)
        if found is None or self._is_away(meeting.people, found[0]) or self._was_booked(absent, meeting.day):
            return None
        day, start, _ = found
        self.away.add((absent, meeting.day))
        return Errand(
            text=(
                f'{absent} is away on {meeting.day}. Move "{meeting.title}" ({meeting.day}, {clock(meeting.start)}) '
                f"to the "
                "first time on a later day of the week in the same room."
            ),
            reads=(*self._looks(meeting.people), ("room_bookings", {"room": meeting.room})),
            writes=(("move_booking", {"booking_id": key, "day": day, "start": clock(start)}),),
        )

    def _conditions(self, people: tuple[str, ...], *, length: int) -> tuple[Need, str]:
        """Return what a meeting needs, and how it is said."""
        rnd, told = self.rnd, ""
        days, from_slot, to_slot, projector = DAYS, FIRST_SLOT, END_SLOT, False
        kinds = rnd.sample(["day", "from", "to", "projector"], min(self.difficulty - 1, 3))
        if "day" in kinds:
            banned = rnd.choice(DAYS)
            days, told = tuple(day for day in DAYS if day != banned), f"{told}, not on {banned}"
        if "from" in kinds:
            from_slot = rnd.randrange(20, 26)
            told = f"{told}, not before {clock(from_slot)}"
        if "to" in kinds:
            to_slot = rnd.randrange(30, END_SLOT)
            told = f"{told}, over by {clock(to_slot)}"
        if "projector" in kinds:
            projector, told = True, f"{told}, in a room with a projector"
        need = Need(
            people=people, length=length, days=days, from_slot=from_slot, to_slot=to_slot, needs_projector=projector
        )
        return need, told

    def _is_away(self, people: tuple[str, ...], day: str) -> bool:
        """True if an earlier request said that one of them is away on that day."""
        return any((name, day) in self.away for name in people)

    def _was_booked(self, name: str, day: str) -> bool:
        """True if an earlier request put somebody into a meeting on that day."""
        old = self.week.bookings
        return any(b.day == day and old.get(key) != b for key, b in self.solved.bookings.items() if name in b.people)

    def _rooms_up_to(self, room: str, *, seats: int) -> tuple[Call, ...]:
        """An expert looks at every room that is large enough, up to the one that is free."""
        names = [r.name for r in self.rooms if seats <= r.seats <= self.week.rooms[room].seats]
        return tuple(("room_bookings", {"room": name}) for name in names)

    def _looks(self, people: tuple[str, ...]) -> tuple[Call, ...]:
        return tuple(("calendar_of", {"person": name}) for name in people)

    def _meeting(self, *, length: int) -> None:
        rnd = self.rnd
        room, day = rnd.choice(self.rooms), rnd.choice(DAYS)
        people = tuple(sorted(rnd.sample(self.week.people, 2)))
        need = Need(people=people, length=length, days=(day,), from_slot=rnd.randrange(FIRST_SLOT, END_SLOT - length))
        found = self.week.first_time(need, rooms=[room.name])
        if found is not None:
            title = f"{rnd.choice(_TITLES[:4])} {len(self.week.bookings) + 1}"
            self.week.add(Booking(title=title, room=room.name, day=day, start=found[1], length=length, people=people))

    def _private(self, name: str) -> None:
        start = self.rnd.randrange(FIRST_SLOT, END_SLOT - 2)
        day = self.rnd.choice(DAYS)
        if all(b.day != day or b.end <= start or b.start >= start + 2 for b in self.week.of_person(name)):
            self.week.add(Booking(title="private", room="", day=day, start=start, length=2, people=(name,)))


def _joined(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
