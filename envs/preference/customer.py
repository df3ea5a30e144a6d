"""A customer with a taste: answers questions about attributes, and says which of two items it likes better."""

from __future__ import annotations

import re

import numpy as np

from agentenv.envs.preference.taste import Domain, Items, Taste, best_of
from agentenv.users import Fact, ScriptedUser, Slot, UserBrief, UserTurn, hear

IMPORTANCE = Slot(
    name="importance",
    label="order of importance",
    asked_by=("important", "importance", "priority", "matter most", "matter", "prioritize", "rank", "care about most"),
)


class TastefulCustomer(ScriptedUser):
    """A scripted user who can also compare: a question that names exactly two items is answered with the better one.

    Args:
        brief: what it says.
        rng: for its choice of words.
        items: all items by name.
        taste: decides comparisons.

    Attributes:
        num_compared: comparisons answered.
    """

    def __init__(self, brief: UserBrief, *, rng: np.random.Generator, items: Items, taste: Taste) -> None:
        super().__init__(brief, rng=rng)
        self.num_compared = 0
        self._items, self._taste = items, taste

    def reply(self, text: str) -> UserTurn:
        """Compare where two items are named in a question; else answer as any user."""
        named = self._named(text) if hear(text).requests else []
        if len(named) != 2 or self.counts["turns"] + 1 >= self.brief.max_turns:
            return super().reply(text)
        self.counts["turns"] += 1
        self.num_compared += 1
        first, second = named
        if self._taste.utility(self._items[first]) == self._taste.utility(self._items[second]):
            return UserTurn(text=f"{first} and {second} are the same to me.")
        return UserTurn(text=f"I like {best_of(named, self._items, self._taste)} better.")

    def _named(self, text: str) -> list[str]:
        words = set(re.findall(r"\w+", text[:4000].lower()))
        return [name for name in self._items if name.lower() in words]


def customer_facts(domain: Domain, taste: Taste, *, knows_importance: bool) -> tuple[Fact, ...]:
    """Return what a customer says about each attribute, and about their importance."""
    facts = [_fact(attribute.slot, taste) for attribute in domain.attributes]
    order = ", then the ".join(taste.likes)
    said = f"The most important thing is the {order}." if knows_importance else ""
    return (*facts, Fact(slot=IMPORTANCE, value=order if knows_importance else "", sentence=said))


def _fact(slot: Slot, taste: Taste) -> Fact:
    liked = taste.likes.get(slot.name)
    if liked is None:
        return Fact(slot=slot, value="does not matter", sentence=f"I do not care about the {slot.label}.")
    return Fact(slot=slot, value=liked, sentence=f"I like this {slot.label}: {liked}.")
