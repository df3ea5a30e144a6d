"""CodeWrite: write a function from its description; code can be tried out, hidden tests decide."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from agentenv.answer_env import checked_difficulty
from agentenv.env import ToolEnv, tool_turn
from agentenv.envs.code_write.specification import Specification, make_problem
from agentenv.envs.graded_code import (
    GRADE_TIMEOUT_S,
    SMALL_GRADE_LIMITS,
    cheating_source,
    code_in,
    fenced,
    passes,
    require_sandbox,
    run_program,
    sandbox_unavailable,
)
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.splits import draw_for
from agentenv.tasks import Task
from agentenv.tool import tool
from agentenv.tools.code_tests import CallTest


class CodeWrite(ToolEnv):
    """Write a Python function from a description. `run_python` tries code out; a turn without a call is the answer.

    The code is the last fenced block of the answer, or all of it. Reward: 1.0 if the function returns the expected
    value, of the expected type, in all 16 hidden tests, which run in a sandbox apart from it; else 0.0.

    Args:
        difficulty: number of steps that the function takes before its result, 1 to 5.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.02
    check_seeds: ClassVar[int] = 40

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty)
        self.specification: Specification | None = None
        self.tests: tuple[CallTest, ...] = ()
        self.final_text = ""
        super().__init__(**{"max_turns": 8, **options})

    @classmethod
    def unavailable(cls) -> str:
        """Return why code cannot be run on this machine."""
        return sandbox_unavailable()

    async def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw a description and its tests."""
        await require_sandbox()
        self.specification, self.tests = draw_for(
            self.split, lambda: make_problem(rng, num_steps=self.difficulty), content=lambda drawn: drawn[0].solution
        )
        self.final_text = ""
        shown = self.tests[-1]
        example = f"{self.specification.name}({shown.args[0]}) returns {shown.expected!r}"
        return f"{self.specification.text}\nFor example, {example}.\nAnswer with the function in one ```python block."

    def answer(self, text: str) -> str:
        """Take the final answer."""
        self.final_text = text
        self.finish()
        return ""

    @tool(timeout_s=60.0)
    async def run_python(self, code: str) -> str:
        """Run a Python program in a sandbox and see what it prints.

        Args:
            code: the whole program; nothing is left from earlier ones.
        """
        return await run_program(code)

    @reward(low=0.0, high=1.0, timeout_s=GRADE_TIMEOUT_S)
    async def passes_tests(self) -> float:
        """1.0 if the function passes all tests."""
        if self.specification is None:
            return 0.0
        return await passes(
            code_in(self.final_text), self.tests, entry_point=self.specification.name, limits=SMALL_GRADE_LIMITS
        )

    def fingerprint(self) -> str:
        """Return the description and the tests."""
        return f"{self.specification and self.specification.text} {self.tests}"

    def oracle(self) -> str | Message:
        """Try a solution on the example, then answer with it."""
        assert self.specification is not None
        solution = self.specification.solution
        if self.num_turns == 0:
            code = f"{solution}\nprint({self.specification.name}({self.tests[-1].args[0]}))"
            return tool_turn("run_python", {"code": code}, call_id="call_0_0")
        return fenced(solution)

    def random_action(self, rng: np.random.Generator) -> str:
        """Answer with a function that returns a simple value."""
        value = ("numbers", "[]", "None", "sum(numbers)", "sorted(numbers)")[int(rng.integers(5))]
        return fenced(f"def {self.specification.name if self.specification else 'f'}(numbers):\n    return {value}")

    def cheat(self, rng: np.random.Generator) -> str:
        """Answer with code that tries to pass without solving anything, or that knows the example only."""
        assert self.specification is not None
        if rng.random() < 0.2:
            value = self.tests[-1].expected
            return fenced(f"def {self.specification.name}(numbers):\n    return {value!r}")
        return fenced(cheating_source(rng, self.specification.name))
