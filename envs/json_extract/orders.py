"""Orders in a shop, and a text that tells of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

NAMES = ("Ada", "Bruno", "Chiara", "Deniz", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kaya", "Lena", "Milo")
CITIES = ("Basel", "Bergen", "Cork", "Gent", "Graz", "Lyon", "Oulu", "Porto", "Turin", "Vigo")
PRODUCTS = ("lamps", "mugs", "chairs", "clocks", "kites", "bowls", "rugs", "jars")
_AGES = (18, 90)
_MAX_QUANTITY = 12


class Item(TypedDict):
    """One line of an order."""

    product: str
    quantity: int


class Order(TypedDict):
    """What one person ordered."""

    name: str
    age: int
    city: str
    paid: bool
    items: list[Item]


def draw_orders(rng: np.random.Generator, *, count: int) -> list[Order]:
    """Draw orders of different people."""
    names = rng.choice(NAMES, size=count, replace=False)
    return [
        Order(
            name=str(name),
            age=int(rng.integers(*_AGES)),
            city=str(rng.choice(CITIES)),
            paid=bool(rng.integers(2)),
            items=[
                Item(product=str(product), quantity=int(rng.integers(2, _MAX_QUANTITY + 1)))
                for product in rng.choice(PRODUCTS, size=int(rng.integers(1, 4)), replace=False)
            ],
        )
        for name in names
    ]


def tell(rng: np.random.Generator, orders: Sequence[Order], *, difficulty: int) -> str:
    """Return a text with the facts of all orders; from difficulty 3 on with corrections and people beside the point."""
    taken = {order["name"] for order in orders}
    others = [name for name in NAMES if name not in taken]
    sentences = [_sentence(rng, order, corrects=difficulty >= 3 and rng.random() < 0.5) for order in orders]
    if difficulty >= 3:
        other = rng.choice(others)
        aside = f"{other}, {rng.integers(*_AGES)}, from {rng.choice(CITIES)} only asked for {rng.choice(PRODUCTS)}."
        sentences.insert(int(rng.integers(len(sentences) + 1)), f"{aside} That is no order.")
    return " ".join(sentences)


def _sentence(rng: np.random.Generator, order: Order, *, corrects: bool) -> str:
    items = order["items"]
    told = [f"{item['quantity']} {item['product']}" for item in items]
    name, age, city = order["name"], order["age"], order["city"]
    fixed = ""
    if corrects:
        last = items[-1]
        wrong = last["quantity"] + int(rng.integers(1, 5))
        told[-1] = f"{wrong} {last['product']}"
        fixed = f" No, {name} wants {last['quantity']} {last['product']}, not {wrong}."
    listed = told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
    paid = rng.choice(["The bill is paid.", "It was paid at once."] if order["paid"] else ["The bill is open."])
    forms = (
        f"{name} from {city}, {age} years old, ordered {listed}.",
        f"An order of {listed} came from {name} ({age}) in {city}.",
        f"{listed} go to {city}, where {name}, aged {age}, ordered them.",
    )
    return f"{forms[int(rng.integers(len(forms)))]}{fixed} {paid}"
