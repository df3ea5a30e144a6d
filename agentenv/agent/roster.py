"""Who plays which task: the runner's agent, or the one that the task's row names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from agentenv.agent.protocol import Agent
from agentenv.agent.registry import close_agent, make_agent
from agentenv.context import WhenFull
from agentenv.errors import DataError, UsageError
from agentenv.tasks import AgentChoice, Task, agent_choice


class Roster:
    """The agents of a runner.

    An agent that a row names is made once for every different choice and used again; it is closed here. A row's choice
    is how a model plays, so it does not replace an agent that speaks without the engine (a scripted policy, a person,
    another endpoint).

    Args:
        default: plays where the row names none; the caller owns it.
    """

    def __init__(self, default: Agent) -> None:
        self.default = default
        self._made: dict[str, Agent] = {}

    def agent_for(self, task: Task, *, tools: Sequence[Mapping[str, object]], when_full: WhenFull = "stop") -> Agent:
        """Return who plays a task.

        Args:
            task: whose row may name an agent.
            tools: that are offered in this episode.
            when_full: what shall happen when the context budget nears its end.

        Raises:
            DataError: the row's agent does not exist or cannot be made.
            UsageError: tools are offered to an agent that cannot use them, or the history shall be shortened of an
                agent that keeps it itself.
        """
        agent = self._chosen(task)
        if tools and not getattr(agent, "uses_tools", True):
            raise UsageError(
                f"task {task.task_id}: agent {type(agent).__name__} cannot use tools, and {_names(tools)} "
                "are offered; take an agent that can (chat, react), or let the row say tools: []"
            )
        if when_full != "stop" and getattr(agent, "keeps_history", False):
            raise UsageError(
                f"task {task.task_id}: limits.context.when_full is {when_full!r}, but agent {type(agent).__name__} "
                "keeps its conversation itself; shorten it there, or set when_full: stop"
            )
        return agent

    async def close(self) -> None:
        """Close the agents that were made here and have something to close; idempotent."""
        while self._made:
            _, agent = self._made.popitem()
            await close_agent(agent)

    def _chosen(self, task: Task) -> Agent:
        if not getattr(self.default, "uses_engine", True):
            return self.default
        choice = agent_choice(task)
        if choice is None:
            return self.default
        key = json.dumps([choice.name, dict(choice.kwargs)], sort_keys=True, default=repr)
        if key not in self._made:
            self._made[key] = _make(choice, task=task)
        return self._made[key]


def _make(choice: AgentChoice, *, task: Task) -> Agent:
    try:
        return make_agent(choice.name, **choice.kwargs)
    except UsageError as error:
        raise DataError(f"task {task.task_id}: field 'agent': {error}") from error


def _names(tools: Sequence[Mapping[str, object]]) -> str:
    return ", ".join(str(cast(Mapping[str, Any], tool["function"])["name"]) for tool in tools)
