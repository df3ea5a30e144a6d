"""The `ask_user` tool: put a question to the user, who is any callable, or leaves."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import cast

from agentenv.env import ToolEnv
from agentenv.errors import EpisodeError, ToolError, UsageError
from agentenv.tool import tool
from agentenv.toolkit import Toolkit

User = Callable[[str], "str | Awaitable[str | None] | None"]
"""Answers a question; None says that the user has left, which ends the episode. May be async."""

MAX_QUESTION_CHARS = 10_000


class AskUser(Toolkit):
    """Questions to a user.

    Args:
        user: who answers.
        max_questions: of one episode; further ones are refused.

    Attributes:
        asked: questions and answers so far.
    """

    def __init__(self, user: User, *, max_questions: int = 20) -> None:
        if max_questions < 1:
            raise UsageError(f"max_questions is {max_questions}; at least 1 is needed")
        self.asked: list[tuple[str, str]] = []
        self._user = user
        self._max_questions = max_questions
        self._env: ToolEnv | None = None

    def joined(self, env: ToolEnv) -> None:
        """Remember whose episode ends when the user leaves."""
        self._env = env

    @tool
    async def ask_user(self, question: str) -> str:
        """Ask the user a question and wait for the answer.

        Args:
            question: what you need to know.
        """
        if not question.strip() or len(question) > MAX_QUESTION_CHARS:
            raise ToolError(f"a question has 1 to {MAX_QUESTION_CHARS:,} characters")
        if len(self.asked) >= self._max_questions:
            raise ToolError(f"the user has answered {len(self.asked)} questions and answers no more")
        answer = self._user(question)
        if inspect.isawaitable(answer):
            answer = await cast(Awaitable["str | None"], answer)
        if answer is None:
            if self._env is not None:
                self._env.finish()
            return "The user has left."
        if not isinstance(answer, str):
            raise EpisodeError("tool", "ask_user", f"the user answered {type(answer).__name__}; text or None is needed")
        self.asked.append((question, answer))
        return answer
