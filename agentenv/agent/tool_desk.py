"""Runs an environment's tools for a program: the calls that the model made, each turn of them played once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from agentenv.agent.model_request import RequestError
from agentenv.agent.session import Reply
from agentenv.messages import Message, ToolCall

Act = Callable[[Message, Reply], Awaitable[tuple[Message, ...]]]


@dataclass(slots=True, kw_only=True)
class _CallingTurn:
    """A turn with calls.

    Attributes:
        reply: the turn.
        playing: the environment's step; None until a program asks for a result.
        fetched: ids of the calls whose result was asked for.
    """

    reply: Reply
    playing: asyncio.Task[tuple[Message, ...]] | None = None
    fetched: set[str] = field(default_factory=set)


class ToolDesk:
    """Where a program gets the results of calls.

    An environment takes a turn as a whole. So the first request for a result of a turn plays all calls of that turn,
    and every further one only fetches what its call gave.

    Args:
        act: plays a turn in the environment.
    """

    def __init__(self, act: Act) -> None:
        self._act = act
        self._turns: list[_CallingTurn] = []
        self._by_id: dict[str, _CallingTurn] = {}

    def offer(self, reply: Reply) -> None:
        """Let the calls of a turn be asked for."""
        if not reply.message.tool_calls:
            return
        turn = _CallingTurn(reply=reply)
        self._turns.append(turn)
        for call in reply.message.tool_calls:
            self._by_id[call.call_id] = turn

    def has_played(self, reply: Reply) -> bool:
        """True where the calls of a turn went to the environment."""
        return any(turn.reply is reply and turn.playing is not None for turn in self._turns)

    async def result(self, name: str, arguments: Mapping[str, object], *, call_id: str = "") -> Message:
        """Return what a call gave; the same call may be asked for again by its id.

        Args:
            name: of the tool.
            arguments: what it was called with; where `call_id` is given, empty is whatever the model wrote.
            call_id: which call; "" is the newest one of this name and these arguments that nobody asked for.

        Raises:
            RequestError: the model made no such call (409).
            EpisodeError: env or tool failed.
        """
        turn, call = self._by_call_id(name, arguments, call_id) if call_id else self._by_content(name, arguments)
        turn.fetched.add(call.call_id)
        if turn.playing is None:
            turn.playing = asyncio.create_task(self._play(turn.reply), name=f"calls of turn {turn.reply.turn}")
            # who asked may be gone by then
            turn.playing.add_done_callback(lambda task: task.cancelled() or task.exception())
        # a program that hangs up must not leave the environment in the middle of a step
        messages = await asyncio.shield(turn.playing)
        found = [message for message in messages if message.tool_call_id == call.call_id]
        return found[0] if found else Message(role="tool", content="", tool_call_id=call.call_id, name=call.name)

    async def settle(self) -> None:
        """Wait until the environment is not in the middle of a step; whoever asked for it may be gone."""
        playing = [turn.playing for turn in self._turns if turn.playing is not None]
        await asyncio.gather(*playing, return_exceptions=True)

    async def close(self) -> None:
        """Stop what is played; idempotent."""
        playing = [turn.playing for turn in self._turns if turn.playing is not None and not turn.playing.done()]
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)

    async def _play(self, reply: Reply) -> tuple[Message, ...]:
        return await self._act(reply.parsed, reply)

    def _by_call_id(self, name: str, arguments: Mapping[str, object], call_id: str) -> tuple[_CallingTurn, ToolCall]:
        turn = self._by_id.get(call_id)
        if turn is None:
            raise RequestError(f"the model made no call with the id {call_id[:80]!r}", status=409, field="call_id")
        call = next(one for one in turn.reply.message.tool_calls if one.call_id == call_id)
        if call.name != name:
            raise RequestError(f"call {call_id} is of {call.name!r}, not of {name[:80]!r}", status=409, field="name")
        if arguments and call.status == "ok" and call.arguments != arguments:
            raise RequestError(
                f"the model made call {call_id} with other arguments; send those, or none",
                status=409,
                field="arguments",
            )
        return turn, call

    def _by_content(self, name: str, arguments: Mapping[str, object]) -> tuple[_CallingTurn, ToolCall]:
        for turn in reversed(self._turns):
            for call in turn.reply.message.tool_calls:
                is_meant = call.name == name and (call.status != "ok" or call.arguments == arguments)
                if is_meant and call.call_id not in turn.fetched:
                    return turn, call
        raise RequestError(
            f"the model made no call of {name[:80]!r} with these arguments that was not answered yet; the tools of the "
            "environment run only what the model calls",
            status=409,
            field="arguments",
        )
