"""Calculator: word problems in one to five steps, solved with a calculator tool."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from agentenv.env import ToolEnv, tool_turn
from agentenv.envs.calculator.answer import last_number, marked_answer
from agentenv.envs.calculator.stories import Problem, make_problem
from agentenv.errors import UsageError
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.splits import draw_for
from agentenv.tasks import Task
from agentenv.tools import calculator

MAX_DIFFICULTY = 5


class Calculator(ToolEnv):
    """Solve a word problem; a calculator may be called, one turn without a call is the answer.

    Reward: 1.0 if the number in the answer equals the truth exactly, else 0.0. The number is the one after the last
    `####`, else the one in the last `\\boxed{}`, else the last one of the text. Which problems are train and which
    are test is decided by a hash of their text, so the two never share one.

    Args:
        difficulty: number of operations that the problem takes, 1 to 5.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.05

    calculate = staticmethod(calculator.calculate)

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        if not 1 <= difficulty <= MAX_DIFFICULTY:
            raise UsageError(f"difficulty is {difficulty}; allowed are 1 to {MAX_DIFFICULTY} steps")
        self.difficulty = difficulty
        self.problem = Problem(text="", steps=(), answer=0)
        self.final_text = ""
        super().__init__(**{"max_turns": difficulty + 4, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw a problem of this split."""
        self.final_text = ""
        self.problem = draw_for(
            self.split, lambda: make_problem(rng, num_steps=self.difficulty), content=lambda problem: problem.text
        )
        return f"{self.problem.text}\nUse the calculator. End with #### and the number."

    def answer(self, text: str) -> str:
        """Take the final answer."""
        self.final_text = text
        self.finish()
        return ""

    @reward(low=0.0, high=1.0)
    def correct(self) -> float:
        """1.0 if the answer is the right number."""
        given = marked_answer(self.final_text)
        return float((last_number(self.final_text) if given is None else given) == self.problem.answer)

    def oracle(self) -> Message:
        """Calculate one step per turn, then state the answer."""
        if self.num_turns < len(self.problem.steps):
            return self._call_turn(self.problem.steps[self.num_turns])
        return Message(role="assistant", content=f"#### {self.problem.answer}")

    def random_action(self, rng: np.random.Generator) -> Message:
        """Calculate something, or answer with a random number."""
        if rng.random() < 0.5:
            return self._call_turn(f"{rng.integers(1, 100)}{'+-*/'[int(rng.integers(4))]}{rng.integers(1, 100)}")
        return Message(role="assistant", content=f"#### {rng.integers(0, 1000)}")

    def cheat(self, rng: np.random.Generator) -> Message:
        """Name every number in one answer, or write the mark without a number of its own."""
        everything = " ".join(map(str, range(3000)))
        answers = (
            f"#### 0 {everything}",
            f"{everything} -1",
            f"#### {everything}\n#### -1",
            f"\\boxed{{0}} {everything}",
            "#### the right number",
            f"{self.problem.text}\n#### correct = 1.0",
        )
        return Message(role="assistant", content=answers[int(rng.integers(len(answers)))])

    def _call_turn(self, expression: str) -> Message:
        return tool_turn("calculate", {"expression": expression}, call_id=f"call_{self.num_turns}_0")
