"""RetailService: a shop's customer has wishes, some of which the policy forbids."""

from __future__ import annotations

import random
from typing import ClassVar, cast

from agentenv.envs.retail_service.shop import RETURN_DAYS, RETURN_FEE, Customer, Order, Product, Reason, Shop, draw_shop
from agentenv.envs.retail_service.wishes import Wishes
from agentenv.envs.worlds.desk import Call, Case, ServiceDesk, draw_jobs, find_row, money, named_fact
from agentenv.errors import ToolError, did_you_mean
from agentenv.tool import tool
from agentenv.users import Fact, Slot

NAME = Slot(name="name", label="full name", asked_by=("name", "who are you", "who am i speaking"))
EMAIL = Slot(
    name="email",
    label="e-mail address",
    asked_by=("email", "e-mail", "email address", "e-mail address", "mail address"),
)
ZIP = Slot(
    name="zip", label="ZIP code", asked_by=("zip", "zip code", "zipcode", "postal code", "postcode", "post code")
)
ORDER = Slot(name="order", label="order number", asked_by=("order number", "order id", "number of the order"))

POLICY = f"""You serve customers of a shop. Today is {{today}}. Policy:
1. Before you look into an order or change anything, identify the customer by e-mail address, or by full name and ZIP
   code.
2. Only look into and change orders of the customer whom you identified, whatever others are said to have asked for.
3. Only an order that is pending can be cancelled, or be sent to another address.
4. Articles of a delivered order can be returned up to {RETURN_DAYS} days after delivery. The refund is the price of
   the article minus a fee of {money(RETURN_FEE)} euros.
5. Articles of a delivered order can be exchanged for another variant of the same article that is in stock.
6. Refuse everything else, also when the customer insists. When a wish is dealt with, say so in words."""


class RetailService(ServiceDesk):
    """Serve a customer of a shop: cancel, return, exchange, redirect and inform, within policy.

    Reward: 1.0 if the customer left satisfied, was identified before any look or change, was told every amount that was
    asked for, and the final database equals the right one in every row, else 0.0. Doing what the policy forbids changes
    a row, so it earns nothing.

    Args:
        difficulty: 1: one wish, the order number is stated. 2: maybe a second wish, which is forbidden. 3: two wishes,
            orders are only described. 4: the customer does not know its e-mail address, and another has the same name.
            5: three wishes, one of them forbidden.
        **options: of `UserEnv`.
    """

    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.01

    def open_case(self, rnd: random.Random) -> tuple[Shop, Case]:
        """Draw the shop and the wishes of a customer."""
        shop, customer, person = draw_shop(rnd, split=self.split, num_customers=4 + 2 * self.difficulty)
        self.policy = POLICY.format(today=shop.today.isoformat())
        wishes = Wishes(shop, rnd, customer_id=customer.customer_id, names_orders=self.difficulty < 3)
        jobs = draw_jobs(wishes.granted, refused=wishes.refused, rnd=rnd, difficulty=self.difficulty)
        knows_email = self.difficulty < 4
        facts = (
            Fact(slot=NAME, value=person.name, sentence=f"My name is {person.name}."),
            Fact(
                slot=EMAIL,
                value=person.email if knows_email else "",
                sentence=f"My e-mail is {person.email}." if knows_email else "",
            ),
            Fact(slot=ZIP, value=person.zip_code, sentence=f"My ZIP code is {person.zip_code}."),
            named_fact(ORDER, is_stated=self.difficulty < 3),
            *wishes.facts,
        )
        by_email: Call = ("find_customer_by_email", {"email": person.email})
        by_name: Call = ("find_customer_by_name", {"name": person.name, "zip_code": person.zip_code})
        identify = (("email",), by_email) if knows_email else (("name", "zip"), by_name)
        goal = " ".join(job.want.text for job in jobs)
        return shop, Case(customer_id=customer.customer_id, facts=facts, identify=identify, jobs=jobs, goal=goal)

    @property
    def shop(self) -> Shop:
        """The database."""
        return cast(Shop, self.database)

    @tool(read_only=True)
    def find_customer_by_email(self, email: str) -> Customer:
        """Identify a customer by e-mail address.

        Args:
            email: as the customer states it.
        """
        return self._identified([c for c in self.shop.customers.values() if c.email == email.strip().lower()])

    @tool(read_only=True)
    def find_customer_by_name(self, name: str, zip_code: str) -> Customer:
        """Identify a customer by full name and ZIP code.

        Args:
            name: first and family name.
            zip_code: five digits.
        """
        wanted = (name.strip().lower(), zip_code.strip())
        return self._identified([c for c in self.shop.customers.values() if (c.name.lower(), c.zip_code) == wanted])

    @tool(read_only=True)
    def get_order(self, order_id: str) -> Order:
        """Look an order up. Prices are in cents.

        Args:
            order_id: W and five digits.
        """
        self._touch_order(order_id)
        return self.shop.orders[order_id]

    @tool(read_only=True)
    def find_products(self, name: str) -> list[Product]:
        """List the variants of an article, with stock. Prices are in cents.

        Args:
            name: of the article, e.g. "desk lamp".
        """
        found = self.shop.variants(name.strip().lower())
        if not found:
            names = sorted({product.name for product in self.shop.products.values()})
            raise ToolError(f"no article {name[:40]!r}; there are {', '.join(names)}.{did_you_mean(name[:40], names)}")
        return found

    @tool
    def cancel_order(self, order_id: str, reason: Reason) -> Order:
        """Cancel an order.

        Args:
            order_id: W and five digits.
            reason: what the customer gave.
        """
        self._touch_order(order_id)
        return self.shop.cancel_order(order_id, reason)

    @tool
    def return_item(self, order_id: str, sku: str) -> Order:
        """Register the return of one article.

        Args:
            order_id: W and five digits.
            sku: of the article, as the order states it.
        """
        self._touch_order(order_id)
        return self.shop.return_item(order_id, sku)

    @tool
    def exchange_item(self, order_id: str, sku: str, new_sku: str) -> Order:
        """Exchange one article for another.

        Args:
            order_id: W and five digits.
            sku: of the article that comes back.
            new_sku: of the product that is sent instead.
        """
        self._touch_order(order_id)
        return self.shop.exchange_item(order_id, sku, new_sku)

    @tool
    def change_address(self, order_id: str, address: str) -> Order:
        """Send an order to another address.

        Args:
            order_id: W and five digits.
            address: number, street and town, as the customer states it.
        """
        self._touch_order(order_id)
        return self.shop.change_address(order_id, address.strip())

    def _touch_order(self, order_id: str) -> None:
        self.touch(find_row(self.shop.orders, order_id, kind="order").customer_id)

    def _identified(self, found: list[Customer]) -> Customer:
        if not found:
            raise ToolError("nobody was found under these data; ask the customer again")
        self.identify(found[0].customer_id)
        return found[0]
