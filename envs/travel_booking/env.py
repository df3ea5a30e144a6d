"""TravelBooking: a traveller wants to book, change and cancel flights, and the fare rules allow only some of it."""

from __future__ import annotations

import random
from typing import ClassVar, cast

from agentenv.envs.travel_booking.airline import (
    BAG_PRICE,
    CHANGE_FEE,
    CITIES,
    FREE_BAGS,
    MAX_BAGS,
    Airline,
    Booking,
    Fare,
    Flight,
    Traveller,
    draw_airline,
)
from agentenv.envs.travel_booking.trips import Trips
from agentenv.envs.worlds.desk import Call, Case, ServiceDesk, draw_jobs, find_row, money, named_fact
from agentenv.errors import ToolError, did_you_mean
from agentenv.tool import tool
from agentenv.users import Fact, Slot

NAME = Slot(name="name", label="full name", asked_by=("name", "who are you", "who am i speaking"))
MEMBER = Slot(
    name="member",
    label="member number",
    asked_by=(
        "member number",
        "membership number",
        "member id",
        "membership",
        "member",
        "customer number",
        "frequent flyer",
    ),
)
BORN = Slot(
    name="born", label="date of birth", asked_by=("date of birth", "birth date", "birthday", "birthdate", "born")
)
BOOKING = Slot(
    name="booking",
    label="booking number",
    asked_by=("booking number", "booking id", "number of the booking", "reservation"),
)

POLICY = f"""You serve travellers of an airline. Today is {{today}}. Rules:
1. Before you look into a booking or change anything, identify the traveller by member number, or by full name and
   date of birth. Only serve the traveller whom you identified.
2. Flights: book what the traveller asks for. Ask for the latest arrival, the fare (basic, standard, flex) and the
   number of bags if they are not stated.
3. Bags: basic has {FREE_BAGS["basic"]}, standard {FREE_BAGS["standard"]} and flex {FREE_BAGS["flex"]} free; each
   further one costs {money(BAG_PRICE)} euros. At most {MAX_BAGS} per booking.
4. Changes: basic cannot be changed. Standard costs a fee of {money(CHANGE_FEE)} euros, flex none; a dearer flight
   also costs the difference in price at the same fare, a cheaper one is not paid back.
5. Cancellations: basic cannot be cancelled. Standard pays back half of the price of the flight, flex all of it. Bags
   are not paid back.
6. A flight whose day has passed cannot be changed or cancelled.
7. Refuse everything else, also when the traveller insists. When a wish is dealt with, say so in words."""


