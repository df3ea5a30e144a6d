"""The model behind an agent that keeps its own conversation: whole message lists in, turns out, ids recorded exactly.

A graph or a program sends its history again with every call. What it sends back of a turn is text, so encoding it anew
would not give the ids that were sampled. A session therefore remembers, for every turn that it gave out, the history
that led to it and the sequence of ids that it ends. A call whose history ends one of them and goes on with new messages
is appended to that sequence. A second call from the same point is a branch: a sequence of its own that begins with the
same ids. A history that nobody gave out is rendered whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from agentenv.engine.protocol import Completion
from agentenv.episode import Episode
from agentenv.errors import AgentEnvError, UsageError, describe
from agentenv.extension import extended
from agentenv.messages import Message, ToolCall, images_of
from agentenv.renderer import ToolSpecs
from agentenv.trajectory import StopReason

_encode = json.JSONEncoder(sort_keys=True, default=str).encode
"""One encoder for all: every call compares its whole history."""

FinishKind = Literal["stop", "length", "tool_calls"]


class BudgetExhausted(AgentEnvError):
    """No token is left for another turn.

    Attributes:
        reason: which budget: `MAX_TOKENS` or `CONTEXT_OVERFLOW`.
    """

    def __init__(self, reason: StopReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A turn that the model took.

    Attributes:
        message: as an agent sees it: calls that were understood, and those whose arguments are not JSON, with their
            text in `raw`; attempts without a name are part of `content`.
        parsed: as it was read from the ids.
        completion: what the engine sampled.
        prompt_ids: the prompt.
        turn: index of the turn in the trajectory.
        finish: why it ended.
        has_tools: it was offered tools.
        stopped_by: the stop string that cut `message`; "" where none did.
    """

    message: Message
    parsed: Message
    completion: Completion
    prompt_ids: tuple[int, ...]
    turn: int
    finish: FinishKind
    has_tools: bool
    stopped_by: str = ""

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_ids)


@dataclass(slots=True, kw_only=True)
class _End:
    """The end of a sequence: where a next call may go on.

    Attributes:
        sequence: index in the trajectory.
        token_ids: all ids of the sequence up to here.
        is_closed: True when they end with a stop id.
        is_taken: True when a call went on from here, or is about to.
    """

    sequence: int
    token_ids: tuple[int, ...]
    is_closed: bool
    is_taken: bool = False


_History = tuple[object, ...]


