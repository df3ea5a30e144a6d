"""Agents by name: the shipped ones, or any other by import string."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from pydantic import Field, JsonValue

from agentenv.agent.protocol import Agent
from agentenv.config import Config
from agentenv.errors import UsageError, did_you_mean

AGENTS: dict[str, str] = {
    "chat": "agentenv.agent.chat:ChatAgent",
    "single_turn": "agentenv.agent.single_turn:SingleTurnAgent",
    "react": "agentenv.agent.react:ReActAgent",
    "langgraph": "agentenv.agent.langgraph:LangGraphAgent",
    "gateway": "agentenv.agent.gateway:GatewayAgent",
}
"""Shipped agents: name to import string."""


class AgentConfig(Config):
    """Which agent plays, unless a task row names another."""

    name: str = "chat"
    """A shipped agent (chat, single_turn, react, langgraph, gateway), or an import string module:Class."""
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Its constructor arguments."""


def make_agent(name: str, **kwargs: object) -> Agent:
    """Make an agent.

    Args:
        name: a key of `AGENTS`, or an import string `module:Class` (or of a function that returns an agent).
        **kwargs: its arguments.

    Raises:
        UsageError: there is no such agent, an argument is wrong, or what came is no agent.
    """
    factory = _load(name)
    _check_arguments(name, factory, kwargs=kwargs)
    try:
        agent = factory(**kwargs)
    except TypeError as error:
        raise UsageError(f"agent {name!r} cannot be made with {kwargs}: {error}") from error
    if not callable(getattr(agent, "play", None)):
        raise UsageError(f"agent {name!r} gave {type(agent).__name__}, which has no method play(episode)")
    return agent


async def close_agent(agent: Agent) -> None:
    """Close an agent that has something to close, such as a server of its own."""
    close = getattr(agent, "close", None)
    if close is not None:
        await close()


def _load(name: str) -> Callable[..., Any]:
    target = AGENTS.get(name, name)
    module_name, colon, attribute = target.partition(":")
    if not (colon and module_name and attribute):
        raise UsageError(
            f"there is no agent {name!r}.{did_you_mean(name, AGENTS)} Allowed: {', '.join(AGENTS)}, or an import "
            "string module:Class"
        )
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"agent {name!r}: cannot import {target!r} ({error})") from error
    if not callable(found):
        raise UsageError(f"agent {name!r}: {target!r} is {type(found).__name__}; a class or a function is needed")
    return found


def _check_arguments(name: str, factory: Callable[..., Any], *, kwargs: dict[str, object]) -> None:
    """Refuse arguments that the factory does not take, with the near miss."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature says itself what it cannot take
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    allowed = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for given in kwargs:
        if given not in allowed:
            raise UsageError(
                f"agent {name!r} has no argument {given!r}.{did_you_mean(given, allowed)} "
                f"Arguments: {', '.join(allowed) or 'none'}"
            )
    missing = [p.name for p in parameters if p.default is p.empty and p.name in allowed and p.name not in kwargs]
    if missing:
        raise UsageError(f"agent {name!r} needs {', '.join(missing)}")
