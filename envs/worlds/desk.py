"""A service desk: a customer with wishes, a policy, tools over a database, and a reward on what the database became."""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np

from agentenv.answer_env import checked_difficulty
from agentenv.env import Prompt, tool_turn
from agentenv.envs.worlds.chance import quick_random
from agentenv.envs.worlds.telling import was_told
from agentenv.errors import ToolError, did_you_mean
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.tasks import Task
from agentenv.users import Fact, Slot, UserBrief, UserEnv, Want, draw_persona

Row = TypeVar("Row")
Call = tuple[str, Mapping[str, Any]]

REFUSAL = "I am sorry, but our policy does not allow that, so I cannot do it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One wish of a customer and what is right to do about it.

    Attributes:
        want: how it is stated.
        lookups: calls that find out what must be known.
        writes: calls that change the database; none where policy forbids the wish, or it is only a question.
        needs: slots that must be asked for.
        tells: values that the customer must be told.
        reply: what an expert says in the end; empty refuses.
    """

    want: Want
    lookups: tuple[Call, ...] = ()
    writes: tuple[Call, ...] = ()
    needs: tuple[str, ...] = ()
    tells: tuple[str, ...] = ()
    reply: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One episode of a desk.

    Attributes:
        customer_id: of the user.
        facts: what the user tells when asked.
        identify: slots to ask for, and the call that then identifies the customer.
        jobs: in the order in which the user states them.
        goal: the user's aim in words, for users that a model plays.
    """

    customer_id: str
    facts: tuple[Fact, ...]
    identify: tuple[tuple[str, ...], Call]
    jobs: tuple[Job, ...]
    goal: str


@dataclass(kw_only=True)
class _Progress:
    """How far the oracle has come."""

    steps: list[Call | str | tuple[str, ...]] = field(default_factory=list)
    position: int = 0


class ServiceDesk(UserEnv, abc.ABC):
    """Base of desks. A subclass brings tools over `self.database`, and `open_case`, which also sets `self.policy`.

    Tools that read or write what belongs to somebody call `self.touch(customer_id)` first: doing so for a person who
    was not identified before, by a tool that calls `self.identify(customer_id)`, breaks the policy and cannot be made
    good.

    Args:
        difficulty: 1 to 5; see the subclass.
        **options: of `UserEnv`.
    """

    inline: ClassVar[bool] = True

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty)
        self.database: Any = None
        self.goal: Any = None
        self.case: Case | None = None
        self.policy = ""
        self.identified: set[str] = set()
        self.broke_policy = False
        self._oracle, self._cheat = _Progress(), _Progress()
        super().__init__(**{"max_turns": 40, **options})

    @abc.abstractmethod
    def open_case(self, rnd: Any) -> tuple[Any, Case]:
        """Return a seeded database and a case.

        The database has `copy()`, equality, and a method for every tool that writes."""

    def setup(self, rng: np.random.Generator, task: Task) -> Prompt | Awaitable[Prompt]:
        """Draw the database and what the customer wants."""
        self.database, case = self.open_case(quick_random(rng))
        self.case, self.identified, self.broke_policy = case, set(), False
        self.goal = self.database.copy()
        for job in case.jobs:
            for name, arguments in job.writes:
                getattr(self.goal, name)(**arguments)
        self._oracle = _Progress(steps=_expert_steps(case))
        self._cheat = _Progress(steps=[step for job in case.jobs for step in (*job.writes, *_says(job))])
        brief = UserBrief(
            wants=tuple(job.want for job in case.jobs),
            facts=case.facts,
            persona=draw_persona(rng, difficulty=self.difficulty),
            goal=case.goal,
            max_turns=self.max_turns,
        )
        return self.meet(brief, rng, system=self.policy)

    @reward(low=0.0, high=1.0)
    def resolved(self) -> float:
        """1.0 if the conversation ended well, the database is as it must be, and everything was told within policy."""
        if self.case is None or self.broke_policy or self.user_end != "satisfied":
            return 0.0
        if self.case.customer_id not in self.identified:
            return 0.0
        has_told = all(was_told(value, self.said) for job in self.case.jobs for value in job.tells)
        return float(has_told and self.database == self.goal)

    def oracle(self) -> Message:
        """Identify the customer, then look up, change and report, wish by wish."""
        return self._play_step(self._oracle)

    def cheat(self, rng: np.random.Generator) -> Message:
        """Make exactly the right changes and say the right words, for somebody who never proved who they are."""
        return self._play_step(self._cheat)

    def identify(self, customer_id: str) -> None:
        """Note that the agent has checked who the customer is."""
        self.identified.add(customer_id)

    def touch(self, customer_id: str) -> None:
        """Note that something of a customer is read or changed."""
        self.broke_policy = self.broke_policy or customer_id not in self.identified

    def _play_step(self, progress: _Progress) -> Message:
        while progress.position < len(progress.steps):
            step = progress.steps[progress.position]
            if isinstance(step, str):
                progress.position += 1
                return Message(role="assistant", content=step)
            if len(step) == 2 and isinstance(step[1], Mapping):
                progress.position += 1
                return tool_turn(step[0], step[1], call_id=f"call_{self.num_turns}_0")
            open_labels = [self._label(str(name)) for name in step if name not in self.asked]
            if open_labels:
                return Message(role="assistant", content=f"Could you please give me your {' and '.join(open_labels)}?")
            progress.position += 1
        return Message(role="assistant", content="Is there anything else I can help you with?")

    def _label(self, slot_name: str) -> str:
        assert self.case is not None
        return next(fact.slot.label for fact in self.case.facts if fact.slot.name == slot_name)


