"""Items with attributes, and the hidden taste of a person over them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentenv.splits import Split, split_of
from agentenv.users import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """Something that items differ in."""

    slot: Slot
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A kind of item, e.g. holiday homes."""

    name: str
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taste:
    """What a person likes, lexicographically: a match in a more important attribute beats all less important ones.

    Attributes:
        likes: attribute -> liked value, from the most to the least important; attributes that do not matter are absent.
    """

    likes: Mapping[str, str]

    def utility(self, item: Mapping[str, str]) -> int:
        """Return how good an item is; items with the same matches are equally good."""
        ranks = range(len(self.likes) - 1, -1, -1)
        return sum(
            2**rank for rank, (name, value) in zip(ranks, self.likes.items(), strict=True) if item[name] == value
        )


def _attribute(name: str, values: str, asked_by: str = "") -> Attribute:
    slot = Slot(name=name, label=name, asked_by=tuple(filter(None, [name, *asked_by.split("|")])))
    return Attribute(slot=slot, values=tuple(values.split("|")))


DOMAINS: tuple[Domain, ...] = (
    Domain(
        name="holiday home",
        attributes=(
            _attribute("view", "sea|forest|lake|mountains", "look out"),
            _attribute("price", "low|medium|high", "budget|cost|expensive|spend"),
            _attribute("size", "small|medium|large", "big|large|room|space"),
            _attribute("garden", "none|shared|private", "outdoor"),
            _attribute("place", "village|town|countryside", "location|where|area|surroundings"),
        ),
    ),
    Domain(
        name="laptop",
        attributes=(
            _attribute("screen", "13 inch|14 inch|16 inch", "display|inch"),
            _attribute("price", "low|medium|high", "budget|cost|expensive|spend"),
            _attribute("weight", "light|medium|heavy", "heavy|light|carry"),
            _attribute("battery", "8 hours|12 hours|16 hours", "battery life|charge|last"),
            _attribute("colour", "black|silver|blue", "color|look"),
        ),
    ),
    Domain(
        name="restaurant",
        attributes=(
            _attribute("kitchen", "Thai|Italian|Mexican|Lebanese", "cuisine|food|eat|dish"),
            _attribute("price", "low|medium|high", "budget|cost|expensive|spend"),
            _attribute("mood", "quiet|lively|romantic", "atmosphere|ambience|noise|vibe"),
            _attribute("seats", "terrace|indoors|garden", "seating|sit|outside|inside"),
            _attribute("distance", "near|middling|far", "far|close|location|walk|where"),
        ),
    ),
    Domain(
        name="novel",
        attributes=(
            _attribute("genre", "crime|romance|fantasy|history", "kind|type|topic|subject"),
            _attribute("length", "short|medium|long", "long|page|thick"),
            _attribute("mood", "funny|dark|hopeful", "tone|atmosphere|feel"),
            _attribute("age", "classic|recent|new", "old|era|period|when"),
            _attribute("pace", "slow|steady|fast", "speed|tempo|exciting"),
        ),
    ),
)
_NAMES = [
    "Alder",
    "Birch",
    "Cedar",
    "Dahlia",
    "Elder",
    "Fern",
    "Ginkgo",
    "Hazel",
    "Iris",
    "Juniper",
    "Laurel",
    "Maple",
    "Nettle",
    "Olive",
    "Poplar",
    "Quince",
    "Rowan",
    "Sorrel",
    "Tamarisk",
    "Umbra",
    "Verbena",
    "Willow",
    "Yarrow",
    "Zinnia",
]

Items = dict[str, dict[str, str]]
MAX_RIVALS = 5
"""Items that no other item beats whatever the importances are; more would take too many comparisons."""


def draw_choice(
    rnd: random.Random, *, split: Split, num_items: int, num_attributes: int
) -> tuple[Domain, Items, Taste]:
    """Draw items and a taste with exactly one best item; some attribute may not matter."""
    while True:
        whole = rnd.choice(DOMAINS)
        domain = Domain(name=whole.name, attributes=tuple(rnd.sample(whole.attributes, num_attributes)))
        items = {
            name: {a.slot.name: rnd.choice(a.values) for a in domain.attributes}
            for name in rnd.sample(_NAMES, num_items)
        }
        if split_of(f"{domain.name} {items}") != split:
            continue
        num_likes = num_attributes - rnd.randrange(2)
        chosen = rnd.sample(domain.attributes, num_likes)
        taste = Taste(likes={a.slot.name: rnd.choice(a.values) for a in chosen})
        values = sorted(map(taste.utility, items.values()))
        if values[-1] > values[-2] and len(rivals(items, taste)) <= MAX_RIVALS:
            return domain, items, taste


def rivals(items: Items, taste: Taste) -> list[str]:
    """Return the items that could be the best if the likes were known but not their importance."""
    matches = {name: _matches(item, taste) for name, item in items.items()}
    return [name for name, own in matches.items() if not any(own < other for other in matches.values())]


def best_of(names: Sequence[str], items: Items, taste: Taste) -> str:
    """Return the best item among `names`; the first of equally good ones."""
    return max(names, key=lambda name: taste.utility(items[name]))


def _matches(item: Mapping[str, str], taste: Taste) -> frozenset[str]:
    return frozenset(name for name, value in taste.likes.items() if item[name] == value)
