"""The airline's database: travellers, flights and bookings, and the changes that the desk may make."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Literal

from agentenv.envs.worlds.desk import find_row
from agentenv.envs.worlds.people import Person, draw_people
from agentenv.errors import ToolError
from agentenv.splits import Split

Fare = Literal["basic", "standard", "flex"]
FARES: tuple[Fare, ...] = ("basic", "standard", "flex")
CITIES = ("Oslo", "Lisbon", "Vienna", "Athens", "Dublin", "Warsaw", "Geneva", "Riga")

CHANGE_FEE = 4500  # cents, of the fare standard
FREE_BAGS = {"basic": 0, "standard": 1, "flex": 2}
BAG_PRICE = 3000  # cents
MAX_BAGS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Traveller:
    """Somebody who flies."""

    member_id: str
    name: str
    born: str
    booking_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A flight; prices in cents by fare."""

    flight_id: str
    origin: str
    destination: str
    day: str
    departs: str
    arrives: str
    seats: int
    prices: tuple[int, int, int]

    def price(self, fare: str) -> int:
        """Return the price of a fare in cents."""
        return self.prices[FARES.index(fare)]  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """A seat on a flight."""

    member_id: str
    flight_id: str
    fare: str
    bags: int
    status: str = "booked"


@dataclass(kw_only=True)
class Airline:
    """All tables, by id."""

    today: date
    travellers: dict[str, Traveller]
    flights: dict[str, Flight]
    bookings: dict[str, Booking]

    def copy(self) -> Airline:
        """Return an independent copy; rows are frozen, so tables alone are copied."""
        return Airline(
            today=self.today,
            travellers=dict(self.travellers),
            flights=dict(self.flights),
            bookings=dict(self.bookings),
        )

    def __eq__(self, other: object) -> bool:
        """Compare bookings without the ids of new ones; nothing else can change."""
        return isinstance(other, Airline) and Counter(self.bookings.values()) == Counter(other.bookings.values())

    __hash__ = None  # type: ignore[assignment]

    def day(self, days: int) -> str:
        """Return the date some days from today."""
        return (self.today + timedelta(days=days)).isoformat()

    def book_flight(self, member_id: str, flight_id: str, fare: str, bags: int) -> str:
        """Book a seat and return the id of the booking."""
        find_row(self.travellers, member_id, kind="traveller")
        find_row(self.flights, flight_id, kind="flight")
        if not 0 <= bags <= MAX_BAGS:
            raise ToolError(f"{bags} bags; 0 to {MAX_BAGS} are allowed")
        key = f"Q{1 + max((int(key[1:]) for key in self.bookings), default=10000)}"
        self.bookings[key] = Booking(member_id=member_id, flight_id=flight_id, fare=fare, bags=bags)
        return f"booked as {key}"

    def change_flight(self, booking_id: str, flight_id: str) -> Booking:
        """Put a booking on another flight."""
        find_row(self.flights, flight_id, kind="flight")
        return self._update(booking_id, replace(self._booking(booking_id), flight_id=flight_id))

    def cancel_booking(self, booking_id: str) -> Booking:
        """Cancel a booking."""
        return self._update(booking_id, replace(self._booking(booking_id), status="cancelled"))

    def set_bags(self, booking_id: str, bags: int) -> Booking:
        """Set the number of bags of a booking."""
        if not 0 <= bags <= MAX_BAGS:
            raise ToolError(f"{bags} bags; 0 to {MAX_BAGS} are allowed")
        return self._update(booking_id, replace(self._booking(booking_id), bags=bags))

    def flights_of(self, origin: str, destination: str, day: str) -> list[Flight]:
        """Return the flights of a day between two cities, by departure."""
        found = [f for f in self.flights.values() if (f.origin, f.destination, f.day) == (origin, destination, day)]
        return sorted(found, key=lambda flight: flight.departs)

    def _booking(self, booking_id: str) -> Booking:
        return find_row(self.bookings, booking_id, kind="booking")

    def _update(self, booking_id: str, booking: Booking) -> Booking:
        self.bookings[booking_id] = booking
        return booking


def draw_airline(rnd: random.Random, *, split: Split, num_travellers: int) -> tuple[Airline, Traveller, Person]:
    """Draw an airline, and the traveller who calls; the others have bookings too."""
    airline = Airline(
        today=date(2025, 1, 1) + timedelta(days=rnd.randrange(300)), travellers={}, flights={}, bookings={}
    )
    people = draw_people(rnd, split=split, count=num_travellers)
    for person in people:
        member_id = fresh_id(rnd, "M", airline.travellers)
        born = date(1950, 1, 1) + timedelta(days=rnd.randrange(19000))
        airline.travellers[member_id] = Traveller(member_id=member_id, name=person.name, born=born.isoformat())
    caller, *others = airline.travellers.values()
    for other in others:
        origin, destination = rnd.sample(CITIES, 2)
        flight = add_flight(airline, rnd, origin, destination, airline.day(rnd.randrange(3, 40)))
        add_booking(airline, rnd, other.member_id, flight, fare=rnd.choice(FARES), bags=0)
    return airline, caller, people[0]


def add_flight(
    airline: Airline, rnd: random.Random, origin: str, destination: str, day: str, *, hour: int = 0
) -> Flight:
    """Add a flight; without an hour its departure is drawn."""
    departs, minutes = hour or rnd.randrange(6, 20), rnd.randrange(0, 60, 5)
    basic = rnd.randrange(40, 260) * 100
    flight = Flight(
        flight_id=fresh_id(rnd, "F", airline.flights),
        origin=origin,
        destination=destination,
        day=day,
        departs=f"{departs:02d}:{minutes:02d}",
        arrives=f"{departs + rnd.randrange(1, 4):02d}:{minutes:02d}",
        seats=rnd.randrange(1, 60),
        prices=(basic, basic + 4000, basic + 9000),
    )
    airline.flights[flight.flight_id] = flight
    return flight


def add_booking(airline: Airline, rnd: random.Random, member_id: str, flight: Flight, *, fare: str, bags: int) -> str:
    """Add a booking and return its id."""
    key = fresh_id(rnd, "Q", airline.bookings)
    airline.bookings[key] = Booking(member_id=member_id, flight_id=flight.flight_id, fare=fare, bags=bags)
    owner = airline.travellers[member_id]
    airline.travellers[member_id] = replace(owner, booking_ids=(*owner.booking_ids, key))
    return key


def fresh_id(rnd: random.Random, letter: str, table: Mapping[str, object]) -> str:
    """Return an id that is not in a table."""
    while True:
        key = f"{letter}{rnd.randrange(10000, 90000)}"
        if key not in table:
            return key