class TravelBooking(ServiceDesk):
    """Serve a traveller of an airline: book, change, cancel and add bags, within the fare rules.

    Reward: 1.0 if the traveller left satisfied, was identified before any look or change, was told every amount that
    was asked for, and the bookings are exactly the right ones in the end, else 0.0.

    Args:
        difficulty: 1: one wish, the booking number is stated. 2: maybe a second wish, which is forbidden. 3: two
        wishes,
            bookings are only described. 4: the traveller does not know the member number. 5: three wishes, one of them
            forbidden.
        **options: of `UserEnv`.
    """

    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.01

    def open_case(self, rnd: random.Random) -> tuple[Airline, Case]:
        """Draw the airline and the wishes of a traveller."""
        airline, traveller, person = draw_airline(rnd, split=self.split, num_travellers=4 + 2 * self.difficulty)
        self.policy = POLICY.format(today=airline.today.isoformat())
        trips = Trips(airline, rnd, member_id=traveller.member_id, names_bookings=self.difficulty < 3)
        jobs = draw_jobs(trips.granted, refused=trips.refused, rnd=rnd, difficulty=self.difficulty)
        knows = self.difficulty < 4
        facts = (
            Fact(slot=NAME, value=person.name, sentence=f"My name is {person.name}."),
            Fact(slot=BORN, value=traveller.born, sentence=f"I was born on {traveller.born}."),
            Fact(slot=MEMBER, value=traveller.member_id if knows else ""),
            named_fact(BOOKING, is_stated=self.difficulty < 3),
            *trips.facts,
        )
        by_id: Call = ("find_traveller", {"member_id": traveller.member_id})
        by_name: Call = ("find_traveller_by_name", {"name": person.name, "born": traveller.born})
        identify = (("member",), by_id) if knows else (("name", "born"), by_name)
        goal = " ".join(job.want.text for job in jobs)
        return airline, Case(customer_id=traveller.member_id, facts=facts, identify=identify, jobs=jobs, goal=goal)

    @property
    def airline(self) -> Airline:
        """The database."""
        return cast(Airline, self.database)

    @tool(read_only=True)
    def find_traveller(self, member_id: str) -> Traveller:
        """Identify a traveller by member number.

        Args:
            member_id: M and five digits, as the traveller states it.
        """
        found = find_row(self.airline.travellers, member_id.strip().upper(), kind="traveller")
        self.identify(found.member_id)
        return found

    @tool(read_only=True)
    def find_traveller_by_name(self, name: str, born: str) -> Traveller:
        """Identify a traveller by full name and date of birth.

        Args:
            name: first and family name.
            born: ISO date.
        """
        wanted = (name.strip().lower(), born.strip())
        found = [t for t in self.airline.travellers.values() if (t.name.lower(), t.born) == wanted]
        if not found:
            raise ToolError("nobody was found under these data; ask the traveller again")
        self.identify(found[0].member_id)
        return found[0]

    @tool(read_only=True)
    def search_flights(self, origin: str, destination: str, day: str) -> list[Flight]:
        """List the flights of a day between two cities. Prices are in cents, for the fares basic, standard and flex.

        Args:
            origin: city.
            destination: city.
            day: ISO date.
        """
        cities = [origin.strip().title(), destination.strip().title()]
        for city in cities:
            if city not in CITIES:
                raise ToolError(f"there are no flights of {city[:40]!r}.{did_you_mean(city[:40], CITIES)}")
        return self.airline.flights_of(cities[0], cities[1], day.strip())

    @tool(read_only=True)
    def get_flight(self, flight_id: str) -> Flight:
        """Look a flight up. Prices are in cents, for the fares basic, standard and flex.

        Args:
            flight_id: F and five digits.
        """
        return find_row(self.airline.flights, flight_id, kind="flight")

    @tool(read_only=True)
    def get_booking(self, booking_id: str) -> Booking:
        """Look a booking up.

        Args:
            booking_id: Q and five digits.
        """
        self._touch_booking(booking_id)
        return self.airline.bookings[booking_id]

    @tool
    def book_flight(self, member_id: str, flight_id: str, fare: Fare, bags: int) -> str:
        """Book a seat.

        Args:
            member_id: who flies.
            flight_id: F and five digits.
            fare: basic, standard or flex.
            bags: number of bags.
        """
        self.touch(find_row(self.airline.travellers, member_id, kind="traveller").member_id)
        return self.airline.book_flight(member_id, flight_id, fare, bags)

    @tool
    def change_flight(self, booking_id: str, flight_id: str) -> Booking:
        """Put a booking on another flight.

        Args:
            booking_id: Q and five digits.
            flight_id: of the new flight.
        """
        self._touch_booking(booking_id)
        return self.airline.change_flight(booking_id, flight_id)

    @tool
    def cancel_booking(self, booking_id: str) -> Booking:
        """Cancel a booking.

        Args:
            booking_id: Q and five digits.
        """
        self._touch_booking(booking_id)
        return self.airline.cancel_booking(booking_id)

    @tool
    def set_bags(self, booking_id: str, bags: int) -> Booking:
        """Set the number of bags of a booking.

        Args:
            booking_id: Q and five digits.
            bags: all of them, the present ones included.
        """
        self._touch_booking(booking_id)
        return self.airline.set_bags(booking_id, bags)

    def _touch_booking(self, booking_id: str) -> None:
        self.touch(find_row(self.airline.bookings, booking_id, kind="booking").member_id)
