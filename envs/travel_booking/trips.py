"""What travellers wish, granted or forbidden, each with the right calls and words."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from agentenv.envs.travel_booking.airline import (
    BAG_PRICE,
    CHANGE_FEE,
    CITIES,
    FARES,
    FREE_BAGS,
    MAX_BAGS,
    Airline,
    Flight,
    add_booking,
    add_flight,
)
from agentenv.envs.worlds.desk import Call, Job, money
from agentenv.users import Fact, Slot, Want

ARRIVAL = Slot(
    name="arrival",
    label="latest arrival",
    asked_by=("arrival", "arrive", "latest", "by when", "what time", "when do you need", "be there"),
)
FARE = Slot(name="fare", label="fare", asked_by=("fare", "ticket type", "class", "flexible", "cabin", "tariff"))
BAGS = Slot(name="bags", label="number of bags", asked_by=("bag", "luggage", "baggage", "suitcase"))

_INSISTS = (
    "But my plans have changed through no fault of mine!",
    "Another agent did it for me last year.",
    "Please, it is for a funeral. Can you not bend the rule?",
    "I fly with you every month. Surely there is a way.",
)


class Trips:
    """Makes wishes of one traveller, adding flights and bookings that they are about.

    Args:
        airline: is changed.
        rnd: source of all chance.
        member_id: whose wishes.
        names_bookings: travellers state booking numbers; else they only say where they fly.
    """

    def __init__(self, airline: Airline, rnd: random.Random, *, member_id: str, names_bookings: bool) -> None:
        self.airline, self.rnd, self.member_id, self.names_bookings = airline, rnd, member_id, names_bookings
        # no two wishes have a destination in common, so that naming it says which booking is meant
        self._cities = rnd.sample(CITIES, len(CITIES))
        self.home = self._cities.pop()
        self.latest = rnd.randrange(13, 19)
        self.fare, self.bags = rnd.choice(FARES), rnd.randrange(MAX_BAGS + 1)

    @property
    def granted(self) -> list[Callable[[], Job]]:
        """Makers of wishes that the rules allow."""
        return [self.book, self.change_standard, self.cancel_flex, self.add_bag]

    @property
    def refused(self) -> list[Callable[[], Job]]:
        """Makers of wishes that the rules forbid."""
        return [self.change_basic, self.cancel_basic, self.cancel_departed, self.too_many_bags]

    @property
    def facts(self) -> tuple[Fact, ...]:
        """What the wishes add to what a traveller knows."""
        return (
            Fact(slot=ARRIVAL, value=f"{self.latest}:00", sentence=f"I must be there by {self.latest}:00."),
            Fact(slot=FARE, value=self.fare, sentence=f"I would like the {self.fare} fare."),
            Fact(slot=BAGS, value=str(self.bags), sentence=f"Bags: {self.bags}."),
        )

    def book(self) -> Job:
        """Book the cheapest flight that arrives in time; hour, fare and bags must be asked for."""
        to, day = self._cities.pop(), self.airline.day(self.rnd.randrange(5, 60))
        flights = [add_flight(self.airline, self.rnd, self.home, to, day, hour=h) for h in (7, 8, 9, 18, 20)]
        in_time = [f for f in flights if f.arrives <= f"{self.latest:02d}:00"]
        best = min(in_time, key=lambda flight: flight.price(self.fare))
        for other in in_time:
            if other is not best and other.prices == best.prices:  # the cheapest one must be one
                dearer = replace(other, prices=tuple(price + 1000 for price in other.prices))  # type: ignore[arg-type]
                self.airline.flights[other.flight_id] = dearer
        extra = max(0, self.bags - FREE_BAGS[self.fare]) * BAG_PRICE
        total = money(best.price(self.fare) + extra)
        arguments = {"member_id": self.member_id, "flight_id": best.flight_id, "fare": self.fare, "bags": self.bags}
        return Job(
            want=Want(
                text=f"Please book me the cheapest flight from {self.home} to {to} on {day} that arrives in time. What "
                "will it cost with my luggage?"
            ),
            needs=("arrival", "fare", "bags"),
            lookups=(("search_flights", {"origin": self.home, "destination": to, "day": day}),),
            writes=(("book_flight", arguments),),
            tells=(total,),
            reply=f"You are booked; the total is {total} euros.",
        )

    def change_standard(self) -> Job:
        """Move a booking to the first flight of another day; the fee and the difference in price must be told."""
        flight, key = self._booked(self.rnd.choice(["standard", "flex"]))
        fare = self.airline.bookings[key].fare
        day = self.airline.day(self.rnd.randrange(61, 90))
        new = [add_flight(self.airline, self.rnd, self.home, flight.destination, day, hour=h) for h in (9, 13, 17)]
        self.rnd.shuffle(new)
        first = min(new, key=lambda flight: flight.departs)
        fee = CHANGE_FEE if fare == "standard" else 0
        cost = money(fee + max(0, first.price(fare) - flight.price(fare)))
        return Job(
            want=Want(
                text=(
                    f"Please move {self._named(key, flight)} to the first flight on {day}. What do I have to pay "
                    f"for that?"
                )
            ),
            lookups=(
                *self._looks(key),
                ("get_flight", {"flight_id": flight.flight_id}),
                ("search_flights", {"origin": self.home, "destination": flight.destination, "day": day}),
            ),
            writes=(("change_flight", {"booking_id": key, "flight_id": first.flight_id}),),
            tells=(cost,),
            reply=f"It is changed; that costs {cost} euros.",
        )

    def cancel_flex(self) -> Job:
        """Cancel a booking that is paid back, whole (flex) or half (standard)."""
        fare = self.rnd.choice(["standard", "flex"])
        flight, key = self._booked(fare)
        back = money(flight.price(fare) if fare == "flex" else flight.price(fare) // 2)
        return Job(
            want=Want(text=f"I want to cancel {self._named(key, flight)}. How much do I get back?"),
            lookups=(*self._looks(key), ("get_flight", {"flight_id": flight.flight_id})),
            writes=(("cancel_booking", {"booking_id": key}),),
            tells=(back,),
            reply=f"It is cancelled; you get back {back} euros.",
        )

    def add_bag(self) -> Job:
        """Add one bag."""
        flight, key = self._booked(self.rnd.choice(FARES), bags=self.rnd.randrange(MAX_BAGS))
        bags = self.airline.bookings[key].bags + 1
        return Job(
            want=Want(text=f"I would like to take one more bag on {self._named(key, flight)}."),
            lookups=self._looks(key),
            writes=(("set_bags", {"booking_id": key, "bags": bags}),),
            reply="The bag is added.",
        )

    def change_basic(self) -> Job:
        """Move a booking of the fare basic: forbidden."""
        flight, key = self._booked("basic")
        day = self.airline.day(self.rnd.randrange(61, 90))
        add_flight(self.airline, self.rnd, self.home, flight.destination, day)
        return Job(want=self._insisting(f"Please move {self._named(key, flight)} to {day}."), lookups=self._looks(key))

    def cancel_basic(self) -> Job:
        """Cancel a booking of the fare basic for money: forbidden."""
        flight, key = self._booked("basic")
        text = f"Please cancel {self._named(key, flight)} and pay me back."
        return Job(want=self._insisting(text), lookups=self._looks(key))

    def cancel_departed(self) -> Job:
        """Cancel a flight that has left: forbidden."""
        flight, key = self._booked("flex", days=-self.rnd.randrange(1, 20))
        text = f"I missed my flight. Cancel {self._named(key, flight)} and give me my money back."
        looks = (*self._looks(key), ("get_flight", {"flight_id": flight.flight_id}))
        return Job(want=self._insisting(text), lookups=looks)

    def too_many_bags(self) -> Job:
        """Take more bags than are allowed: forbidden."""
        flight, key = self._booked(self.rnd.choice(FARES), bags=MAX_BAGS)
        text = f"I need one more bag on {self._named(key, flight)}."
        return Job(want=self._insisting(text), lookups=self._looks(key))

    def _booked(self, fare: str, *, bags: int = 0, days: int = 0) -> tuple[Flight, str]:
        day = self.airline.day(days or self.rnd.randrange(5, 60))
        flight = add_flight(self.airline, self.rnd, self.home, self._cities.pop(), day)
        return flight, add_booking(self.airline, self.rnd, self.member_id, flight, fare=fare, bags=bags)

    def _named(self, key: str, flight: Flight) -> str:
        return f"booking {key}" if self.names_bookings else f"my flight to {flight.destination}"

    def _looks(self, key: str) -> tuple[Call, ...]:
        """An expert reads the bookings up to the one that is meant, and the flights that tell them apart."""
        if self.names_bookings:
            return (("get_booking", {"booking_id": key}),)
        ids = self.airline.travellers[self.member_id].booking_ids
        looks: list[Call] = []
        for other in (*ids[: ids.index(key)], key):
            looks.append(("get_booking", {"booking_id": other}))
            looks.append(("get_flight", {"flight_id": self.airline.bookings[other].flight_id}))
        return tuple(looks)

    def _insisting(self, text: str) -> Want:
        return Want(text=text, insist=self.rnd.choice(_INSISTS))
