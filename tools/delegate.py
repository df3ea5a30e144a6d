"""The `ask_agent` tool: hand a question to another agent, which has a budget and perhaps tools of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agentenv.agent.protocol import Agent
from agentenv.engine.protocol import Engine
from agentenv.env import Prompt, ToolEnv
from agentenv.episode import EpisodeSpec, Limits, Sampling
from agentenv.errors import EpisodeError, ToolError, UsageError
from agentenv.messages import as_messages
from agentenv.renderer import Renderer
from agentenv.runner import Runner, RunnerConfig
from agentenv.seeds import derive_seed
from agentenv.tasks import Task
from agentenv.tool import tool
from agentenv.toolkit import Toolkit

Helper = Callable[[str], Awaitable[str]]
"""Answers a question."""

MAX_QUESTION_CHARS = 20_000


class Delegate(Toolkit):
    """Questions to another agent.

    Args:
        helper: who answers, for example what `engine_helper` returns.
        max_questions: of one episode; further ones are refused.

    Attributes:
        asked: questions and answers so far.
    """

    def __init__(self, helper: Helper, *, max_questions: int = 8) -> None:
        if max_questions < 1:
            raise UsageError(f"max_questions is {max_questions}; at least 1 is needed")
        self.asked: list[tuple[str, str]] = []
        self._helper = helper
        self._max_questions = max_questions
        self._num_begun = 0

    @tool(timeout_s=600.0)
    async def ask_agent(self, question: str) -> str:
        """Ask another agent, which sees nothing but your question, and wait for its answer.

        Args:
            question: all that it needs to know.
        """
        if not question.strip() or len(question) > MAX_QUESTION_CHARS:
            raise ToolError(f"a question has 1 to {MAX_QUESTION_CHARS:,} characters")
        if self._num_begun >= self._max_questions:
            raise ToolError(f"{self._num_begun} questions were asked, and no more are allowed")
        self._num_begun += 1
        answer = await self._helper(question)
        self.asked.append((question, answer))
        return answer


class _Errand(ToolEnv):
    """Answer one question. Reward: none."""

    def __init__(self, *, kits: Sequence[Callable[[], Toolkit]], max_turns: int) -> None:
        super().__init__(max_turns=max_turns)
        self._kits = kits

    def setup(self, rng: Any, task: Task) -> Prompt:
        self.attach(*(make() for make in self._kits))
        return task.prompt


def engine_helper(
    engine: Engine,
    renderer: Renderer,
    *,
    kits: Sequence[Callable[[], Toolkit]] = (),
    agent: Agent | None = None,
    limits: Limits | None = None,
    sampling: Sampling | None = None,
    max_turns: int = 8,
    seed: int = 0,
) -> Helper:
    """Return a helper that a model plays, in an episode of its own for every question.

    Args:
        engine: where its tokens come from; the caller closes it.
        renderer: of its model.
        kits: make the toolkits of one question.
        agent: how it is played; the default tool-calling agent unless given.
        limits: its budget of tokens and seconds for one question.
        sampling: how its tokens are drawn.
        max_turns: of one question.
        seed: the same question gets the same sampling seeds.
    """
    runner = Runner(
        engine=engine,
        renderer=renderer,
        agent=agent,
        config=RunnerConfig(limits=limits or Limits(), max_retries=0),
        sampling=sampling,
        make_env=lambda spec: _Errand(kits=kits, max_turns=max_turns),
    )

    async def ask(question: str) -> str:
        task = Task(task_id="question", prompt=as_messages(question))
        spec = EpisodeSpec(env_id="errand", task=task, group_id=question, run_seed=derive_seed(seed, question))
        trajectory = await runner.run_episode(spec)
        if not trajectory.is_scored:
            raise EpisodeError("tool", "ask_agent", trajectory.error or trajectory.stop_reason.value)
        said = [message.content for message in trajectory.messages if message.role == "assistant"]
        if trajectory.stop_reason.value != "completed" or not said or not said[-1].strip():
            raise ToolError(f"the agent gave no answer ({trajectory.stop_reason.value})")
        return said[-1]

    return ask
