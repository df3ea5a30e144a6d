"""GSM8K: grade-school mathematics with a calculator tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from agentenv.env import ToolEnv, tool_turn
from agentenv.envs.calculator.answer import first_number, marked_answer
from agentenv.envs.gsm8k.files import load_split
from agentenv.envs.gsm8k.solution import Solution, read_solution
from agentenv.errors import DataError
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.tasks import Task
from agentenv.tools import calculator


class GSM8K(ToolEnv):
    r"""Answer a question of GSM8K; a calculator may be called, one turn without a call is the answer.

    Reward: 1.0 if the number after the last `####` of the answer, or without one the number in its last `\boxed{}`,
    equals the ground truth exactly, else 0.0. Commas, `$`, units and trailing zeros make no difference.

    The rows come from the first of: `path`, `$AGENTENV_DATA/gsm8k`, the user's cache, a bundled sample of 200 rows
    per split. `agentenv prepare gsm8k` writes the full set. The first episode of a process reads the file.

    Args:
        path: a parquet file, or a folder with `train.parquet` and `test.parquet`.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.05

    calculate = staticmethod(calculator.calculate)

    def __init__(self, *, path: str | None = None, **options: Any) -> None:
        self.path = path
        self.solution = Solution(calls=(), conclusion="")
        self.final_text = ""
        super().__init__(**{"max_turns": 12, **options})

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks of this split."""
        return load_split(self.path, split=self.split)

    def sample_task(self, rng: np.random.Generator) -> Task:
        """Draw a row."""
        tasks = self.tasks
        return tasks[int(rng.integers(len(tasks)))]

    def setup(self, rng: np.random.Generator, task: Task) -> tuple[Message, ...]:
        """Ask the question of the row."""
        if first_number(task.answer) is None:
            raise DataError(f"task {task.task_id}: the ground truth is {task.answer!r}; expected a number")
        extra = task.data.get("extra_info")
        official = extra.get("answer") if isinstance(extra, Mapping) else None
        self.solution = read_solution(str(official or ""), answer=task.answer)
        self.final_text = ""
        return task.prompt

    def answer(self, text: str) -> str:
        """Take the final answer."""
        self.final_text = text
        self.finish()
        return ""

    @reward(low=0.0, high=1.0)
    def correct(self) -> float:
        """1.0 if the answer is the right number."""
        given = marked_answer(self.final_text)
        return float(given is not None and given == first_number(self.task.answer))

    def oracle(self) -> Message:
        """Follow the official solution, one calculation per turn."""
        turn = self.num_turns
        if turn >= len(self.solution.calls):
            return Message(role="assistant", content=self.solution.conclusion)
        content, expression = self.solution.calls[turn]
        return tool_turn("calculate", {"expression": expression}, call_id=f"call_{turn}_0", content=content)

    def cheat(self, rng: np.random.Generator) -> Message:
        """Name every number in one answer, or write the mark without a number of its own."""
        everything = " ".join(map(str, range(3000)))
        answers = (
            f"#### -0.5 {everything}",
            everything,
            f"#### {everything}\n#### -0.5",
            f"\\boxed{{-0.5 or {everything}}}",
            "#### the right number",
            f"{self.task.text}\n####",
        )
        return Message(role="assistant", content=answers[int(rng.integers(len(answers)))])

    def random_action(self, rng: np.random.Generator) -> Message:
        """Calculate something, or answer with a random number."""
        if rng.random() < 0.5:
            expression = f"{rng.integers(1, 100)}*{rng.integers(1, 100)}"
            return tool_turn("calculate", {"expression": expression}, call_id=f"call_{self.num_turns}_0")
        return Message(role="assistant", content=f"#### {rng.integers(0, 200)}")
