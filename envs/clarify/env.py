"""Clarify: a customer leaves out what an order form needs; only a question brings it to light."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, ClassVar

import numpy as np

from agentenv.answer_env import checked_difficulty
from agentenv.env import Prompt, tool_turn
from agentenv.envs.clarify.forms import FORMS, Form
from agentenv.envs.worlds.chance import quick_random
from agentenv.errors import ToolError, did_you_mean
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.splits import split_of
from agentenv.tasks import Task
from agentenv.tool import tool
from agentenv.users import Fact, Persona, UserBrief, UserEnv, Want, draw_persona


class Clarify(UserEnv):
    """Fill in a form for a customer who left something out, after asking for exactly that.

    Reward: 1.0 if the one submission states every field as the customer wants it and every missing or undecided field
    was told by the customer before, else 0.0. A lucky guess earns nothing, and neither does a customer who left because
    of questions that the opening had already answered.

    Args:
        difficulty: 1 to 5: fields that the opening leaves out. From 3 on one of them is stated as undecided between
            two values, and customers answer fewer questions at once.
        **options: of `UserEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.01

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty)
        self.form: Form = FORMS[0]
        self.wanted: dict[str, str] = {}
        self.missing: tuple[str, ...] = ()
        self.submitted: dict[str, str] = {}
        self.asked_before: frozenset[str] = frozenset()
        super().__init__(**{"max_turns": 16, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> Prompt | Awaitable[Prompt]:
        """Draw a form, what the customer wants, and what it leaves out."""
        rnd = quick_random(rng)
        while True:
            self.form = rnd.choice(FORMS)
            self.wanted = {field.slot.name: rnd.choice(field.values) for field in self.form.fields}
            if split_of(f"{self.form.name} {self.wanted}") == self.split:
                break
        names = list(self.wanted)
        self.missing = tuple(rnd.sample(names, self.difficulty))
        self.submitted, self.asked_before = {}, frozenset()
        undecided = self.missing[0] if self.difficulty >= 3 else ""
        said: list[str] = []
        for field in self.form.fields:
            name = field.slot.name
            if name not in self.missing:
                said.append(field.says.format(self.wanted[name]))
            elif name == undecided:
                other = rnd.choice([value for value in field.values if value != self.wanted[name]])
                pair = sorted((self.wanted[name], other))
                said.append(f"About the {field.slot.label} I wavered between {pair[0]} and {pair[1]}.")
        rnd.shuffle(said)
        persona = draw_persona(rng, difficulty=self.difficulty)
        opening = self.meet(self._brief(" ".join([self.form.opening, *said]), persona), rng, system=self._rules())
        assert self.user is not None
        self.user.revealed.update(name for name in names if name not in self.missing)
        return opening

    @tool
    def submit(self, fields: dict[str, str]) -> str:
        """Submit the filled-in form; this can be done once and ends the conversation.

        Args:
            fields: every field of the form with its value.
        """
        allowed = {field.slot.name: field.values for field in self.form.fields}
        for name, value in fields.items():
            if name not in allowed:
                raise ToolError(f"the form has no field {name[:40]!r}.{did_you_mean(name[:40], allowed)}")
            if value not in allowed[name]:
                raise ToolError(f"{name}: {value[:40]!r} is not among {', '.join(allowed[name])}")
        left = [name for name in allowed if name not in fields]
        if left:
            raise ToolError(f"fields without a value: {', '.join(left)}")
        self.submitted, self.asked_before = dict(fields), self.asked
        self.finish()
        return "The form was submitted."

    @reward(low=0.0, high=1.0)
    def as_wanted(self) -> float:
        """1.0 if the form says what the customer wants, and nothing in it was guessed."""
        return float(self.submitted == self.wanted and self.asked_before.issuperset(self.missing))

    def oracle(self) -> Message:
        """Ask for what is missing, then submit."""
        open_fields = [
            f.slot for f in self.form.fields if f.slot.name in self.missing and f.slot.name not in self.asked
        ]
        if open_fields:
            questions = "".join(f"\n- {slot.asked_by[0]}" for slot in open_fields)
            return Message(role="assistant", content=f"Could you please tell me the following?{questions}")
        return self._submission(self.wanted)

    def random_action(self, rng: np.random.Generator) -> Message:
        """Ask for some field, or submit random values."""
        if rng.random() < 0.5:
            slot = self.form.fields[int(rng.integers(len(self.form.fields)))].slot
            return Message(role="assistant", content=f"What is the {slot.asked_by[0]}?")
        drawn = {f.slot.name: f.values[int(rng.integers(len(f.values)))] for f in self.form.fields}
        return self._submission(drawn)

    def cheat(self, rng: np.random.Generator) -> Message:
        """Submit without a question, with the very values that the customer has in mind."""
        return self._submission(self.wanted)

    def _submission(self, fields: dict[str, str]) -> Message:
        return tool_turn("submit", {"fields": dict(fields)}, call_id=f"call_{self.num_turns}_0")

    def _brief(self, opening: str, persona: Persona) -> UserBrief:
        facts = tuple(
            Fact(slot=f.slot, value=self.wanted[f.slot.name], sentence=f.says.format(self.wanted[f.slot.name]))
            for f in self.form.fields
        )
        return UserBrief(
            # thanks alone do not end it: a customer waits for the submission as long as patience lasts
            wants=(Want(text=opening), *[Want(text="Is my order on its way?")] * 3),
            facts=facts,
            persona=persona,
            goal=f"Order this: {self.wanted}. At first you only say what is listed under what you want.",
        )

    def _rules(self) -> str:
        lines = [f"- {field.slot.name}: one of {', '.join(field.values)}" for field in self.form.fields]
        return (
            f"You take orders. Fill in the form for a {self.form.name} with the customer's wishes, then call submit "
            f"once. "
            "Ask for every wish that the customer left open, and for nothing that was said already.\n"
            + "\n".join(lines)
        )
