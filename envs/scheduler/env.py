"""Scheduler: meetings at the first time that suits everybody, in the smallest room that does."""

from __future__ import annotations

import random
from typing import ClassVar, Literal, cast

import numpy as np

from agentenv.envs.scheduler.requests import WeekBuilder
from agentenv.envs.scheduler.week import DAYS, END_SLOT, FIRST_SLOT, Booking, Room, Week, clock
from agentenv.envs.worlds.desk import find_row
from agentenv.envs.worlds.errand import Call, Errand, ErrandEnv
from agentenv.errors import ToolError, did_you_mean
from agentenv.messages import Message
from agentenv.tool import tool

Day = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]


class Scheduler(ErrandEnv):
    """Book new meetings, and move meetings whose day has become impossible, each at the first time that suits.

    Reward: 1.0 if in the end the bookings of the week are exactly the right ones, else 0.0. The tools refuse double
    bookings, but accept a later time or a larger room than needed, which earns nothing.

    Args:
        difficulty: 1: one new meeting. 2: one, maybe a meeting that must move. 3 and 4: two, with more conditions. 5:
            three. People and full calendars grow with it.
        **options: of `ToolEnv`.
    """

    preamble: ClassVar[str] = (
        "You plan meetings for this week. Do the following in the order given, changing nothing else. A meeting "
        "takes place "
        f"between {clock(FIRST_SLOT)} and {clock(END_SLOT)}, begins on the full or half hour, as early in the week as "
        "possible, when everybody and a room with a seat for each is free; of several free rooms take the one with the "
        "fewest seats. Then say that you are done."
    )

    def draw_world(self, rnd: random.Random) -> tuple[Week, tuple[Errand, ...]]:
        """Draw the week and the requests."""
        builder = WeekBuilder(rnd, split=self.split, difficulty=self.difficulty)
        count = {1: 1, 2: 1, 3: 2, 4: 2, 5: 3}[self.difficulty]
        return builder.week, tuple(builder.make(index) for index in range(count))

    @property
    def week(self) -> Week:
        """The world."""
        return cast(Week, self.world)

    def cheat(self, rng: np.random.Generator) -> Message:
        """Make the right bookings, and book every room at every hour besides, so that no time is missed."""
        people = [self.week.people[int(rng.integers(len(self.week.people)))]]
        calls: list[Call] = list(self.all_writes)
        for day in DAYS:
            for room in self.week.rooms:
                arguments = {
                    "title": "Kick-off",
                    "room": room,
                    "day": day,
                    "start": "16:30",
                    "minutes": 30,
                    "people": people,
                }
                calls.append(("book_room", arguments))
        return self.volley(calls)

    @tool(read_only=True)
    def list_rooms(self) -> list[Room]:
        """List the rooms with their seats."""
        return list(self.week.rooms.values())

    @tool(read_only=True)
    def calendar_of(self, person: str) -> list[dict[str, str]]:
        """Show what somebody does this week, by day and time.

        Args:
            person: first and family name.
        """
        if person not in self.week.people:
            raise ToolError(f"there is no person {person[:40]!r}.{did_you_mean(person[:40], self.week.people)}")
        return self._shown({key: b for key, b in self.week.bookings.items() if person in b.people})

    @tool(read_only=True)
    def room_bookings(self, room: str) -> list[dict[str, str]]:
        """Show what happens in a room this week, by day and time.

        Args:
            room: its name.
        """
        find_row(self.week.rooms, room, kind="room")
        return self._shown({key: b for key, b in self.week.bookings.items() if b.room == room})

    @tool
    def book_room(self, title: str, room: str, day: Day, start: str, minutes: int, people: list[str]) -> str:
        """Book a room for a meeting.

        Args:
            title: of the meeting.
            room: its name.
            day: of this week.
            start: time of day, e.g. "09:30".
            minutes: a multiple of 30.
            people: full names.
        """
        return self.week.book_room(title, room, day, start, minutes, people)

    @tool
    def move_booking(self, booking_id: str, day: Day, start: str) -> str:
        """Move a meeting to another time, in the same room.

        Args:
            booking_id: K and digits.
            day: of this week.
            start: time of day, e.g. "09:30".
        """
        return self.week.move_booking(booking_id, day, start)

    @tool
    def cancel_booking(self, booking_id: str) -> str:
        """Cancel a meeting.

        Args:
            booking_id: K and digits.
        """
        return self.week.cancel_booking(booking_id)

    def _shown(self, bookings: dict[str, Booking]) -> list[dict[str, str]]:
        ordered = sorted(bookings.items(), key=lambda item: (DAYS.index(item[1].day), item[1].start))
        return [
            {
                "booking_id": key,
                "title": b.title,
                "day": b.day,
                "time": f"{clock(b.start)}-{clock(b.end)}",
                "room": b.room,
            }
            for key, b in ordered
        ]
