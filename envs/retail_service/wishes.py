"""What customers of the shop wish, granted or forbidden, each with the right calls and words."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from agentenv.envs.retail_service.shop import (
    CATALOGUE,
    RETURN_DAYS,
    RETURN_FEE,
    Order,
    Product,
    Reason,
    Shop,
    add_order,
)
from agentenv.envs.worlds.desk import Call, Job, money
from agentenv.envs.worlds.people import draw_address
from agentenv.users import Fact, Slot, Want

ADDRESS = Slot(
    name="address",
    label="new address",
    asked_by=("new address", "address", "where should", "street", "deliver to", "ship to", "send it"),
)

_REASONS: dict[Reason, str] = {
    "no longer needed": "I do not need it any more.",
    "ordered by mistake": "I ordered it by mistake.",
    "found cheaper": "I found it cheaper elsewhere.",
}
_INSISTS = (
    "Can you not make an exception, just this once?",
    "But I really need this. Please!",
    "Your colleague told me that it would be fine.",
    "I have been a customer for years; surely you can do it.",
)


class Wishes:
    """Makes wishes of one customer, adding the orders that they are about to the shop.

    Args:
        shop: is changed.
        rnd: source of all chance.
        customer_id: whose wishes.
        names_orders: customers state order numbers; else they only say what they bought.
    """

    def __init__(self, shop: Shop, rnd: random.Random, *, customer_id: str, names_orders: bool) -> None:
        self.shop, self.rnd, self.customer_id, self.names_orders = shop, rnd, customer_id, names_orders
        self.new_address = draw_address(rnd)
        # no article is in two orders of a customer, so that naming one says which order is meant
        self._unused = rnd.sample(list(CATALOGUE), len(CATALOGUE))

    @property
    def granted(self) -> list[Callable[[], Job]]:
        """Makers of wishes that the policy allows."""
        return [self.cancel_pending, self.return_in_time, self.exchange_variant, self.move_pending, self.ask_total]

    @property
    def refused(self) -> list[Callable[[], Job]]:
        """Makers of wishes that the policy forbids."""
        return [
            self.cancel_shipped,
            self.return_late,
            self.exchange_out_of_stock,
            self.move_shipped,
            self.cancel_for_another,
        ]

    @property
    def facts(self) -> tuple[Fact, ...]:
        """What the wishes add to what a customer knows."""
        return (Fact(slot=ADDRESS, value=self.new_address, sentence=f"Please send it to {self.new_address}."),)

    def cancel_pending(self) -> Job:
        """Cancel an order that has not left the house."""
        order, reason = self._order("pending"), self._reason()
        return Job(
            want=Want(text=f"I want to cancel {self._named(order)}. {_REASONS[reason]}"),
            lookups=self._looks(order),
            writes=(("cancel_order", {"order_id": order.order_id, "reason": reason}),),
            reply="I have cancelled that order.",
        )

    def cancel_shipped(self) -> Job:
        """Cancel an order that is on its way: forbidden."""
        order = self._order(self.rnd.choice(["shipped", "delivered"]))
        text = f"Please cancel {self._named(order)}. {_REASONS[self._reason()]}"
        return Job(want=self._insisting(text), lookups=self._looks(order))

    def return_in_time(self) -> Job:
        """Send one of several articles back; the customer asks for the refund."""
        order = self._order("delivered", size=2)
        line = self.rnd.choice(order.lines)
        refund = money(line.price - RETURN_FEE)
        return Job(
            want=Want(
                text=f"I want to return the {line.name} of {self._named(order)}. How much money will I get back?"
            ),
            lookups=self._looks(order),
            writes=(("return_item", {"order_id": order.order_id, "sku": line.sku}),),
            tells=(refund,),
            reply=f"I have registered the return; you will get back {refund} euros.",
        )

    def return_late(self) -> Job:
        """Send an article back too late: forbidden."""
        order = self._order("delivered", days=RETURN_DAYS + self.rnd.randrange(1, 40))
        return Job(
            want=self._insisting(f"I would like to return {self._named(order)}, it does not please me."),
            lookups=self._looks(order),
        )

    def exchange_variant(self) -> Job:
        """Exchange an article for another variant of it that is in stock."""
        order = self._order("delivered")
        line, new = order.lines[0], self._other_variant(order)
        arguments = {"order_id": order.order_id, "sku": line.sku, "new_sku": new.sku}
        return Job(
            want=Want(text=f"Please exchange the {line.name} of {self._named(order)} for this one: {new.variant}."),
            lookups=(*self._looks(order), ("find_products", {"name": line.name})),
            writes=(("exchange_item", arguments),),
            reply="The exchange is on its way.",
        )

    def exchange_out_of_stock(self) -> Job:
        """Exchange an article for a variant that is sold out: forbidden."""
        order = self._order("delivered")
        line, new = order.lines[0], self._other_variant(order)
        self.shop.products[new.sku] = Product(sku=new.sku, name=new.name, variant=new.variant, price=new.price, stock=0)
        text = f"I would like to swap the {line.name} of {self._named(order)} for this one: {new.variant}."
        return Job(want=self._insisting(text), lookups=(*self._looks(order), ("find_products", {"name": line.name})))

    def move_pending(self) -> Job:
        """Send an order to an address that must be asked for."""
        order = self._order("pending")
        return Job(
            want=Want(text=f"I have moved. Please change where {self._named(order)} goes."),
            needs=("address",),
            lookups=self._looks(order),
            writes=(("change_address", {"order_id": order.order_id, "address": self.new_address}),),
            reply="The address is changed.",
        )

    def move_shipped(self) -> Job:
        """Send an order elsewhere that is on its way: forbidden."""
        order = self._order("shipped")
        text = f"Please have {self._named(order)} delivered to my office at {draw_address(self.rnd)} instead."
        return Job(want=self._insisting(text), lookups=self._looks(order))

    def cancel_for_another(self) -> Job:
        """Cancel the order of somebody else: forbidden."""
        others = [o for o in self.shop.orders.values() if o.customer_id != self.customer_id and o.status == "pending"]
        if not others:
            return self.cancel_shipped()
        order = self.rnd.choice(others)
        who = self.rnd.choice(["brother", "neighbour", "colleague", "aunt"])
        return Job(want=self._insisting(f"My {who} asked me to cancel order {order.order_id} as well. Please do that."))

    def ask_total(self) -> Job:
        """Ask what an order of several articles cost."""
        order = self._order(self.rnd.choice(["pending", "shipped", "delivered"]), size=3)
        total = money(order.total)
        return Job(
            want=Want(text=f"What did I pay in total for {self._named(order)}?"),
            lookups=self._looks(order),
            tells=(total,),
            reply=f"You paid {total} euros in total.",
        )

    def _order(self, status: str, *, size: int = 1, days: int | None = None) -> Order:
        names = [self._unused.pop() for _ in range(size)]
        make = partial(add_order, self.shop, self.rnd, self.customer_id, names=names, days=days)
        return make(status=status)  # type: ignore[arg-type]

    def _named(self, order: Order) -> str:
        if self.names_orders:
            return f"order {order.order_id}"
        return f"my order with the {order.lines[-1].name}"

    def _looks(self, order: Order) -> tuple[Call, ...]:
        """An expert reads the orders of a customer up to the one that is meant."""
        if self.names_orders:
            return (("get_order", {"order_id": order.order_id}),)
        ids = self.shop.customers[self.customer_id].order_ids
        own = [*ids[: ids.index(order.order_id)], order.order_id]
        return tuple(("get_order", {"order_id": order_id}) for order_id in own)

    def _other_variant(self, order: Order) -> Product:
        line = order.lines[0]
        return self.rnd.choice([p for p in self.shop.variants(line.name) if p.sku != line.sku])

    def _reason(self) -> Reason:
        return self.rnd.choice(list(_REASONS))

    def _insisting(self, text: str) -> Want:
        return Want(text=text, insist=self.rnd.choice(_INSISTS))
