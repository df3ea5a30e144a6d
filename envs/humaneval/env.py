"""HumanEval: complete a Python function; hidden tests decide."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np

from agentenv.env import AgentEnv
from agentenv.envs.graded_code import (
    GRADE_TIMEOUT_S,
    cheating_source,
    code_in,
    fenced,
    passes,
    require_sandbox,
    sandbox_unavailable,
)
from agentenv.envs.humaneval.problems import Problem, Subset, problem_of, problems_of
from agentenv.errors import UsageError
from agentenv.reward import reward
from agentenv.tasks import Task


class HumanEval(AgentEnv):
    """Complete one of the 164 functions of HumanEval in one turn.

    The code is the last fenced block of the answer, or all of it: the whole function, or its body alone. It runs in a
    sandbox, apart from the tests. Reward: 1.0 if it passes all hidden tests of the problem, else 0.0.

    Args:
        subset: `"split"`: every fourth problem is of the train split, the other 123 of the test split; `"all"`: all
            164 in both, as published results count them.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.05
    check_seeds: ClassVar[int] = 40

    def __init__(self, *, subset: Subset = "split", **options: Any) -> None:
        if subset not in ("split", "all"):
            raise UsageError(f'subset is {subset!r}; allowed are "split" and "all"')
        self.subset: Subset = subset
        self.problem = Problem(task_id="", prompt="", entry_point="", solution="", test="")
        self.final_text = ""
        super().__init__(**{"max_turns": 1, **options})

    @classmethod
    def unavailable(cls) -> str:
        """Return why code cannot be run on this machine."""
        return sandbox_unavailable()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks of this split."""
        return tuple(Task(task_id=problem.task_id) for problem in problems_of(self.split, self.subset))

    def sample_task(self, rng: np.random.Generator) -> Task:
        """Draw a problem."""
        problems = problems_of(self.split, self.subset)
        return Task(task_id=problems[int(rng.integers(len(problems)))].task_id)

    async def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Ask for the function of the task."""
        await require_sandbox()
        self.problem, self.final_text = problem_of(task), ""
        return (
            f"Complete this Python function. Answer with the whole function in one ```python block.\n\n"
            f"{fenced(self.problem.prompt)}"
        )

    def respond(self, text: str) -> str:
        """Take the answer."""
        self.final_text = text
        self.finish()
        return ""

    @reward(low=0.0, high=1.0, timeout_s=GRADE_TIMEOUT_S)
    async def passes_tests(self) -> float:
        """1.0 if the code passes all tests."""
        source = whole_source(self.problem, self.final_text)
        return await passes(
            source, self.problem.test, entry_point=self.problem.entry_point, support=self.problem.prompt
        )

    def oracle(self) -> str:
        """Answer with the reference solution."""
        return fenced(self.problem.prompt + self.problem.solution)

    def random_action(self, rng: np.random.Generator) -> str:
        """Answer with a function that returns a constant or its first argument."""
        value = ("None", "0", "True", "[]", "''", "args[0]")[int(rng.integers(6))]
        return fenced(f"def {self.problem.entry_point}(*args):\n    return {value}")

    def cheat(self, rng: np.random.Generator) -> str:
        """Answer with code that tries to pass without solving anything."""
        return fenced(cheating_source(rng, self.problem.entry_point))


def whole_source(problem: Problem, text: str) -> str:
    """Return the program in an answer, with the prompt before it: its imports and helpers are there either way."""
    code = code_in(text)
    if not code.strip():
        return ""
    if re.search(rf"^(?:async\s+)?def\s+{re.escape(problem.entry_point)}\b", code, re.MULTILINE):
        return f"{problem.prompt.rstrip()}\n    pass\n\n{code}"
    return problem.prompt + code
