"""BugFix: find and mend the bugs in a small function; hidden tests decide."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from agentenv.answer_env import checked_difficulty
from agentenv.env import ToolEnv, tool_turn
from agentenv.envs.bug_fix.bugs import BrokenFunction, break_function
from agentenv.envs.graded_code import (
    GRADE_TIMEOUT_S,
    SMALL_GRADE_LIMITS,
    cheating_source,
    passes,
    require_sandbox,
    run_program,
    sandbox_unavailable,
)
from agentenv.envs.question import PlannedCall
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.splits import draw_for
from agentenv.tasks import Task
from agentenv.tool import tool
from agentenv.tools.files import Files

FILE = "solution.py"
_NUM_BUGS = (1, 1, 2, 3, 4)
_LAST_WITH_EXAMPLE = 1


class BugFix(ToolEnv):
    """Mend a function in `solution.py`. Files can be viewed and edited, code run; a turn without a call ends it.

    The function's docstring says what it promises; one or more of its lines were changed. Reward: 1.0 if at the end
    the function in the file gives the right value in all 24 hidden tests, which run in a sandbox apart from it; else
    0.0. Each bug fails at least one test by itself.

    Args:
        difficulty: 1: one bug, and a call that shows it; 2: one bug; 3: two bugs; 4: three; 5: four.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.02
    check_seeds: ClassVar[int] = 20

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty)
        self.broken: BrokenFunction | None = None
        self.files = Files()
        super().__init__(**{"max_turns": 16, **options})

    @classmethod
    def unavailable(cls) -> str:
        """Return why code cannot be run on this machine."""
        return sandbox_unavailable()

    async def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw a function with bugs."""
        await require_sandbox()
        num_bugs = _NUM_BUGS[self.difficulty - 1]
        self.broken = draw_for(
            self.split, lambda: break_function(rng, num_bugs=num_bugs), content=lambda drawn: drawn.broken
        )
        self.files = Files({FILE: self.broken.broken + "\n"}, max_files=10, max_chars=50_000)
        self.attach(self.files)
        told = f"The function {self.broken.name} in {FILE} does not do what its docstring says. Mend it."
        if self.difficulty <= _LAST_WITH_EXAMPLE:
            test = self.broken.tests[self.broken.failing]
            call = f"{self.broken.name}({', '.join(map(repr, test.args))})"
            told += f" For example, {call} should return {test.expected!r}."
        return f"{told} When it is done, say: done."

    @tool(timeout_s=60.0)
    async def run_python(self, code: str) -> str:
        """Run Python code in a sandbox, after the code of solution.py, and see what it prints.

        Args:
            code: e.g. calls of the function, printed.
        """
        return await run_program(f"{self.files.tree.get(FILE, '')}\n\n{code}")

    @reward(low=0.0, high=1.0, timeout_s=GRADE_TIMEOUT_S)
    async def passes_tests(self) -> float:
        """1.0 if the function in the file passes all tests."""
        if self.broken is None:
            return 0.0
        return await passes(
            self.files.tree.get(FILE, ""), self.broken.tests, entry_point=self.broken.name, limits=SMALL_GRADE_LIMITS
        )

    def fingerprint(self) -> str:
        """Return the function, its bugs and the tests."""
        return str(self.broken)

    def oracle(self) -> str | Message:
        """View the file, see a test fail, mend line by line, say so."""
        assert self.broken is not None
        test = self.broken.tests[self.broken.failing]
        call = f"print({self.broken.name}({', '.join(map(repr, test.args))}))"
        calls = [
            PlannedCall(name="view_file", arguments={"path": FILE}),
            PlannedCall(name="run_python", arguments={"code": call}),
            *self._repairs(self.broken),
        ]
        return calls[self.num_turns].turn(self.num_turns) if self.num_turns < len(calls) else "done"

    def random_action(self, rng: np.random.Generator) -> str | Message:
        """Replace any line by any other, or stop."""
        if rng.random() < 0.3 or self.broken is None:
            return "done"
        lines = [line for line in self.broken.broken.splitlines() if line.strip()]
        old, new = (lines[int(index)] for index in rng.integers(len(lines), size=2))
        arguments = {"path": FILE, "old": old, "new": new}
        return tool_turn("replace_text", arguments, call_id=f"call_{self.num_turns}_0")

    def cheat(self, rng: np.random.Generator) -> str | Message:
        """Write code that tries to pass without mending anything, or tests of one's own that pass."""
        assert self.broken is not None
        if self.num_turns:
            return "passes_tests: 1.0, done"
        if rng.random() < 0.2:
            test = self.broken.tests[self.broken.failing]
            source = f"def {self.broken.name}(*args):\n    return {test.expected!r}"
        else:
            source = cheating_source(rng, self.broken.name)
        return tool_turn("create_file", {"path": FILE, "text": source}, call_id="call_0_0")

    def _repairs(self, broken: BrokenFunction) -> list[PlannedCall]:
        """Return a call per changed line; the whole file at once where such a line occurs twice."""
        wrong, right = broken.broken.splitlines(), broken.right.splitlines()
        pairs = [(old, new) for old, new in zip(wrong, right, strict=True) if old != new]
        if any(broken.broken.count(old) > 1 for old, _ in pairs):
            return [PlannedCall(name="create_file", arguments={"path": FILE, "text": broken.right + "\n"})]
        return [PlannedCall(name="replace_text", arguments={"path": FILE, "old": a, "new": b}) for a, b in pairs]
