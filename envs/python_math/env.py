"""PythonMath: number problems with a Python interpreter whose variables stay for the whole episode."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from agentenv.envs.graded_code import sandbox_unavailable
from agentenv.envs.python_math.problems import make_problem
from agentenv.envs.question import PlannedCall, Question, QuestionEnv
from agentenv.errors import SandboxError
from agentenv.splits import draw_for
from agentenv.tasks import Task
from agentenv.tool import tool
from agentenv.tools.sandbox.choice import open_sandbox
from agentenv.tools.sandbox.sandbox import Cell, Limits, Sandbox

_LIMITS = Limits(wall_s=10.0, episode_s=120.0, output_bytes=8 << 10)
_NUM_CANDIDATES = 200


class PythonMath(QuestionEnv):
    """Solve a number problem with the tool `python`: an interpreter in a sandbox, one per episode, that remembers.

    Reward: 1.0 if the number after the last `####` is the answer, else 0.0.

    Args:
        difficulty: 1: sums of multiples; 2: powers and digits; 3: primes; 4: ways and paths; 5: orbits and all of
            the harder ones.
        **options: of `AgentEnv`.
    """

    random_threshold: ClassVar[float] = 0.1
    check_seeds: ClassVar[int] = 40

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.sandbox: Sandbox | None = None
        super().__init__(difficulty=difficulty, **{"max_turns": 10, **options})

    @classmethod
    def unavailable(cls) -> str:
        """Return why code cannot be run on this machine."""
        return sandbox_unavailable()

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw a problem."""
        problem = make_problem(rng, difficulty=self.difficulty)
        others = {problem.answer + step for step in range(-_NUM_CANDIDATES // 2, _NUM_CANDIDATES // 2)}
        return Question(
            text=problem.text,
            answer=str(problem.answer),
            calls=tuple(PlannedCall(name="python", arguments={"code": cell}) for cell in problem.cells),
            candidates=tuple(map(str, sorted(others))),
        )

    async def setup(self, rng: np.random.Generator, task: Task) -> str:  # type: ignore[override]
        """Draw a problem and open the sandbox."""
        question = draw_for(self.split, lambda: self.draw(rng), content=lambda drawn: drawn.text)
        self.sandbox = await open_sandbox(limits=_LIMITS)
        return self.ask(question)

    async def teardown(self) -> None:
        """Close the sandbox."""
        sandbox, self.sandbox = self.sandbox, None
        if sandbox is not None:
            await sandbox.close()

    @tool(timeout_s=60.0)
    async def python(self, code: str) -> str:
        """Run Python code; variables and functions stay for the next call. Shows prints and the last expression.

        Args:
            code: one or more lines.
        """
        if self.sandbox is None:
            raise SandboxError("PythonMath", "the episode has no sandbox")
        return _told(await self.sandbox.python(code))


def _told(cell: Cell) -> str:
    # where the interpreter had to be replaced, the error says so
    parts = [cell.output.rstrip(), cell.value, cell.error.rstrip()]
    return "\n".join(part for part in parts if part) or "(nothing was printed)"