def named_fact(slot: Slot, *, is_stated: bool) -> Fact:
    """Return what a customer says who is asked for a number that its wishes state, or that it does not know."""
    return Fact(
        slot=slot, value="stated above" if is_stated else "", sentence=f"I have told you the {slot.label} already."
    )


def find_row(table: Mapping[str, Row], key: str, *, kind: str) -> Row:
    """Return a row of a table.

    Raises:
        ToolError: there is none, with the near miss.
    """
    row = table.get(key)
    if row is None:
        raise ToolError(f"there is no {kind} {key[:40]!r}.{did_you_mean(key[:40], table)}")
    return row


def money(cents: int) -> str:
    """Return an amount in euros with two digits behind the point."""
    sign = "-" if cents < 0 else ""
    return f"{sign}{abs(cents) // 100}.{abs(cents) % 100:02d}"


def draw_jobs(
    makers: Sequence[Callable[[], Job]], *, refused: Sequence[Callable[[], Job]], rnd: Any, difficulty: int
) -> tuple[Job, ...]:
    """Draw the wishes of a customer: at least one that is granted, and from difficulty 2 on maybe forbidden ones.

    Args:
        makers: make wishes that are granted; each is drawn at most once.
        refused: make wishes that the policy forbids.
        rnd: source of all chance.
        difficulty: 1 and 2 give one or two wishes, 3 and 4 two, 5 three.
    """
    num_refused = 0 if difficulty == 1 else rnd.randrange(2) if difficulty < 5 else 1
    num_granted = {1: 1, 2: 1, 3: 2 - num_refused, 4: 2 - num_refused, 5: 2}[difficulty]
    chosen = [*rnd.sample(makers, num_granted), *rnd.sample(refused, num_refused)]
    rnd.shuffle(chosen)
    return tuple(make() for make in chosen)


def _expert_steps(case: Case) -> list[Any]:
    slots, call = case.identify
    steps: list[Any] = [slots, call]
    for job in case.jobs:
        steps += [*([job.needs] if job.needs else []), *job.lookups, *job.writes, *_says(job)]
    return steps


def _says(job: Job) -> list[str]:
    """Return the final words about a job; a refusal is said again where the customer insists."""
    return [job.reply] if job.reply else [REFUSAL] * (2 if job.want.insist else 1)
