"""What the tests of tools share: a toolbox over toolkits, and calls that return what the model is told."""

from typing import Any

from agentenv import ToolCall, ToolEnv, ToolResult
from agentenv.tool import Toolbox, as_tool, toolbox_of
from agentenv.toolkit import Toolkit


def offered(specs: Any) -> list[str]:
    """Return the names of the tools that a model is offered."""
    return [spec["function"]["name"] for spec in specs]


class Desk(ToolEnv):
    """Use tools. Reward: none."""

    def setup(self, rng: Any, task: Any) -> Any:
        return "Go."


def box(*items) -> Toolbox:
    """Return a toolbox over toolkits and tool functions."""
    tools = [tool for item in items for tool in (item.tools if isinstance(item, Toolkit) else [as_tool(item)])]
    return toolbox_of(tools)


async def told(tools: Toolbox, name: str, /, **arguments: object) -> str:
    """Call a tool and return its text."""
    return (await result(tools, name, **arguments)).content


async def result(tools: Toolbox, name: str, /, **arguments: object) -> ToolResult:
    """Call a tool."""
    return await tools.run(ToolCall(call_id="c0", name=name, arguments=arguments))
