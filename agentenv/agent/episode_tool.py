"""The environment's tools as LangChain tools, for a graph to run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

from pydantic import PrivateAttr

from agentenv.agent.graph_session import GraphSession
from agentenv.agent.langchain_messages import to_langchain
from agentenv.errors import UsageError
from agentenv.messages import Message, ToolCall

try:
    from langchain_core.tools import BaseTool
except ModuleNotFoundError as error:
    raise UsageError(f'LangChain is missing ({error}); install it with: pip install "agentenv[langgraph]"') from error


class EpisodeTool(BaseTool):
    """A tool that the environment runs: it validates the arguments, and what it refuses is a result for the model.

    A `ToolNode` and `tool.ainvoke(tool_call)` say which call of the model they run. A tool that is invoked with plain
    arguments is a call that the model never wrote. See `GraphSession.run_call` for what each means.

    Args:
        spec: the environment's schema, in the shape of chat completions.
        graph_session: of the episode.
    """

    _spec: Mapping[str, object] = PrivateAttr()
    _graph_session: GraphSession = PrivateAttr()

    def __init__(self, spec: Mapping[str, object], *, graph_session: GraphSession) -> None:
        body = cast(Mapping[str, Any], spec["function"])
        super().__init__(
            name=str(body["name"]), description=str(body["description"]), args_schema=dict(body["parameters"])
        )
        self._spec = spec
        self._graph_session = graph_session

    @property
    def episode_spec(self) -> Mapping[str, object]:
        """The schema as the environment has it."""
        return self._spec

    def _to_args_and_kwargs(
        self, tool_input: str | dict[str, Any], tool_call_id: str | None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Hand the arguments on unread, with the id of the call."""
        if isinstance(tool_input, str):
            raise UsageError(f"tool {self.name!r} was given the text {tool_input!r}; give its arguments as a dict")
        return (), {"call": ToolCall(call_id=tool_call_id or "", name=self.name, arguments=tool_input)}

    def _run(self, call: ToolCall) -> Any:
        result = self._graph_session.bridge.from_thread(functools.partial(self._graph_session.run_call, call))
        return _shown(result)

    async def _arun(self, call: ToolCall) -> Any:
        result = await self._graph_session.bridge.from_any_loop(functools.partial(self._graph_session.run_call, call))
        return _shown(result)


def _shown(result: Message) -> Any:
    return to_langchain(result).content
