"""Train language-model agents in Gymnasium environments.

`import agentenv` registers every environment with Gymnasium and stays free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from agentenv import catalogue as _catalogue
from agentenv.env import AgentEnv, Step, ToolEnv, tool_turn
from agentenv.messages import Message, ToolCall, ToolResult
from agentenv.registry import make, make_bare, register, registered
from agentenv.reward import Reward, Rubric, reward
from agentenv.spaces import MessageSpace, TextSpace
from agentenv.tasks import Task, load_tasks
from agentenv.tool import Tool, Toolbox, tool
from agentenv.trajectory import Group, StopReason, Trajectory, Turn

if TYPE_CHECKING:
    from agentenv.check import check_env
    from agentenv.runner import Runner

__version__ = "0.1.0"

__all__ = [
    "AgentEnv",
    "Group",
    "Message",
    "MessageSpace",
    "Reward",
    "Rubric",
    "Runner",
    "Step",
    "StopReason",
    "Task",
    "TextSpace",
    "Tool",
    "ToolCall",
    "ToolEnv",
    "ToolResult",
    "Toolbox",
    "Trajectory",
    "Turn",
    "__version__",
    "check_env",
    "load_tasks",
    "make",
    "make_bare",
    "register",
    "registered",
    "reward",
    "tool",
    "tool_turn",
]

_LATE = {"Runner": "agentenv.runner", "check_env": "agentenv.check"}


def __getattr__(name: str) -> object:
    """Load the names that would slow `import agentenv` down on their first use."""
    if name not in _LATE:
        raise AttributeError(f"module 'agentenv' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATE[name]), name)
    globals()[name] = value
    return value


_catalogue.register_all()
