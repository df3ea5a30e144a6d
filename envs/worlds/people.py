"""Seeded people: names, addresses and e-mail; family names of the train split never occur in the test split."""

from __future__ import annotations

import random
from dataclasses import dataclass

from agentenv.envs.worlds.chance import of_split
from agentenv.splits import Split

_FIRST = """
Ada Amir Anna Ben Bianca Carlos Chen Clara Daniel Dina Elif Emma Erik Fatima Felix Greta Hana Hugo Ines Ivan Jana
Jonas Kaito Karim Lara Leo Lina Luca Maja Marta Mei Milan Nadia Nils Noor Olga Omar Paula Priya Rafael Rosa Sami Sofia
Sven Tara Theo Uma Viktor Yara Zoe
"""
_FAMILY = """
Abbott Acosta Adler Albrecht Almeida Amato Anders Arslan Bailey Baptiste Barros Bauer Becker Berg Bianchi Blanc Bosch
Brandt Calder Camara Castro Chandra Cohen Conti Costa Dahl Delgado Dietrich Dubois Eklund Engel Esposito Farkas
Ferrari Fischer Fontaine Forsberg Gallo Garcia Greco Gruber Haas Hansen Hartmann Hoang Horvat Ibrahim Ivanov Jansen
Jensen Kaplan Kato Keller Khan Kowalski Kruger Lambert Larsen Lehmann Lindholm Lopez Lund Maier Marino Martel Meyer
Mori Moreau Nagy Navarro Novak Okafor Olsen Ortega Osman Palmer Park Pavlov Petrov Popescu Quinn Ramos Reyes Ricci
Rivera Roth Russo Saito Santos Schmid Silva Singh Sorensen Stein Suzuki Tanaka Torres Urban Vargas Vidal Vogel Wagner
Walsh Weber Winter Wolf Yilmaz Young Zeman Ziegler
"""
FIRST_NAMES: tuple[str, ...] = tuple(_FIRST.split())
FAMILY_NAMES: tuple[str, ...] = tuple(_FAMILY.split())

_STREETS = ("Mill Lane", "Harbour Street", "Station Road", "Oak Avenue", "Church Street", "Garden Row", "High Street")
_TOWNS = ("Aldwick", "Brenton", "Carrow", "Dunmore", "Eastley", "Fernhill", "Glenford", "Hartley")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody of a seeded world."""

    name: str
    email: str
    zip_code: str
    address: str

    @property
    def first_name(self) -> str:
        """The name that friends use."""
        return self.name.split()[0]


def draw_people(rnd: random.Random, *, split: Split, count: int, domain: str = "mail.example") -> list[Person]:
    """Draw people with distinct full names.

    Args:
        rnd: source of all chance.
        split: whose family names are used.
        count: how many.
        domain: of their e-mail addresses.
    """
    families = of_split(FAMILY_NAMES, split)
    names: dict[str, None] = {}
    while len(names) < count:
        names[f"{rnd.choice(FIRST_NAMES)} {rnd.choice(families)}"] = None
    return [draw_person(rnd, name=name, domain=domain) for name in names]


def draw_person(rnd: random.Random, *, name: str, domain: str = "mail.example") -> Person:
    """Draw everything about a person but the name."""
    return Person(
        name=name,
        email=f"{name.lower().replace(' ', '.')}@{domain}",
        zip_code=f"{rnd.randrange(10000, 99999)}",
        address=draw_address(rnd),
    )


def draw_address(rnd: random.Random) -> str:
    """Return a street, a number and a town."""
    return f"{rnd.randrange(1, 200)} {rnd.choice(_STREETS)}, {rnd.choice(_TOWNS)}"
