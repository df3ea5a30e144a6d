"""What a simulated user is told before an episode, and the protocol that scripted and model-driven users share."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from agentenv.errors import UsageError

Verbosity = Literal["terse", "plain", "chatty"]
VERBOSITIES: tuple[Verbosity, ...] = ("terse", "plain", "chatty")

UserEnd = Literal["satisfied", "gave_up", "turn_cap", "looped"]
"""Why a user ended a conversation: nothing is left to say, patience ran out, the cap was reached, it repeats itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A thing that can be asked for.

    Attributes:
        name: unique within a brief, e.g. `"zip"`.
        label: how people call it, e.g. `"ZIP code"`.
        asked_by: phrases of which one must occur in a question for it, e.g. `("zip", "postal code")`. Case, plurals,
            word order, small gaps and one typing error per longer word do not matter.
    """

    name: str
    label: str
    asked_by: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.asked_by:
            raise UsageError(f"slot {self.name!r} has no phrase; nobody could ask for it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What a user knows about a slot.

    Attributes:
        slot: what is asked for.
        value: the answer alone, e.g. `"10115"`; empty where the user does not know, and says so.
        sentence: the answer as a sentence; empty makes one of label and value.
    """

    slot: Slot
    value: str
    sentence: str = ""

    @property
    def spoken(self) -> str:
        """The answer as a whole sentence."""
        if not self.value:
            return f"I do not know the {self.slot.label}, sorry."
        return self.sentence or f"The {self.slot.label} is {self.value}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """One thing that a user came for; wants are stated one after the other.

    Attributes:
        text: how it is stated.
        insist: said after a refusal, once; empty where the user accepts a refusal at once.
    """

    text: str
    insist: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """How a user behaves.

    Attributes:
        patience: useless turns (nothing understood, nothing new asked) that it bears before it leaves.
        verbosity: how much it wraps around an answer.
        facts_per_turn: how many answers it gives in one turn, however many were asked for.
    """

    patience: int = 4
    verbosity: Verbosity = "plain"
    facts_per_turn: int = 8

    def __post_init__(self) -> None:
        if self.patience < 1 or self.facts_per_turn < 1:
            raise UsageError(f"patience is {self.patience}, facts_per_turn {self.facts_per_turn}; at least 1 is needed")
        if self.verbosity not in VERBOSITIES:
            raise UsageError(f"verbosity is {self.verbosity!r}; allowed are {', '.join(VERBOSITIES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UserBrief:
    """Everything that a user is told; the agent sees none of it.

    Attributes:
        wants: what it came for, in order; the first opens the conversation.
        facts: what it tells when asked, and only then.
        persona: how it behaves.
        goal: the hidden goal in words, for users that a model plays.
        secrets: texts that must never be said, verbatim or with other case, spaces or punctuation.
        max_turns: turns of the user, the opening included, after which it ends the conversation.
    """

    wants: tuple[Want, ...]
    facts: tuple[Fact, ...] = ()
    persona: Persona = field(default_factory=Persona)
    goal: str = ""
    secrets: tuple[str, ...] = ()
    max_turns: int = 30

    def __post_init__(self) -> None:
        if not self.wants:
            raise UsageError("a user who wants nothing has nothing to open with; give at least one Want")
        names = [fact.slot.name for fact in self.facts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"the brief has several facts for {', '.join(twice)}; one per slot is allowed")
        if self.max_turns < 2:
            raise UsageError(f"max_turns is {self.max_turns}; an opening and one reply need 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class UserTurn:
    """What a user says.

    Attributes:
        text: for the agent.
        end: None while the conversation goes on.
    """

    text: str
    end: UserEnd | None = None


class User(Protocol):
    """Somebody an agent talks to. Scripted users answer at once, model-driven ones return awaitables.

    Attributes:
        counts: what happened so far, by name, e.g. `turns`, `leaks`, `loops`.
        revealed: names of the slots whose facts were told.
    """

    revealed: set[str]

    @property
    def counts(self) -> Mapping[str, int]:
        """What happened so far."""
        ...

    def begin(self) -> UserTurn | Awaitable[UserTurn]:
        """Open the conversation."""
        ...

    def reply(self, text: str) -> UserTurn | Awaitable[UserTurn]:
        """Answer what the agent said."""
        ...

    def close(self) -> Awaitable[None] | None:
        """Free what the user holds; idempotent."""
        ...


def draw_persona(rng: np.random.Generator, *, difficulty: int) -> Persona:
    """Draw a persona; the more difficult, the less patient and the fewer facts per turn.

    Args:
        rng: source of all chance.
        difficulty: 1 to 5.
    """
    return Persona(
        patience=int(rng.integers(5, 8)) - difficulty // 2,
        verbosity=VERBOSITIES[int(rng.integers(len(VERBOSITIES)))],
        facts_per_turn=8 if difficulty <= 2 else int(rng.integers(1, 4)),
    )