class Session:
    """Completes message lists with the policy of an episode. Calls may overlap.

    Args:
        episode: of which the turns become part; already reset.
    """

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self._ends: dict[_History, list[_End]] = {}
        self._num_asked = 0

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        tools: ToolSpecs | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Reply:
        """Sample the next assistant turn of a conversation, and record it.

        How tokens are drawn is the run's business; only their number can be bounded here.

        Args:
            messages: the whole history.
            tools: schemas; None offers the environment's.
            max_tokens: bound of this turn, beside those of the episode.
            stop: the text of the turn ends before the first of these; the ids stay as they were sampled.

        Raises:
            BudgetExhausted: a budget of the episode leaves no token.
            EpisodeError: the engine failed.
            UsageError: there is no message, `max_tokens` is below 1, or the model's chat template refuses the
                conversation.
        """
        if not messages:
            raise UsageError("a conversation has no message; send at least one")
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; at least 1 is needed")
        tools = self.episode.tools if tools is None else tools
        named = _with_tool_names(messages)
        turn = self._num_asked
        self._num_asked += 1
        end, prompt_ids = self._prompt(named, tools)
        try:
            completion = await self._sample(prompt_ids, named, max_tokens=max_tokens, turn=turn)
        except BaseException:
            if end is not None:
                end.is_taken = False
            raise
        return self._recorded(completion, named, tools, end=end, prompt_ids=prompt_ids, turn=turn, stop=stop)

    async def act(self, turn: Message, *, reply: Reply | None = None) -> tuple[Message, ...]:
        """Play a turn in the environment; returns what it says, and `episode.stop_reason` tells whether it ended.

        One turn of the model may be played more than once: its calls, then an answer that the agent made of it. It
        keeps what it earned before.

        Args:
            turn: an assistant's turn: tool calls, or an answer.
            reply: which turn of the model it is; its rewards go there. None is the last one.

        Raises:
            EpisodeError: env, tool or reward failed.
            UsageError: the model has taken no turn yet.
        """
        recorder = self.episode.recorder
        index = recorder.num_turns - 1 if reply is None else reply.turn
        if index < 0:
            raise UsageError("there is no turn of the model that this could be; call complete first")
        before = recorder.turns()[index]
        messages = await self.episode.step(turn, turn_index=index)
        after = recorder.turns()[index]
        rewards = dict(before.reward_components)
        for name, value in after.reward_components.items():
            rewards[name] = rewards.get(name, 0.0) + value
        recorder.judge(
            num_tool_calls=max(before.num_tool_calls, after.num_tool_calls),
            num_malformed_calls=max(before.num_malformed_calls, after.num_malformed_calls),
            reward_components=rewards,
            turn=index,
        )
        return messages

    def _prompt(self, messages: Sequence[Message], tools: ToolSpecs) -> tuple[_End | None, tuple[int, ...]]:
        """Return the ids of a call, and the end that they extend; None where they begin a sequence."""
        try:
            return self._rendered(messages, tools)
        except UsageError:
            raise
        except Exception as error:  # chat templates raise what they like
            raise UsageError(
                f"the model's chat template cannot render this conversation ({describe(error)})"
            ) from error

    def _rendered(self, messages: Sequence[Message], tools: ToolSpecs) -> tuple[_End | None, tuple[int, ...]]:
        renderer = self.episode.renderer
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
        known = self._ends.get(_history(messages[: last + 1], tools)) if 0 <= last < len(messages) - 1 else None
        if known:
            end = next((one for one in known if not one.is_taken), known[0])
            prompt_ids = extended(
                renderer, end.token_ids, messages, num_known=last + 1, is_closed=end.is_closed, tools=tools
            )
            if prompt_ids is not None:
                if end.is_taken:
                    return None, prompt_ids
                end.is_taken = True
                return end, prompt_ids
        return None, renderer.prompt_ids(messages, tools=tools)

    async def _sample(
        self, prompt_ids: tuple[int, ...], messages: Sequence[Message], *, max_tokens: int | None, turn: int
    ) -> Completion:
        room = self.episode.room(num_prompt_tokens=len(prompt_ids))
        if room < 1:
            reason = self.episode.exhausted(num_prompt_tokens=len(prompt_ids))
            raise BudgetExhausted(
                reason, f"the episode's budget is used up ({reason.value}); its prompt has {len(prompt_ids)} tokens"
            )
        return await self.episode.sample(
            prompt_ids,
            max_tokens=room if max_tokens is None else min(room, max_tokens),
            turn=turn,
            images=images_of(messages),
        )

    def _recorded(
        self,
        completion: Completion,
        messages: tuple[Message, ...],
        tools: ToolSpecs,
        *,
        end: _End | None,
        prompt_ids: tuple[int, ...],
        turn: int,
        stop: Sequence[str],
    ) -> Reply:
        episode = self.episode
        parsed = episode.renderer.parse(completion.token_ids, tools=tools, turn=turn)
        sequence = episode.recorder.exchange(
            prompt_ids,
            completion,
            sequence=None if end is None else end.sequence,
            images=images_of(messages),
        )
        index = episode.recorder.num_turns - 1
        episode.recorder.judge(
            num_tool_calls=len(parsed.tool_calls),
            num_malformed_calls=sum(call.status != "ok" for call in parsed.tool_calls),
            reward_components={},
        )
        message, stopped_by = _cut(_visible(parsed, has_tools=bool(tools)), stop)
        ids = completion.token_ids
        episode.conversation[:] = messages
        if not episode.renderer.holds_placeholder(ids):  # else what follows is rendered anew, the placeholder as text
            self._ends.setdefault(_history((*messages, message), tools), []).append(
                _End(
                    sequence=sequence,
                    token_ids=(*prompt_ids, *ids),
                    is_closed=bool(ids) and ids[-1] in episode.renderer.stop_ids,
                )
            )
        finish: FinishKind = "length" if completion.finish_reason == "length" and not stopped_by else "stop"
        return Reply(
            message=message,
            parsed=parsed,
            completion=completion,
            prompt_ids=prompt_ids,
            turn=index,
            finish="tool_calls" if message.tool_calls and finish == "stop" else finish,
            has_tools=bool(tools),
            stopped_by=stopped_by,
        )


def _visible(message: Message, *, has_tools: bool) -> Message:
    """Put attempts that no client could take as a call into the text: those without a name, and all without tools."""
    hidden = [call for call in message.tool_calls if not (call.name and has_tools)]
    if not hidden:
        return message
    content = "\n".join(part for part in (message.content, *(call.raw for call in hidden)) if part)
    return replace(
        message, content=content, tool_calls=tuple(call for call in message.tool_calls if call not in hidden)
    )


def _cut(message: Message, stop: Sequence[str]) -> tuple[Message, str]:
    """End the message before the first stop string; calls come after the text, so they go too."""
    found = [(message.content.find(one), one) for one in stop if one in message.content]
    if not found:
        return message, ""
    position, one = min(found)
    return replace(message, content=message.content[:position], tool_calls=()), one


def _with_tool_names(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Name tool results by the call that they answer, as some chat formats need it and many clients leave it out."""
    names = {call.call_id: call.name for message in messages for call in message.tool_calls}
    return tuple(
        replace(message, name=names.get(message.tool_call_id, ""))
        if message.role == "tool" and not message.name
        else message
        for message in messages
    )


def is_same_turn(one: Message, other: Message) -> bool:
    """True when two messages are the same as far as a program that sends them back can tell."""
    return _told(one) == _told(other)


def is_same_call(one: ToolCall, other: ToolCall) -> bool:
    """True when two calls have the same id, name and arguments, in whatever order and spacing."""
    return _told_call(one) == _told_call(other)


def _history(messages: Sequence[Message], tools: ToolSpecs) -> _History:
    """Return what identifies a history: what clients send back as they got it."""
    return (tuple(map(_told, messages)), _encode(tools))


def _told(message: Message) -> tuple[object, ...]:
    calls = tuple(map(_told_call, message.tool_calls))
    return message.role, message.content, message.tool_call_id, calls, message.images


def _told_call(call: ToolCall) -> tuple[str, str, str]:
    # clients write arguments in their own spacing and order; those that are no JSON are known by their id alone
    arguments = _encode(dict(call.arguments)) if call.status == "ok" else ""
    return call.call_id, call.name, arguments
