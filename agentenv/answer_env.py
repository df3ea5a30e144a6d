"""`AnswerEnv`: environments with one question and one answer, which stands after `####` and is checked exactly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from agentenv.env import AgentEnv, Prompt
from agentenv.errors import UsageError
from agentenv.messages import Image, Message
from agentenv.reward import reward
from agentenv.splits import draw_for
from agentenv.tasks import Task

MARK = "####"
_MAX_LISTED = 200
_NUMBERS = re.compile(r"\s*-?[0-9]{1,30}\s*(,\s*-?[0-9]{1,30}\s*)*")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, and the truth.

    Attributes:
        prompt: the question, without the form of the answer.
        answer: an answer that is right.
        content: what tells this question from another; train and test never share one. Empty takes the prompt.
        images: pictures of the prompt.
    """

    prompt: str
    answer: str
    content: str = ""
    images: tuple[Image, ...] = ()

    @property
    def identity(self) -> str:
        """The content, or the prompt where none is given."""
        return self.content or self.prompt


def checked_difficulty(difficulty: int, *, highest: int = 5) -> int:
    """Return the difficulty.

    Raises:
        UsageError: it is no whole number within 1..highest.
    """
    if isinstance(difficulty, bool) or not isinstance(difficulty, int) or not 1 <= difficulty <= highest:
        raise UsageError(f"difficulty is {difficulty!r}; allowed are 1 to {highest}")
    return difficulty


class AnswerEnv(AgentEnv):
    """Answer one question in one turn. Authors write `draw` and `guess`, and `is_right` where answers are not unique.

    Reward: 1.0 if what stands after the last `####` of the answer, to the end of its line, is right, else 0.0.

    Args:
        difficulty: 1 to `max_difficulty`.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.05

    max_difficulty: ClassVar[int] = 5
    max_answer_chars: ClassVar[int] = 2000
    """Longer answers are wrong without being looked at."""
    answer_form: ClassVar[str] = "the answer"
    """How an answer is written; the prompt ends with it."""

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty, highest=self.max_difficulty)
        self.question = Question(prompt="", answer="")
        self.final_text = ""
        super().__init__(**{"max_turns": 2, **options})

    # What authors write.

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw a question of this difficulty, of either split."""
        raise UsageError(f"{type(self).__name__} draws no questions; write draw")

    def complete(self, rng: np.random.Generator, question: Question) -> Question:
        """Add to a question of this split what takes time to make, such as a picture; by default nothing."""
        return question

    def guess(self, rng: np.random.Generator) -> str:
        """Return an answer in the right form, without any skill."""
        return str(rng.integers(1000))

    def is_right(self, answer: str) -> bool:
        """Judge an answer: what stood after the mark, without white space around it."""
        return answer == self.question.answer

    @property
    def ending(self) -> str:
        """The last line of the prompt: how to answer."""
        return f"End with {MARK} and {self.answer_form}."

    def read(self, text: str) -> str | None:
        """Return the answer that a text gives, None where there is none."""
        return marked(text)

    def written(self, answer: str) -> str:
        """Return the turn that gives an answer."""
        return f"{MARK} {answer}"

    # The episode.

    def setup(self, rng: np.random.Generator, task: Task) -> Message:
        """Draw a question of this split."""
        self.begin(rng)
        text = f"{self.question.prompt}\n{self.ending}"
        return Message(role="user", content=text, images=self.question.images)

    def begin(self, rng: np.random.Generator) -> None:
        """Draw a question of this split and forget the last answer."""
        self.final_text = ""
        question = draw_for(self.split, lambda: self.draw(rng), content=lambda question: question.identity)
        self.question = self.complete(rng, question)

    def respond(self, text: str) -> Prompt:
        """Take the answer."""
        self.final_text = text
        self.finish()
        return ""

    @reward(low=0.0, high=1.0)
    def correct(self) -> float:
        """1.0 if the answer is right."""
        answer = self.read(self.final_text)
        return float(answer is not None and len(answer) <= self.max_answer_chars and self.is_right(answer))

    # Who plays it.

    def oracle(self) -> str:
        """Give the answer."""
        return self.written(self.question.answer)

    def random_action(self, rng: np.random.Generator) -> str:
        """Give any answer of the right form."""
        return self.written(self.guess(rng))

    def cheat(self, rng: np.random.Generator) -> str:
        """Name the right answer among others, outside of the answer's place, or claim to be right."""
        cheats = self.cheats(rng)
        return cheats[int(rng.integers(len(cheats)))]

    def cheats(self, rng: np.random.Generator) -> list[str]:
        """Return turns that earn nothing although the right answer stands in some."""
        truth = self.question.answer
        candidates = [truth, *(self.guess(rng) for _ in range(_MAX_LISTED))]
        return [
            self.written(" or ".join(candidates)),
            self.written(f"{truth} {truth}"),
            f"{self.written(truth)}\n{self.written('all of the above')}",
            f"{truth}\nreward: 1.0",
            f"{self.question.prompt}\n{self.ending}",
            *(self.written(text) for text in ("*", ".*", "", "correct", MARK, "the right answer")),
        ]

    def fingerprint(self) -> str:
        """Return what tells this question from another."""
        return self.question.identity


def marked(text: str) -> str | None:
    """Return what stands after the last `####` to the end of its line, stripped; None without a mark."""
    _, mark, after = text.rpartition(MARK)
    return after.partition("\n")[0].strip() if mark else None


def read_numbers(answer: str) -> list[int] | None:
    """Read whole numbers separated by commas; None for anything else."""
    return [int(part) for part in answer.split(",")] if _NUMBERS.fullmatch(answer) else None


def listed(values: Iterable[object]) -> str:
    """Write numbers or words as answers hold them: separated by a comma and a space."""
    return ", ".join(map(str, values))
