"""A turn of the model in a graph: what the graph may run of it, and what the environment plays."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from agentenv.agent.session import Reply
from agentenv.messages import Message, ToolCall
from agentenv.renderer import ToolSpecs


@dataclass(slots=True, kw_only=True, eq=False)
class GraphTurn:
    """A turn of the model, as a graph gets it and as the environment plays it.

    Attributes:
        reply: what the model said.
        calls: calls of tools that it was offered.
        attempts: malformed calls, and calls of tools that it was not offered; the environment answers these.
        spoken: what the environment plays: all of it but calls of tools that only the graph has.
        hidden: ids of what the graph does not see as calls.
        playing: gives the environment's messages; None until the turn is played.
    """

    reply: Reply
    calls: tuple[ToolCall, ...]
    attempts: tuple[ToolCall, ...]
    spoken: Message
    hidden: frozenset[str]
    playing: asyncio.Task[tuple[Message, ...]] | None = None

    def as_told(self, message: Message) -> Message:
        """Return this turn, as a graph sent it back, with its attempts as they were written and in their order."""
        if not self.attempts:
            return message
        attempts = {call.call_id: call for call in self.attempts}
        order = {call.call_id: index for index, call in enumerate(self.reply.message.tool_calls)}
        calls = sorted(message.tool_calls, key=lambda call: order.get(call.call_id, len(order)))
        return replace(message, tool_calls=tuple(attempts.get(call.call_id, call) for call in calls))

    def with_hidden(self, results: list[Message]) -> list[Message]:
        """Return the results that follow this turn, with those that no node of a graph could ask for."""
        if not self.hidden or self.playing is None or not _is_done_well(self.playing):
            return results
        said = self.playing.result()
        given = {result.tool_call_id for result in results}
        missing = [m for m in said if m.tool_call_id in self.hidden and m.tool_call_id not in given]
        order = {message.tool_call_id: index for index, message in enumerate(said)}
        return sorted((*results, *missing), key=lambda result: order.get(result.tool_call_id, len(order)))


def graph_turn(reply: Reply, *, offered: ToolSpecs, known: ToolSpecs) -> GraphTurn:
    """Sort the calls of a reply by who answers them.

    Args:
        reply: what the model said.
        offered: tools of this model call.
        known: tools of the environment.
    """
    offered_names = _names(offered)
    own = offered_names - _names(known)
    is_own = [call.status == "ok" and call.name in own for call in reply.parsed.tool_calls]
    spoken = tuple(call for call, own_call in zip(reply.parsed.tool_calls, is_own, strict=True) if not own_call)
    written = reply.message.tool_calls
    calls = tuple(call for call in written if call.status == "ok" and call.name in offered_names)
    return GraphTurn(
        reply=reply,
        calls=calls,
        attempts=tuple(call for call in written if call not in calls),
        spoken=replace(reply.parsed, tool_calls=spoken),
        hidden=frozenset(call.call_id for call in reply.parsed.tool_calls if call not in calls),
    )


def _names(tools: ToolSpecs) -> frozenset[str]:
    return frozenset(str(cast(Mapping[str, object], tool.get("function", tool)).get("name", "")) for tool in tools)


def _is_done_well(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
