"""Preference: a customer has a hidden taste; ask about it, then recommend the best item."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, ClassVar

import numpy as np

from agentenv.answer_env import checked_difficulty
from agentenv.env import Prompt, tool_turn
from agentenv.envs.preference.customer import IMPORTANCE, TastefulCustomer, customer_facts
from agentenv.envs.preference.taste import Items, Taste, best_of, draw_choice, rivals
from agentenv.envs.worlds.chance import quick_random
from agentenv.errors import ToolError, did_you_mean
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.tasks import Task
from agentenv.tool import tool
from agentenv.users import Persona, User, UserBrief, UserEnv, Want, draw_persona

_NUM_ITEMS = (5, 8, 10, 12, 14)
_NUM_ATTRIBUTES = (3, 3, 4, 4, 5)
_FACTS_PER_TURN = (8, 8, 3, 3, 2)
MAX_USER_TURNS = 12


class Preference(UserEnv):
    """Recommend the item that a customer likes best, after finding out what that is.

    The customer tells, when asked, which value of an attribute it likes, which attributes matter most, and which of two
    items it likes better. Reward: 1.0 if the one recommendation is the customer's single best item and the customer was
    asked something before, else 0.0.

    Args:
        difficulty: 1 to 5: more items (5 to 14) and attributes (3 to 5), and customers who answer fewer questions at
            once. From 4 on they cannot say which attribute matters most, so that items must be compared.
        **options: of `UserEnv`; a model that plays the user knows the taste in words.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.15

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty)
        self.items: Items = {}
        self.taste = Taste(likes={})
        self.recommended, self.was_asked = "", False
        self._attributes: tuple[str, ...] = ()
        self._champion = ""
        self._challengers: list[str] = []
        super().__init__(**{"max_turns": MAX_USER_TURNS + 2, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> Prompt | Awaitable[Prompt]:
        """Draw items and a taste."""
        index = self.difficulty - 1
        domain, self.items, self.taste = draw_choice(
            quick_random(rng), split=self.split, num_items=_NUM_ITEMS[index], num_attributes=_NUM_ATTRIBUTES[index]
        )
        self.recommended, self.was_asked = "", False
        self._attributes = tuple(attribute.slot.name for attribute in domain.attributes)
        self._champion, *self._challengers = rivals(self.items, self.taste)
        drawn = draw_persona(rng, difficulty=self.difficulty)
        persona = Persona(patience=drawn.patience, verbosity=drawn.verbosity, facts_per_turn=_FACTS_PER_TURN[index])
        likes = ", ".join(f"{name}: {value}" for name, value in self.taste.likes.items())
        opening = f"I am looking for a {domain.name}. Which one would you recommend to me?"
        brief = UserBrief(
            wants=(Want(text=opening), *[Want(text="Please just tell me which one to take.")] * 3),
            facts=customer_facts(domain, self.taste, knows_importance=self.difficulty < 4),
            persona=persona,
            goal=f"Find the {domain.name} that suits you. From the most to the least important you like {likes}.",
            max_turns=MAX_USER_TURNS,
        )
        return self.meet(brief, rng, system=self._catalogue(domain.name))

    @tool
    def recommend(self, item: str) -> str:
        """Recommend one item; this can be done once and ends the conversation.

        Args:
            item: its name.
        """
        name = item.strip().capitalize()
        if name not in self.items:
            raise ToolError(f"there is no item {item[:40]!r}.{did_you_mean(name[:40], self.items)}")
        self.recommended = name
        self.was_asked = bool(self.asked) or getattr(self.user, "num_compared", 0) > 0
        self.finish()
        return "Thank you, I will take a look at it."

    @reward(low=0.0, high=1.0)
    def likes_it(self) -> float:
        """1.0 if the best item was recommended, and not without a question."""
        is_best = bool(self.recommended) and self.recommended == best_of(list(self.items), self.items, self.taste)
        return float(is_best and self.was_asked)

    def oracle(self) -> Message:
        """Ask for the likes and their importance, compare what is left if that was not known, and recommend."""
        names = [name for name in self._attributes if name not in self.asked]
        if names:
            return Message(role="assistant", content=f"What do you like in these: {', '.join(names)}?")
        if IMPORTANCE.name not in self.asked:
            return Message(role="assistant", content="Which of these is the most important to you?")
        if self.difficulty >= 4 and self._challengers:
            one, two = self._champion, self._challengers.pop(0)
            self._champion = best_of([one, two], self.items, self.taste)
            return Message(role="assistant", content=f"Would you rather take {one} or {two}?")
        return self._recommendation(best_of(list(self.items), self.items, self.taste))

    def random_action(self, rng: np.random.Generator) -> Message:
        """Ask about some attribute, or recommend some item."""
        if rng.random() < 0.5:
            return Message(role="assistant", content=f"What about the {self._attributes[int(rng.integers(3))]}?")
        return self._recommendation(list(self.items)[int(rng.integers(len(self.items)))])

    def cheat(self, rng: np.random.Generator) -> Message:
        """Recommend without a question; in half of the episodes by naming every item at once."""
        name = best_of(list(self.items), self.items, self.taste)
        return self._recommendation(" ".join(self.items) if rng.random() < 0.5 else name)

    def _recommendation(self, item: str) -> Message:
        return tool_turn("recommend", {"item": item}, call_id=f"call_{self.num_turns}_0")

    def _catalogue(self, kind: str) -> str:
        rows = [f"- {name}: {', '.join(f'{k} {v}' for k, v in item.items())}" for name, item in self.items.items()]
        return (
            f"Find out which {kind} the customer likes best, then call recommend once. You may ask what it likes, what "
            "matters most to it, and which of two items it likes better. Its patience is limited.\n" + "\n".join(rows)
        )

    def make_user(self, brief: UserBrief, rng: np.random.Generator) -> User:
        """Return a customer who can compare items."""
        if self.user_factory:
            return super().make_user(brief, rng)
        return TastefulCustomer(brief, rng=rng, items=self.items, taste=self.taste)
