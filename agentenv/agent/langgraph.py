"""LangGraph graphs as agents: a graph that a user wrote plays episodes, and its model's turns are trained."""

from __future__ import annotations

import importlib
import re
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from agentenv.agent.graph_session import GraphSession
from agentenv.agent.session import BudgetExhausted, Session
from agentenv.episode import Episode
from agentenv.errors import EpisodeError, GraphError, UsageError, describe
from agentenv.trajectory import StopReason

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.tools import BaseTool

    from agentenv.agent.chat_model import EpisodeChatModel

BuildGraph = Callable[["EpisodeChatModel", "list[BaseTool]"], Any]
"""Takes the model and the environment's tools of an episode, and returns a compiled graph over `messages`."""

_NODE_NOTE = re.compile(r"During task with name '([^']*)'")


class LangGraphAgent:
    """Plays episodes with a compiled LangGraph graph whose state holds `messages`.

    For every episode a graph is built and run from the environment's opening messages. Tool calls of a turn are played
    together, by the environment. The last assistant message of a run is played as the answer; where the episode goes on
    after it, the graph runs again with the environment's reply appended. What ends the episode ends the graph.

    Args:
        build: makes the graph, or an import string `"module:function"` of such a function.
        recursion_limit: steps of one run; beyond it the episode is truncated with `max_turns`.
    """

    keeps_history: ClassVar[bool] = True
    """The graph's state holds the conversation; shortening it is the graph's business."""

    def __init__(
        self, build: BuildGraph | str = "agentenv.agent.langgraph:react_graph", *, recursion_limit: int = 128
    ) -> None:
        if recursion_limit < 1:
            raise UsageError(f"recursion_limit is {recursion_limit}; at least 1 is needed")
        _require_langgraph()
        self.build: BuildGraph = _load(build) if isinstance(build, str) else build
        if not callable(self.build):
            raise UsageError(
                f"build is {type(build).__name__}; pass a function (model, tools) -> graph, or its import string"
            )
        self.recursion_limit = recursion_limit

    async def play(self, episode: Episode) -> None:
        """Play until the environment or a budget ends the episode.

        Raises:
            EpisodeError: a side failed.
            GraphError: the graph failed, or left the episode without an answer.
        """
        from agentenv.agent.chat_model import EpisodeChatModel
        from agentenv.agent.episode_tool import EpisodeTool
        from agentenv.agent.langchain_messages import to_langchain

        opening = await episode.reset()
        graph_session = GraphSession(Session(episode))
        try:
            tools: list[BaseTool] = [EpisodeTool(spec, graph_session=graph_session) for spec in episode.tools]
            graph = self.build(EpisodeChatModel(graph_session), tools)
            if not hasattr(graph, "ainvoke"):
                raise UsageError(
                    f"the graph builder returned {type(graph).__name__}; return a compiled graph (graph.compile())"
                )
            run = _GraphRun(graph, graph_session, recursion_limit=self.recursion_limit)
            await run.to_end([to_langchain(message) for message in opening])
        finally:
            await graph_session.close()


class _GraphRun:
    """One graph in one episode.

    Args:
        graph: compiled.
        graph_session: of the episode.
        recursion_limit: steps of one run.
    """

    def __init__(self, graph: Any, graph_session: GraphSession, *, recursion_limit: int) -> None:
        self.graph = graph
        self.graph_session = graph_session
        self.episode = graph_session.session.episode
        # a graph with a memory keeps one thread per play; a retried or repeated episode begins afresh
        thread_id = f"{self.episode.session_id}-{uuid.uuid4().hex}"
        self.config = {"recursion_limit": recursion_limit, "configurable": {"thread_id": thread_id}}
        self.has_memory = getattr(graph, "checkpointer", None) not in (None, False)

    async def to_end(self, opening: list[BaseMessage]) -> None:
        """Run the graph again and again until the episode is over."""
        state: dict[str, Any] = {"messages": opening}
        while self.episode.stop_reason is None:
            num_played = self.graph_session.num_played
            after = await self._run(state)
            if self.episode.stop_reason is not None or after is None:
                return
            added = await self._answer(after)
            if self.episode.stop_reason is None and self.graph_session.num_played == num_played:
                raise GraphError(
                    "a run of the graph ended without a tool call that was played and without an answer; let its last "
                    "message be the assistant's"
                )
            state = {"messages": added} if self.has_memory else {**after, "messages": [*after["messages"], *added]}

    async def _run(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Return the state that the graph ends with; None where the episode ended within it."""
        from langgraph.errors import GraphRecursionError

        try:
            after = await self.graph_session.until_ended(self.graph.ainvoke(state, self.config))
        except EpisodeError:
            raise
        except BudgetExhausted as error:
            return await self.episode.truncate(error.reason)
        except Exception as error:
            if self.graph_session.exhausted is not None:  # the graph wrapped it, or tried on in vain
                return await self.episode.truncate(self.graph_session.exhausted.reason)
            if isinstance(error, GraphRecursionError):
                return await self.episode.truncate(StopReason.MAX_TURNS)
            raise GraphError(f"{_where(error)}{describe(error)}") from error
        return after if after is None else _checked(after)

    async def _answer(self, state: dict[str, Any]) -> list[BaseMessage]:
        """Play what the graph ended with; returns the environment's messages."""
        from langchain_core.messages import AIMessage

        from agentenv.agent.langchain_messages import from_langchain, to_langchain

        last = state["messages"][-1]
        if not isinstance(last, AIMessage):
            return []
        turn_index = last.response_metadata.get("turn")
        said = await self.graph_session.answer(from_langchain(last), turn_index=turn_index)
        return [to_langchain(message) for message in said]


def react_graph(model: EpisodeChatModel, tools: Sequence[BaseTool]) -> Any:
    """Build the usual loop: the model speaks, its tool calls are run, until it answers without one."""
    from langgraph.graph import END, START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    speaker = model.bind_tools(tools)

    async def agent(state: MessagesState) -> dict[str, list[BaseMessage]]:
        return {"messages": [await speaker.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_edge(START, "agent")
    if tools:
        graph.add_node("tools", ToolNode(tools))
        graph.add_conditional_edges("agent", tools_condition, {"tools": "tools", END: END})
        graph.add_edge("tools", "agent")
    return graph.compile()


def _checked(state: object) -> dict[str, Any]:
    """Return a graph's state if an episode can go on from it."""
    if isinstance(state, dict) and "__interrupt__" in state:
        raise GraphError("the graph waits for a person (interrupt); nobody is there, so let it decide by itself")
    if not isinstance(state, dict) or not state.get("messages"):
        found = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise GraphError(f"the graph ended with {found or 'nothing'}; its state needs a list 'messages'")
    return state


def _where(error: BaseException) -> str:
    """Return the nodes that an error came through, outermost first, as LangGraph notes them."""
    nodes = [found[1] for note in getattr(error, "__notes__", ()) if (found := _NODE_NOTE.search(note))]
    return f"node {' > '.join(repr(node) for node in reversed(nodes))}: " if nodes else ""


def _load(path: str) -> BuildGraph:
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"cannot import the graph builder {path!r} ({error}); write module:function") from error


def _require_langgraph() -> None:
    try:
        importlib.import_module("langgraph.graph")
    except ModuleNotFoundError as error:
        raise UsageError(
            f'LangGraph is missing ({error}); install it with: pip install "agentenv[langgraph]"'
        ) from error
