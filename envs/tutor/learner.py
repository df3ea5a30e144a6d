"""A simulated learner: solves problems as it understands them, and learns from worked examples that surprise it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agentenv.envs.tutor.skills import SKILLS, Numbers, Skill, is_same_value

MAX_HEARD_CHARS = 2000
MAX_EXAMPLES = 2
"""Worked examples of one message that the learner takes in; it tires of the rest."""
MAX_QUESTIONS = 4
"""Problems of one message that it solves."""

_VALUE = re.compile(r"\s*(?:=|is|equals)\s*([-−]?\d{1,8}(?:\s*/\s*\d{1,6})?)(?!\d|\.\d)")
_BULLET = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """A problem in a text; `value` is what the text says that it is, empty where it does not."""

    skill: Skill
    numbers: Numbers
    value: str


class Learner:
    """Has misconceptions about some skills and masters the others.

    A worked example that is right and differs from what the learner would have said brings it nearer to understanding;
    after `examples_needed` different ones the misconception is gone. A wrong one undoes that progress, and spoils a
    skill that was mastered.

    Args:
        misconceptions: skill name -> misconception.
        examples_needed: per misconception.
        rnd: for the quiz.
    """

    def __init__(self, misconceptions: Mapping[str, str], *, examples_needed: int, rnd: random.Random) -> None:
        self.misconceptions = dict(misconceptions)
        self.examples_needed = examples_needed
        self._rnd = rnd
        self._seen: dict[str, set[Numbers]] = {}

    def solve(self, skill: Skill, numbers: Numbers) -> str:
        """Return the learner's own answer."""
        return skill.answer(numbers, self.misconceptions.get(skill.name, ""))

    def study(self, example: Mention) -> str:
        """Take a worked example in, and say what that did."""
        skill, numbers = example.skill, example.numbers
        problem, truth, own = skill.written(numbers), skill.answer(numbers), self.solve(skill, numbers)
        if not truth:
            return f"I cannot follow {problem}."
        if not is_same_value(example.value, truth):
            self._seen.pop(skill.name, None)
            self.misconceptions.setdefault(skill.name, next(iter(skill.wrong)))
            return f"{problem} is {example.value}? Now I am confused."
        if is_same_value(own, truth):
            return f"{problem} is {truth}, that is what I would have said."
        self._seen.setdefault(skill.name, set()).add(numbers)
        if len(self._seen[skill.name]) < self.examples_needed:
            return f"Oh, I would have said that {problem} is {own}. Can you show me another one?"
        del self.misconceptions[skill.name], self._seen[skill.name]
        return f"Ah, now I see how {problem} works!"

    def passes(self, skill: Skill, misconception: str) -> bool:
        """Let the learner solve three problems that the misconception gets wrong; True if all are right."""
        drawn = [skill.telling(self._rnd, misconception) for _ in range(3)]
        return all(is_same_value(self.solve(skill, numbers), skill.answer(numbers)) for numbers in drawn)


def mentions(text: str) -> tuple[Mention, ...]:
    """Return the problems of a text in order; where two overlap, the longer one."""
    text = _BULLET.sub("", text[:MAX_HEARD_CHARS])
    found = sorted(_found(text), key=lambda item: (item[0], -item[1]))
    out: list[Mention] = []
    end = 0
    for start, stop, skill, numbers in found:
        if start >= end:
            value = _VALUE.match(text, stop)
            out.append(Mention(skill=skill, numbers=numbers, value="" if value is None else _plain(value[1])))
            end = stop if value is None else value.end()
    return tuple(out)


def _found(text: str) -> Iterator[tuple[int, int, Skill, Numbers]]:
    for skill in SKILLS:
        for match in skill.pattern.finditer(text):
            yield match.start(), match.end(), skill, tuple(int(group) for group in match.groups())


def _plain(value: str) -> str:
    return value.replace("−", "-").replace(" ", "")
