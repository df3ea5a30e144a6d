"""Makes room in a nearly full context: `agentenv.context` decides, and a fresh rendering begins a new sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentenv.context import (
    KEPT_TURNS,
    SUMMARY_PROMPT,
    Entry,
    can_summarise,
    drop_outputs,
    shown_messages,
    summarised,
    with_request,
)
from agentenv.episode import Episode
from agentenv.messages import Message
from agentenv.renderer import ToolSpecs
from agentenv.trajectory import StopReason

NUM_DROPS = "breaks_by_drop"
NUM_SUMMARIES = "breaks_by_summary"
NUM_DROPPED_OUTPUTS = "dropped_outputs"

_LEAST_SHARE = 4  # a summary is asked for where a quarter of its tokens still fits


async def listen(
    episode: Episode, history: Sequence[Entry], *, replies: Sequence[Entry], is_closed: bool, tools: ToolSpecs
) -> list[Entry]:
    """Let the policy see the replies, shortening the conversation first where they would nearly fill the context.

    At most one break happens here, so there are at most as many breaks as turns. Where shortening cannot bring the
    conversation below the threshold, it goes on until nothing fits any more; after a summary that was too long the
    episode ends with `context_overflow`.

    Args:
        episode: whose record ends with a turn.
        history: what the policy has been shown, that turn included.
        replies: what comes next.
        is_closed: True when the turn ended with a stop id.
        tools: those that the template is given.

    Returns:
        What the policy has been shown now.
    """
    context, limit = episode.limits.context, episode.limits.max_context_tokens
    longer = [*history, *replies]
    heard = tuple(entry.message for entry in replies)
    whole = shown_messages(longer)
    size = _size_after(episode, heard, is_closed=is_closed, history=whole, tools=tools)
    if not context.is_full(size, limit=limit):
        episode.observe(heard, is_closed=is_closed, history=whole, tools=tools)
        return longer
    if context.when_full == "summarise" and can_summarise(longer, keep_turns=KEPT_TURNS):
        asked = _with_request(episode, heard, is_closed=is_closed, tools=tools)
        whole_asked = (*shown_messages(history), *asked)
        size = _size_after(episode, asked, is_closed=is_closed, history=whole_asked, tools=tools)
        room = min(episode.room(turn_tokens=context.max_summary_tokens), limit - size)
        if room >= max(1, context.max_summary_tokens // _LEAST_SHARE):
            episode.observe(asked, is_closed=is_closed, history=whole_asked, tools=tools)
            return await _summarise(episode, longer, tools=tools)
    shorter = _without_outputs(episode, longer, tools=tools)
    if shorter is None:
        episode.observe(heard, is_closed=is_closed, history=whole, tools=tools)
        return longer
    return shorter


def _with_request(
    episode: Episode, messages: tuple[Message, ...], *, is_closed: bool, tools: ToolSpecs
) -> tuple[Message, ...]:
    """Return the messages and the request for a summary, so that history is not rewritten for it where that can be.

    Some templates (Qwen3) rewrite history at a user's message; there the request stands inside the last tool output.
    """
    request = SUMMARY_PROMPT
    asked = with_request(messages, request)
    if messages and episode.renderer.continuation_ids(asked, is_closed=is_closed, tools=tools) is None:
        last = replace(messages[-1], content=f"{messages[-1].content}\n\n{request}")
        inside = (*messages[:-1], last)
        if episode.renderer.continuation_ids(inside, is_closed=is_closed, tools=tools) is not None:
            return inside
    return asked


async def _summarise(episode: Episode, entries: Sequence[Entry], *, tools: ToolSpecs) -> list[Entry]:
    """Sample the summary that was asked for, and begin a sequence with it."""
    context = episode.limits.context
    completion = await episode.generate(turn_tokens=context.max_summary_tokens)
    turn = episode.recorder.num_turns - 1
    said = episode.renderer.parse(completion.token_ids, tools=tools, turn=turn)
    episode.recorder.judge(
        num_tool_calls=len(said.tool_calls),
        num_malformed_calls=sum(call.status != "ok" for call in said.tool_calls),
        reward_components={},
    )
    episode.conversation += [Message(role="user", content=SUMMARY_PROMPT), said]
    episode.count(NUM_SUMMARIES)
    shorter = summarised(entries, _summary_text(said), keep_turns=KEPT_TURNS)
    if context.is_full(_size(episode, shorter, tools=tools), limit=episode.limits.max_context_tokens):
        await episode.truncate(StopReason.CONTEXT_OVERFLOW)
    else:
        episode.begin(shown_messages(shorter), tools=tools)
    return shorter


def _without_outputs(episode: Episode, entries: Sequence[Entry], *, tools: ToolSpecs) -> list[Entry] | None:
    """Begin a sequence in which old tool outputs are dropped; None, and nothing happens, where that does not help."""
    context, limit = episode.limits.context, episode.limits.max_context_tokens
    goal = context.target * limit
    shorter, num_dropped = drop_outputs(entries, fits=lambda some: _size(episode, some, tools=tools) <= goal)
    if not num_dropped or context.is_full(_size(episode, shorter, tools=tools), limit=limit):
        return None
    episode.begin(shown_messages(shorter), tools=tools)
    episode.count(NUM_DROPS)
    episode.count(NUM_DROPPED_OUTPUTS, num_dropped)
    return shorter


def _size(episode: Episode, entries: Sequence[Entry], *, tools: ToolSpecs) -> int:
    """Return the number of tokens of a fresh rendering."""
    return len(episode.renderer.prompt_ids(shown_messages(entries), tools=tools))


def _size_after(
    episode: Episode, messages: Sequence[Message], *, is_closed: bool, history: Sequence[Message], tools: ToolSpecs
) -> int:
    """Return the tokens of the context once these messages are observed."""
    ids = episode.renderer.continuation_ids(messages, is_closed=is_closed, tools=tools)
    if ids is None:
        return len(episode.renderer.prompt_ids(history, tools=tools))
    return len(episode.recorder.token_ids) + len(ids)


def _summary_text(said: Message) -> str:
    """Return what the policy wrote; calls in a summary are not run, and it is told so."""
    not_run = [f"(not run: a call of {call.name or 'no tool'})" for call in said.tool_calls]
    return "\n".join(filter(None, [said.content, *not_run]))
