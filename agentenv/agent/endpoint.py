"""An episode as programs see it: calls to the model, results of tools, and the answer that is played."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from agentenv.agent.chat_api import message_body
from agentenv.agent.model_request import ModelRequest, RequestError
from agentenv.agent.model_response import JsonObject, ModelResponse, is_shown_as
from agentenv.agent.session import BudgetExhausted, Reply, Session
from agentenv.agent.tool_desk import ToolDesk
from agentenv.errors import DeadlineExceeded, EpisodeError, UsageError
from agentenv.messages import Message, ToolCall
from agentenv.renderer import ToolSpecs
from agentenv.trajectory import StopReason

_MAX_TOOL_SETS = 256


class ToolSets:
    """Gives equal schemas one object, so that what is cached for them is found again."""

    def __init__(self) -> None:
        self._known: dict[str, ToolSpecs] = {}

    def shared(self, tools: ToolSpecs) -> ToolSpecs:
        """Return the first tools that were equal to these."""
        if not tools:
            return ()
        if len(self._known) >= _MAX_TOOL_SETS:
            self._known.clear()
        return self._known.setdefault(json.dumps(tools, sort_keys=True), tools)


class Endpoint:
    """One episode behind the gateway.

    Args:
        session: of the episode, already reset.
        opening: what the environment said first.
        key: names the episode.
        root_url: of the server.
        api_key: what a program shows.
        tool_sets: shared between the episodes.

    Attributes:
        conversation: what the environment said and what was played in it.
        running: calls in flight.
        is_over: set when the environment has ended, or has failed.
        refused: the budget that refused the last call; None where it did not.
        failure: why the engine failed in the last call; None where it did not.
        broken: why the environment cannot go on; None where it can.
        last_error: what the last request was refused with.
        num_replies: turns that the model took.
    """

    def __init__(
        self,
        session: Session,
        *,
        opening: Sequence[Message],
        key: str,
        root_url: str,
        api_key: str,
        tool_sets: ToolSets,
    ) -> None:
        self.session = session
        self.key = key
        self.api_key = api_key
        self.anthropic_url = f"{root_url}/e/{key}"
        self.openai_url = f"{self.anthropic_url}/v1"
        self.conversation = list(opening)
        self.running: set[asyncio.Task[object]] = set()
        self.is_over = asyncio.Event()
        self.refused: BudgetExhausted | None = None
        self.failure: EpisodeError | None = None
        self.broken: EpisodeError | None = None
        self.last_error = ""
        self.num_replies = 0
        self.desk = ToolDesk(self._play)
        self._tool_sets = tool_sets
        tool_sets.shared(session.episode.tools)
        self._last: Reply | None = None
        self._kept: dict[str, tuple[Message, ...]] = {}
        self._malformed: dict[str, ToolCall] = {}
        self._in_env = asyncio.Lock()

    @property
    def has_ended(self) -> bool:
        """True where the model may not be asked any more."""
        return self.is_over.is_set()

    def task(self) -> JsonObject:
        """Return what a program is given: the conversation and tools in the OpenAI chat shape, and what they are of."""
        episode = self.session.episode
        return {
            "messages": [message_body(message) for message in self.conversation],
            "tools": list(episode.tools),
            "env_id": episode.spec.env_id,
            "task_id": episode.env.task.task_id,
        }

    async def complete(self, request: ModelRequest) -> ModelResponse:
        """Let the model answer a request.

        Raises:
            RequestError: the conversation cannot be used, a budget is exhausted, or the engine failed.
        """
        messages, created_s = self._conversation(request), time.time()
        try:
            replies = await self._sampled(request, messages)
        except BudgetExhausted as error:
            self.refused, self.failure = error, None
            is_context = error.reason is StopReason.CONTEXT_OVERFLOW
            code = "context_length_exceeded" if is_context else "episode_tokens_exhausted"
            raise RequestError(str(error), code=code) from error
        except EpisodeError as error:
            self.failure = error
            is_late = isinstance(error, DeadlineExceeded)
            code = f"{error.side}_error"
            raise RequestError(str(error), status=504 if is_late else 500, code=code, is_final=is_late) from error
        except UsageError as error:
            raise RequestError(str(error), field="messages") from error
        self.refused = self.failure = None
        return self._answered(request, messages, replies, created_s=created_s)

    async def answer(self, text: str | None) -> None:
        """Play a program's answer in the environment.

        Args:
            text: what it gave; None is the last turn of the model.

        Raises:
            EpisodeError: env, tool or reward failed.
        """
        reply, episode = self._last, self.session.episode
        assert reply is not None, "a program that made no call has no answer"
        turn = self._last_turn(reply) if text is None else Message(role="assistant", content=text)
        await self._play(turn, reply)
        if text is None and reply.finish == "length" and episode.stop_reason is StopReason.COMPLETED:
            episode.stop_reason = StopReason.MAX_TOKENS  # what ended was not an answer but the budget

    async def cancel_calls(self) -> None:
        """Cancel what the model is still asked; idempotent."""
        running = list(self.running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def close(self) -> None:
        """Cancel whatever runs, also in the environment; idempotent."""
        await self.cancel_calls()
        await self.desk.close()

    def _conversation(self, request: ModelRequest) -> tuple[Message, ...]:
        """Return the whole conversation, with attempts that were no calls as they were recorded."""
        kept: tuple[Message, ...] = ()
        if request.previous:
            found = self._kept.get(request.previous)
            if found is None:
                raise RequestError(
                    "previous_response_id names no response of this episode; send the conversation as `input`",
                    status=404,
                    field="previous_response_id",
                )
            kept = found
        given = request.messages
        if self._malformed:
            given = tuple(self._as_recorded(message) if message.tool_calls else message for message in given)
        return (*kept, *given)

    def _as_recorded(self, message: Message) -> Message:
        calls = []
        for call in message.tool_calls:
            known = self._malformed.get(call.call_id)
            calls.append(known if known is not None and is_shown_as(known, given=call) else call)
        return replace(message, tool_calls=tuple(calls))

    async def _sampled(self, request: ModelRequest, messages: tuple[Message, ...]) -> tuple[Reply, ...]:
        if request.instructions:
            messages = (Message(role="system", content=request.instructions), *messages)
        tools = self._tool_sets.shared(request.tools)
        if request.num_choices == 1:
            return (await self._one(request, messages, tools),)
        try:
            async with asyncio.TaskGroup() as tasks:
                choices = [tasks.create_task(self._one(request, messages, tools)) for _ in range(request.num_choices)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others were cancelled because of the first
        return tuple(task.result() for task in choices)

    async def _one(self, request: ModelRequest, messages: tuple[Message, ...], tools: ToolSpecs) -> Reply:
        reply = await self.session.complete(messages, tools=tools, max_tokens=request.max_tokens, stop=request.stop)
        # noted at once: a client that hangs up does not unmake the turn
        self.num_replies += 1
        self._last = reply
        self.desk.offer(reply)
        self._malformed.update((call.call_id, call) for call in reply.message.tool_calls if call.status != "ok")
        return reply

    def _answered(
        self, request: ModelRequest, messages: tuple[Message, ...], replies: tuple[Reply, ...], *, created_s: float
    ) -> ModelResponse:
        response_id = f"{self.session.episode.session_id}{replies[0].turn:06d}"
        if request.is_kept:
            self._kept[response_id] = (*messages, replies[0].message)
        return ModelResponse(
            response_id=response_id,
            request=request,
            replies=replies,
            renderer=self.session.episode.renderer,
            created_s=created_s,
        )

    def _last_turn(self, reply: Reply) -> Message:
        """Return the turn as the environment takes it: its calls go there only if they are of its tools."""
        names = {call.name for call in reply.parsed.tool_calls}
        is_ours = "" in names or not names.isdisjoint(_names(self.session.episode.tools))
        is_whole = not reply.stopped_by and reply.has_tools and not self.desk.has_played(reply)
        if is_ours and is_whole:
            return reply.parsed
        return Message(role="assistant", content=reply.message.content)

    async def _play(self, turn: Message, reply: Reply) -> tuple[Message, ...]:
        episode = self.session.episode
        async with self._in_env:
            if self.has_ended:
                raise RequestError("the episode is over", status=409)
            try:
                messages = await self.session.act(turn, reply=reply)
            except EpisodeError as error:
                self.broken = error
                self.is_over.set()
                raise
        self.conversation += (reply.message if turn is reply.parsed else turn, *messages)
        if episode.stop_reason is not None:
            self.is_over.set()
        return messages


def _names(tools: ToolSpecs) -> list[str]:
    return [str(cast("JsonObject", spec["function"])["name"]) for spec in tools]
