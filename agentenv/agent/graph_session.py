"""What a graph and the environment share while they play one episode: turns of the model, each played once.

A graph runs its parts where and when it likes: two model calls at once, one tool call after the other, plain functions
in worker threads. The environment knows turns. This file stands between them: the calls of a turn are played together
when the first of them is run, every later one gets its own result, and whatever ends the episode ends the graph.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from agentenv.agent.graph_turn import GraphTurn, graph_turn
from agentenv.agent.loop_bridge import LoopBridge
from agentenv.agent.session import BudgetExhausted, Reply, Session, is_same_call, is_same_turn
from agentenv.errors import EpisodeEnded, EpisodeError, GraphError
from agentenv.messages import Message, ToolCall
from agentenv.renderer import ToolSpecs
from agentenv.trajectory import StopReason

T = TypeVar("T")

_GRACE_S = 5.0
"""How long a cancelled graph may clean up before it is left behind."""

_MAX_REFUSALS = 8
"""Model calls in a row that an exhausted budget may refuse before the episode is truncated."""


class GraphSession:
    """A `Session` as a graph uses it. Made on the event loop of the episode; one for each episode.

    Args:
        session: of an episode that was reset.

    Attributes:
        bridge: the way here for threads.
        ended: done once the episode is over; with the error where a side failed or a budget ended it.
        exhausted: the budget that refused the latest model call; None after a call that was answered.
        num_played: how often the environment was asked to play.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.bridge = LoopBridge(timeout_s=session.episode.limits.episode_timeout_s)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.exhausted: BudgetExhausted | None = None
        self.num_played = 0
        self._num_refused = 0
        self._turns: list[GraphTurn] = []
        self._by_call: dict[str, GraphTurn] = {}
        self._made_up: dict[str, asyncio.Task[tuple[Message, ...]]] = {}
        self._num_made_up = itertools.count()
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[tuple[Message, ...]]] = set()

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        tools: ToolSpecs = (),
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> GraphTurn:
        """Sample the next turn of a conversation; see `Session.complete`. Without tools, none are offered.

        Raises:
            BudgetExhausted: no token is left; a graph may catch it and end with what it has, or with less context go
                on. One that only tries again is stopped.
            EpisodeEnded: the episode is over.
            EpisodeError: the engine failed; this ends the episode, whatever the graph does with the error.
        """
        self._require_open()
        try:
            reply = await self.session.complete(self._restored(messages), tools=tools, max_tokens=max_tokens, stop=stop)
        except BudgetExhausted as error:
            self.exhausted = error
            self._num_refused += 1
            if self._num_refused >= _MAX_REFUSALS:
                self._end(error)
            raise
        except EpisodeError as error:
            self._end(error)
            raise
        self.exhausted, self._num_refused = None, 0
        turn = graph_turn(reply, offered=tools, known=self.session.episode.tools)
        self._turns.append(turn)
        self._by_call.update((call.call_id, turn) for call in (*turn.calls, *turn.attempts))
        return turn

    async def run_call(self, call: ToolCall) -> Message:
        """Return the environment's result of a tool call; the first call of a turn plays all of the turn.

        A call is played once: run again, it gives the same result. One that the graph changed is played as given where
        it is the only one of its turn. One that the model never wrote is played as given, and what it earns goes to the
        model's latest turn.

        Raises:
            EpisodeEnded: the episode is over, before or by this call.
            EpisodeError: the environment failed.
            GraphError: a changed call has siblings, or the model has said nothing yet.
        """
        self._require_open()
        turn = self._by_call.get(call.call_id)
        if turn is None:
            call, played = self._play_made_up(call)
        else:
            played = turn.playing = self._play_call(call, turn)
        said = await asyncio.shield(played)
        self._require_open()
        for message in said:
            if message.tool_call_id == call.call_id:
                return message
        raise GraphError(f"the environment gave no result for call {call.call_id} of {call.name!r}")

    async def answer(self, message: Message, *, turn_index: int | None) -> tuple[Message, ...]:
        """Play what a graph ended with; returns what the environment says, nothing where it was played before.

        Args:
            message: an assistant's message: a turn of the model, or one that the graph composed, which is credited to
                the model's latest turn.
            turn_index: which turn of the trajectory it is, where known.

        Raises:
            EpisodeError: the environment failed.
            GraphError: the model has said nothing yet.
        """
        turn = self._find(message, turn_index)
        if turn is None:
            return await asyncio.shield(self._start(message, reply=self._latest("ended")))
        if turn.playing is not None:
            return ()
        turn.playing = self._start(turn.spoken, reply=turn.reply)
        return await asyncio.shield(turn.playing)

    async def until_ended(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Run a graph to its end, or to that of the episode, which cancels it and gives None.

        Raises:
            BudgetExhausted: the graph did not take a refusal.
            EpisodeError: a side failed.
            Exception: whatever the graph raised.
        """
        task = asyncio.create_task(work)
        try:
            await asyncio.wait((task, self.ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                self.bridge.release()
                await _cancelled(task)
        if not self.ended.done() and self._tasks:
            await asyncio.wait(self._tasks)  # no node waits for these, but the environment is in the middle of a turn
        if not self.ended.done():
            return task.result()
        _forget(task)
        self.ended.result()
        return None

    async def close(self) -> None:
        """Cancel what is still played and let waiting threads go; idempotent."""
        self.bridge.release()
        for task in tuple(self._tasks):
            await _cancelled(task)
        if not self.ended.done():
            self.ended.set_result(None)
        self.ended.exception()

    # Private.

    def _restored(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Return a history as the environment knows it: calls as written, results of malformed attempts included."""
        out: list[Message] = []
        results: list[Message] = []
        turn: GraphTurn | None = None
        for message in messages:
            if message.role == "tool":
                results.append(message)
                continue
            out += results if turn is None else turn.with_hidden(results)
            results = []
            turn = self._turn_by_calls(message) if message.role == "assistant" else None
            out.append(message if turn is None else turn.as_told(message))
        return (*out, *(results if turn is None else turn.with_hidden(results)))

    def _turn_by_calls(self, message: Message) -> GraphTurn | None:
        return next((self._by_call[c.call_id] for c in message.tool_calls if c.call_id in self._by_call), None)

    def _find(self, message: Message, turn_index: int | None) -> GraphTurn | None:
        """Return which turn a message is, as the model said it or, with calls that were played, as the graph has it."""
        by_calls = self._turn_by_calls(message)
        told = message if by_calls is None else by_calls.as_told(message)
        same = [turn for turn in self._turns if is_same_turn(turn.reply.message, told)]
        same.sort(key=lambda turn: (turn.reply.turn == turn_index, turn.playing is None, turn.reply.turn))
        if same:
            return same[-1]
        return by_calls if by_calls is not None and by_calls.playing is not None else None

    def _play_call(self, call: ToolCall, turn: GraphTurn) -> asyncio.Task[tuple[Message, ...]]:
        spoken = turn.spoken
        if not any(is_same_call(call, written) for written in spoken.tool_calls):
            if len(spoken.tool_calls) != 1:
                raise GraphError(
                    f"the graph changed call {call.call_id} of {call.name!r}, one of {len(spoken.tool_calls)} in its "
                    "turn; the calls of a turn are played together, as the model wrote them. Change a call only where "
                    "it is alone"
                )
            spoken = replace(spoken, tool_calls=(call,))
        return turn.playing or self._start(spoken, reply=turn.reply)

    def _play_made_up(self, call: ToolCall) -> tuple[ToolCall, asyncio.Task[tuple[Message, ...]]]:
        if not call.call_id:
            call = replace(call, call_id=f"graph_{next(self._num_made_up)}")
        if call.call_id not in self._made_up:
            reply = self._latest(f"ran tool {call.name!r}")
            spoken = Message(role="assistant", content="", tool_calls=(call,))
            self._made_up[call.call_id] = self._start(spoken, reply=reply)
        return call, self._made_up[call.call_id]

    def _latest(self, what: str) -> Reply:
        if not self._turns:
            raise GraphError(f"the graph {what} before the model took a turn; there is nothing that could be credited")
        return self._turns[-1].reply

    def _start(self, spoken: Message, *, reply: Reply) -> asyncio.Task[tuple[Message, ...]]:
        # a task of its own: the graph may cancel a node that waits for it, and the environment must not stop half-way
        task = asyncio.create_task(self._act(spoken, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_forget)
        return task

    async def _act(self, spoken: Message, reply: Reply) -> tuple[Message, ...]:
        async with self._one_at_a_time:
            self._require_open()
            self.num_played += 1
            episode = self.session.episode
            try:
                said = await self.session.act(spoken, reply=reply)
            except Exception as error:
                self._end(error)
                raise
            if episode.stop_reason is not None:
                was_cut = reply.finish == "length" and spoken.content == reply.parsed.content
                if was_cut and episode.stop_reason is StopReason.COMPLETED:
                    episode.stop_reason = StopReason.MAX_TOKENS  # what ended was not an answer but the budget
                self._end()
            return said

    def _require_open(self) -> None:
        if self.ended.done():
            raise EpisodeEnded("the episode is over; nothing more is sampled or played")

    def _end(self, failure: Exception | None = None) -> None:
        if self.ended.done():
            return
        if failure is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(failure)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end; one that does not end is left behind, its outcome ignored."""
    task.cancel()
    task.add_done_callback(_forget)
    await asyncio.wait((task,), timeout=_GRACE_S)


def _forget(task: asyncio.Task[Any]) -> None:
    """Take note of an outcome that nobody asks for, so that it is not reported as forgotten."""
    if task.done() and not task.cancelled():
        task.exception()
