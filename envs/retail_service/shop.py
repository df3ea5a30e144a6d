"""The shop's database: customers, products and orders, and the changes that the desk may make."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Literal

from agentenv.envs.worlds.desk import find_row
from agentenv.envs.worlds.people import Person, draw_people, draw_person
from agentenv.errors import ToolError
from agentenv.splits import Split

Status = Literal["pending", "shipped", "delivered", "cancelled"]
Reason = Literal["no longer needed", "ordered by mistake", "found cheaper"]

RETURN_DAYS = 30
RETURN_FEE = 490  # cents

CATALOGUE: dict[str, tuple[str, ...]] = {
    "desk lamp": ("black", "white", "brass", "green"),
    "backpack": ("20 litres", "30 litres", "40 litres", "55 litres"),
    "headphones": ("black", "silver", "blue", "red"),
    "water bottle": ("500 ml", "750 ml", "1000 ml", "1500 ml"),
    "rain jacket": ("size S", "size M", "size L", "size XL"),
    "keyboard": ("German layout", "French layout", "British layout", "Spanish layout"),
    "blanket": ("grey", "beige", "navy", "rust"),
    "tea kettle": ("steel", "copper", "enamel", "glass"),
    "running shoes": ("size 38", "size 40", "size 42", "size 44"),
    "wall clock": ("oak", "walnut", "maple", "white metal"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """Somebody who buys."""

    customer_id: str
    name: str
    email: str
    zip_code: str
    order_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One variant of an article; prices in cents."""

    sku: str
    name: str
    variant: str
    price: int
    stock: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One article of an order, as it was paid; `state` says what became of it."""

    sku: str
    name: str
    variant: str
    price: int
    state: str = "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order; `delivered_on` is empty until it has arrived."""

    order_id: str
    customer_id: str
    status: Status
    ordered_on: str
    delivered_on: str
    address: str
    lines: tuple[Line, ...]
    cancel_reason: str = ""

    @property
    def total(self) -> int:
        """What was paid, in cents."""
        return sum(line.price for line in self.lines)


@dataclass(kw_only=True)
class Shop:
    """All tables, by id."""

    today: date
    customers: dict[str, Customer]
    products: dict[str, Product]
    orders: dict[str, Order]

    def copy(self) -> Shop:
        """Return an independent copy; rows are frozen, so tables alone are copied."""
        return Shop(
            today=self.today, customers=dict(self.customers), products=dict(self.products), orders=dict(self.orders)
        )

    def cancel_order(self, order_id: str, reason: str) -> Order:
        """Cancel an order."""
        return self._update(replace(self._order(order_id), status="cancelled", cancel_reason=reason))

    def return_item(self, order_id: str, sku: str) -> Order:
        """Take an article back."""
        return self._update(self._with_line(self._order(order_id), sku, state="returned"))

    def exchange_item(self, order_id: str, sku: str, new_sku: str) -> Order:
        """Exchange an article for another product."""
        new = find_row(self.products, new_sku, kind="product")
        return self._update(self._with_line(self._order(order_id), sku, state=f"exchanged for {new.sku}"))

    def change_address(self, order_id: str, address: str) -> Order:
        """Send an order elsewhere."""
        return self._update(replace(self._order(order_id), address=address))

    def variants(self, name: str) -> list[Product]:
        """Return the variants of an article."""
        return [product for product in self.products.values() if product.name == name]

    def _order(self, order_id: str) -> Order:
        return find_row(self.orders, order_id, kind="order")

    def _update(self, order: Order) -> Order:
        self.orders[order.order_id] = order
        return order

    def _with_line(self, order: Order, sku: str, *, state: str) -> Order:
        if all(line.sku != sku for line in order.lines):
            raise ToolError(f"order {order.order_id} has no article {sku[:40]!r}")
        lines = tuple(replace(line, state=state) if line.sku == sku else line for line in order.lines)
        return replace(order, lines=lines)


def draw_shop(rnd: random.Random, *, split: Split, num_customers: int) -> tuple[Shop, Customer, Person]:
    """Draw a shop, and the customer who calls; another customer has the same name."""
    today = date(2024, 1, 1) + timedelta(days=rnd.randrange(60, 700))
    shop = Shop(today=today, customers={}, products={}, orders={})
    for name, variants in CATALOGUE.items():
        base = rnd.randrange(15, 160) * 100 + 99
        for variant in variants:
            sku = _fresh(rnd, "P", shop.products)
            price = base + rnd.randrange(5) * 300
            shop.products[sku] = Product(sku=sku, name=name, variant=variant, price=price, stock=rnd.randrange(1, 20))
    people = draw_people(rnd, split=split, count=num_customers)
    namesake = draw_person(rnd, name=people[0].name, domain="post.example")
    for person in [*people, namesake]:
        customer_id = _fresh(rnd, "C", shop.customers)
        shop.customers[customer_id] = Customer(
            customer_id=customer_id, name=person.name, email=person.email, zip_code=person.zip_code
        )
    caller, *others = shop.customers.values()
    for other in others:
        status: Status = rnd.choice(["pending", "shipped", "delivered"])
        add_order(shop, rnd, other.customer_id, status=status, names=[rnd.choice(list(CATALOGUE))])
    return shop, caller, people[0]


def add_order(
    shop: Shop, rnd: random.Random, customer_id: str, *, status: Status, names: list[str], days: int | None = None
) -> Order:
    """Add an order to a shop.

    Args:
        shop: is changed.
        rnd: source of all chance.
        customer_id: who ordered.
        status: its state.
        names: articles; a variant of each is drawn.
        days: ago that it was delivered; None draws a number within the time for returns.
    """
    chosen = [rnd.choice(shop.variants(name)) for name in names]
    lines = tuple(Line(sku=p.sku, name=p.name, variant=p.variant, price=p.price) for p in chosen)
    age = rnd.randrange(2, RETURN_DAYS - 1) if days is None else days
    delivered = shop.today - timedelta(days=age)
    ordered = (delivered if status == "delivered" else shop.today) - timedelta(days=rnd.randrange(1, 6))
    order = Order(
        order_id=_fresh(rnd, "W", shop.orders),
        customer_id=customer_id,
        status=status,
        ordered_on=ordered.isoformat(),
        delivered_on=delivered.isoformat() if status == "delivered" else "",
        address=f"{rnd.randrange(1, 200)} Mill Lane, Aldwick",
        lines=lines,
    )
    shop.orders[order.order_id] = order
    owner = shop.customers[customer_id]
    shop.customers[customer_id] = replace(owner, order_ids=(*owner.order_ids, order.order_id))
    return order


def _fresh(rnd: random.Random, letter: str, table: Mapping[str, object]) -> str:
    while True:
        key = f"{letter}{rnd.randrange(10000, 99999)}"
        if key not in table:
            return key
