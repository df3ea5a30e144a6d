"""Tutor: a learner has misconceptions; find them by asking, cure them by worked examples, then hold the quiz."""

from __future__ import annotations

import random
import re
from typing import Any, ClassVar

import numpy as np

from agentenv.answer_env import checked_difficulty
from agentenv.env import AgentEnv
from agentenv.envs.tutor.learner import MAX_EXAMPLES, MAX_QUESTIONS, Learner, Mention, mentions
from agentenv.envs.tutor.skills import SKILLS, Skill
from agentenv.envs.worlds.chance import quick_random
from agentenv.envs.worlds.people import draw_people
from agentenv.reward import reward
from agentenv.tasks import Task

_QUIZ = re.compile(r"\bquiz\b", re.IGNORECASE)
_NUM_SKILLS = (1, 3, 4, 5, 6)
_NUM_MISCONCEPTIONS = (1, 1, 1, 2, 3)
_EXAMPLES_NEEDED = (1, 2, 2, 3, 3)


class Tutor(AgentEnv):
    """Teach a simulated learner in words until it passes a quiz.

    The learner solves problems that it is asked, as it understands them, and learns from worked examples such as
    `52 - 17 = 35` if they are right and not what it would have said. Reward: 1.0 if the one quiz, which is held when
    the tutor says the word, has no wrong answer, else 0.0. The quiz tests what the learner got wrong at the beginning,
    and what it has been confused about since.

    Args:
        difficulty: 1: one skill. 2 to 5: three to six skills of which one, one, two and three are misunderstood, and
        two
            or three examples are needed for each.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.05

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty)
        self.skills: tuple[Skill, ...] = ()
        self.at_first: dict[str, str] = {}
        self.learner = Learner({}, examples_needed=1, rnd=random.Random(0))
        self.has_passed = False
        self._known: set[str] = set()
        self._rnd = random.Random(0)
        super().__init__(**{"max_turns": 6 + 3 * difficulty, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw a lesson and what the learner gets wrong."""
        rnd, index = quick_random(rng), self.difficulty - 1
        self.skills = tuple(rnd.sample(SKILLS, _NUM_SKILLS[index]))
        wrong = rnd.sample(self.skills, _NUM_MISCONCEPTIONS[index])
        self.at_first = {skill.name: rnd.choice(list(skill.wrong)) for skill in wrong}
        self.learner = Learner(self.at_first, examples_needed=_EXAMPLES_NEEDED[index], rnd=rnd)
        self.has_passed, self._known = False, set()
        self._rnd = random.Random(rnd.randrange(2**62))  # the oracle's examples must not be those of the quiz
        name = draw_people(rnd, split=self.split, count=1)[0].name
        forms = "\n".join(f"- {skill.name}: {skill.written(skill.draw(self._rnd))}" for skill in self.skills)
        return (
            f"You are the tutor of {name}, who gets some kinds of problem wrong. Kinds and how they are "
            f"written:\n{forms}\n"
            f"Ask for problems ('What is 3 + 4?', at most {MAX_QUESTIONS} at a time) to find out which, and show "
            f"worked "
            f"examples ('3 + 4 = 7', at most {MAX_EXAMPLES} at a time) until it is understood. Then say the word "
            f"quiz: it is "
            "held once."
        )

    def respond(self, text: str) -> str:
        """Let the learner hear the tutor."""
        if _QUIZ.search(text):
            return self._hold_quiz()
        said = mentions(text)
        examples = [mention for mention in said if mention.value]
        questions = [mention for mention in said if not mention.value]
        words = [self.learner.study(example) for example in examples[:MAX_EXAMPLES]]
        if len(examples) > MAX_EXAMPLES:
            words.append("That was too much at once for me.")
        words += [self._solved(question) for question in questions[:MAX_QUESTIONS]]
        return " ".join(words) or "Okay. Can you show me an example, or ask me something?"

    @reward(low=0.0, high=1.0)
    def passed(self) -> float:
        """1.0 if the quiz was passed."""
        return float(self.has_passed)

    def oracle(self) -> str:
        """Ask about every kind, show examples for what is wrong, and hold the quiz."""
        unknown = [skill for skill in self.skills if skill.name not in self._known][:MAX_QUESTIONS]
        if unknown:
            self._known.update(skill.name for skill in unknown)
            asked = [skill.written(skill.telling(self._rnd, self._misconception(skill))) for skill in unknown]
            return " ".join(f"What is {problem}?" for problem in asked)
        for skill in self.skills:
            if skill.name in self.learner.misconceptions:
                drawn = [skill.telling(self._rnd, self._misconception(skill)) for _ in range(MAX_EXAMPLES)]
                shown = [f"{skill.written(numbers)} = {skill.answer(numbers)}" for numbers in drawn]
                return f"Look closely: {'. '.join(shown)}."
        return "Well done. Let us do the quiz."

    def random_action(self, rng: np.random.Generator) -> str:
        """Ask something, show an example with a random result, or hold the quiz."""
        rnd = quick_random(rng)
        skill = rnd.choice(self.skills)
        problem = skill.written(skill.draw(rnd))
        return rnd.choice([f"What is {problem}?", f"{problem} = {rnd.randrange(1, 100)}", "Now the quiz."])

    def cheat(self, rng: np.random.Generator) -> str:
        """Drown the learner in examples of every kind and hold the quiz at once, or claim that it was passed."""
        rnd = quick_random(rng)
        drawn = [(skill, skill.draw(rnd)) for skill in self.skills for _ in range(5)]
        shown = ". ".join(f"{skill.written(numbers)} = {skill.answer(numbers)}" for skill, numbers in drawn)
        return f"{shown}. The quiz was passed, all answers are right: 1.0" if self.num_turns == 0 else "quiz: 1.0"

    def fingerprint(self) -> str:
        """Return the opening, which names the learner, and what it gets wrong."""
        return f"{self.conversation[0].content}\n{self.at_first}"

    def _hold_quiz(self) -> str:
        self.finish()
        tested = {**self.learner.misconceptions, **self.at_first}
        by_name = {skill.name: skill for skill in SKILLS}
        results = {name: self.learner.passes(by_name[name], text) for name, text in tested.items()}
        self.has_passed = all(results.values())
        return "The quiz: " + ", ".join(f"{name} {'right' if ok else 'wrong'}" for name, ok in results.items()) + "."

    def _solved(self, question: Mention) -> str:
        own = self.learner.solve(question.skill, question.numbers)
        problem = question.skill.written(question.numbers)
        return f"{problem} is {own}." if own else f"I cannot solve {problem}."

    def _misconception(self, skill: Skill) -> str:
        return self.learner.misconceptions.get(skill.name) or next(iter(skill.wrong))
