"""An invented world: people, towns, firms and rivers, what relates them, and an article about each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agentenv.envs.drawing import pick, pick_distinct

Kind = str
_SYLLABLES = (
    "bar", "bel", "cor", "dal", "dren", "fal", "fen", "gar", "hol", "im", "jor", "kel", "lan", "lor", "mar", "mir",
    "nar", "nel", "or", "pel", "quil", "ran", "ros", "sel", "tam", "tor", "ul", "val", "vor", "wen", "yar", "zan",
)  # fmt: skip
_ENDINGS: Mapping[Kind, tuple[str, ...]] = {
    "person": ("a", "o", "in", "ek", "is"),
    "town": ("ton", "burg", "mouth", "stead", "ford"),
    "firm": (" & Sons", " Works", " Brothers", " Company"),
    "river": ("water", "ach", "beck", "flow"),
}
_COUNTS: Mapping[Kind, int] = {"person": 16, "town": 8, "firm": 8, "river": 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """How two kinds are related.

    Attributes:
        source: kind of what the article is about.
        target: kind of what it names; empty for a number or a word.
        sentence: in the article, with `{it}` and `{other}`.
        phrase: in a question, with `{it}`.
    """

    source: Kind
    target: Kind
    sentence: str
    phrase: str


RELATIONS = (
    Relation(
        source="person", target="town", sentence="{it} was born in {other}.", phrase="the town where {it} was born"
    ),
    Relation(
        source="person",
        target="person",
        sentence="{it} learned the trade from {other}.",
        phrase="the person who taught {it}",
    ),
    Relation(
        source="person",
        target="firm",
        sentence="For years {it} worked for {other}.",
        phrase="the firm that employed {it}",
    ),
    Relation(source="firm", target="person", sentence="{it} was founded by {other}.", phrase="the founder of {it}"),
    Relation(
        source="firm",
        target="town",
        sentence="{it} has its seat in {other}.",
        phrase="the town where {it} has its seat",
    ),
    Relation(
        source="town", target="river", sentence="{it} lies on the {other}.", phrase="the river on which {it} lies"
    ),
    Relation(source="town", target="person", sentence="The mayor of {it} is {other}.", phrase="the mayor of {it}"),
    Relation(
        source="river", target="town", sentence="The {it} rises near {other}.", phrase="the town near which {it} rises"
    ),
)
FACTS = (
    Relation(
        source="person", target="", sentence="{it} was born in the year {other}.", phrase="the birth year of {it}"
    ),
    Relation(
        source="town", target="", sentence="{it} has {other} inhabitants.", phrase="the number of inhabitants of {it}"
    ),
    Relation(
        source="firm", target="", sentence="{it} has {other} employees.", phrase="the number of employees of {it}"
    ),
    Relation(source="river", target="", sentence="The {it} is {other} km long.", phrase="the length in km of {it}"),
)


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that is true.

    Attributes:
        kinds: kind of every entity, by name.
        related: by entity and relation, the other entity, or the number of a fact.
        articles: text by entity.
    """

    kinds: Mapping[str, Kind]
    related: Mapping[tuple[str, Relation], str]
    articles: Mapping[str, str]


def make_world(rng: np.random.Generator) -> World:
    """Draw entities with different names, and relate each to others."""
    kinds: dict[str, Kind] = {}
    for kind, count in _COUNTS.items():
        while sum(known == kind for known in kinds.values()) < count:
            kinds.setdefault(_name(rng, kind), kind)
    related: dict[tuple[str, Relation], str] = {}
    by_kind = {kind: [name for name, known in kinds.items() if known == kind] for kind in _COUNTS}
    for name, kind in kinds.items():
        for relation in RELATIONS:
            if relation.source == kind:
                others = [other for other in by_kind[relation.target] if other != name]
                related[name, relation] = pick(rng, others)
        fact = next(fact for fact in FACTS if fact.source == kind)
        related[name, fact] = str(int(rng.integers(1800, 2000) if kind == "person" else rng.integers(20, 9000)))
    sentences: dict[str, list[str]] = {name: [] for name in kinds}
    for (name, relation), other in related.items():
        sentences[name].append(relation.sentence.format(it=name, other=other))
    articles = {name: " ".join(lines) for name, lines in sentences.items()}
    return World(kinds=kinds, related=related, articles=articles)


def draw_path(rng: np.random.Generator, world: World, *, num_hops: int) -> tuple[str, list[str], str]:
    """Draw a question that leads over articles.

    Returns:
        the question, the entities whose articles must be read in turn, and the answer.
    """
    name = pick(rng, sorted(world.kinds))
    visited, phrase = [name], name
    for _ in range(num_hops - 1):
        ways = [
            r for (entity, r), other in world.related.items() if entity == name and r.target and other not in visited
        ]
        if not ways:
            return draw_path(rng, world, num_hops=num_hops)
        relation = pick(rng, ways)
        phrase, name = relation.phrase.format(it=phrase), world.related[name, relation]
        visited.append(name)
    fact = next(fact for fact in FACTS if fact.source == world.kinds[name])
    return f"What is {fact.phrase.format(it=phrase)}?", visited, world.related[name, fact]


def _name(rng: np.random.Generator, kind: Kind) -> str:
    parts = pick_distinct(rng, _SYLLABLES, count=2)
    first = "".join(parts).capitalize()
    if kind != "person":
        return first + pick(rng, _ENDINGS[kind])
    return f"{first}{pick(rng, _ENDINGS[kind])} {''.join(pick_distinct(rng, _SYLLABLES, count=2)).capitalize()}"
