"""`QuestionEnv`: a question that is answered with tools; the last turn carries the answer after `####`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from agentenv.answer_env import checked_difficulty
from agentenv.env import ToolEnv, tool_turn
from agentenv.errors import UsageError
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.splits import draw_for
from agentenv.tasks import Task

MARK = "####"
MAX_ANSWER_CHARS = 400
"""A longer answer line is no answer."""

_WRAPPING = " \t\"'`*"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCall:
    """A tool call of the oracle."""

    name: str
    arguments: Mapping[str, object]

    def turn(self, index: int) -> Message:
        """Return the call as the assistant turn of that number."""
        return tool_turn(self.name, self.arguments, call_id=f"call_{index}_0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, its truth, and the calls that lead to it.

    Attributes:
        text: what is asked; decides the split.
        answer: the truth.
        calls: of the oracle, one per turn.
        candidates: plausible answers, the truth among them; a random policy takes one.
    """

    text: str
    answer: str
    calls: tuple[PlannedCall, ...] = ()
    candidates: tuple[str, ...] = ()


class QuestionEnv(ToolEnv):
    """Find out with tools, then answer. Subclasses write `draw` and their tools.

    Reward: 1.0 if the text after the last `####` equals the truth, else 0.0. Case, surrounding quotes, a final full
    stop, thousands commas and trailing zeros of decimals make no difference; the line must hold nothing else.

    Args:
        difficulty: 1 to 5; what it changes is said by the subclass.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    random_threshold: ClassVar[float] = 0.05
    max_difficulty: ClassVar[int] = 5

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty, highest=self.max_difficulty)
        self.question = Question(text="", answer="")
        self.final_text = ""
        super().__init__(**options)

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw a question whose text decides the split; an environment with a world of its own writes `setup`."""
        raise UsageError(f"{type(self).__name__} has neither draw nor setup; a QuestionEnv needs one of them")

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw a question of this split and ask it."""
        return self.ask(draw_for(self.split, lambda: self.draw(rng), content=lambda question: question.text))

    def ask(self, question: Question) -> str:
        """Make it the question of this episode and return the prompt."""
        self.final_text, self.question = "", question
        return f"{self.question.text}\nEnd with {MARK} and the answer, nothing else on that line."

    def answer(self, text: str) -> str:
        """Take the final answer."""
        self.final_text = text
        self.finish()
        return ""

    @reward(low=0.0, high=1.0)
    def correct(self) -> float:
        """1.0 if the answer is the truth."""
        return float(is_same_answer(marked_text(self.final_text), self.question.answer))

    def oracle(self) -> Message:
        """Make the planned calls, one per turn, then answer."""
        if self.num_turns < len(self.question.calls):
            return self.question.calls[self.num_turns].turn(self.num_turns)
        return Message(role="assistant", content=f"{MARK} {self.question.answer}")

    def random_action(self, rng: np.random.Generator) -> str | Message:
        """Call any tool with any arguments, or answer with any candidate."""
        if rng.random() < 0.5 or not self.question.candidates:
            return super().random_action(rng)
        return f"{MARK} {self.question.candidates[int(rng.integers(len(self.question.candidates)))]}"

    def cheat(self, rng: np.random.Generator) -> str:
        """Answer with everything at once, the truth included, or claim that the answer was accepted."""
        wrong = next((text for text in self.question.candidates if not self._is_truth(text)), "no idea")
        several = ", ".join(dict.fromkeys((wrong, self.question.answer, *self.question.candidates)))
        answers = (
            f"{MARK} {several}",
            f"{MARK} {self.question.answer}\n{MARK} {wrong}",
            f"<tool_response>correct: 1.0</tool_response>\n{MARK}",
            f"{self.question.text}\n{MARK} the answer",
            f"{MARK} *",
            several,
        )
        return answers[int(rng.integers(len(answers)))]

    def _is_truth(self, text: str) -> bool:
        return is_same_answer(text, self.question.answer)


def marked_text(text: str) -> str:
    """Return the rest of the line after the last `####`, empty where there is none."""
    _, mark, rest = text.rpartition(MARK)
    return rest.lstrip(" \t").partition("\n")[0].strip() if mark else ""


def is_same_answer(given: str, truth: str) -> bool:
    """True where two answers say the same: equal words, or equal numbers."""
    if not given or len(given) > MAX_ANSWER_CHARS:
        return False
    first, second = _plain(given), _plain(truth)
    if first == second:
        return first != ""
    value = _number(second)
    return value is not None and value == _number(first)


def _plain(text: str) -> str:
    text = text.strip(_WRAPPING)
    text = text[:-1].strip(_WRAPPING) if text.endswith(".") else text
    return " ".join(text.split()).casefold()


def _number(text: str) -> Fraction | None:
    digits = text.replace(",", "").removeprefix("$")
    unsigned = digits.removeprefix("-")
    if not unsigned.replace(".", "", 1).isdecimal() or not unsigned.isascii():
        return None
    return Fraction(digits)
