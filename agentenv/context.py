"""What to leave out when an episode outgrows the context: pure decisions over what the policy has been shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field, model_validator

from agentenv.config import Config
from agentenv.messages import Message

WhenFull = Literal["stop", "drop_tool_outputs", "summarise"]
Part = Literal["opening", "summary", "turn", "reply"]

DROPPED = "[earlier output dropped to save room]"
SUMMARY_TITLE = "Summary of what happened so far, written by you:\n"
_WORTHWHILE = 2  # an output is dropped where it is at least this many times longer than the marker


KEPT_TURNS = 1
"""Last turns, with what was answered to them, that a summary leaves word for word."""
SUMMARY_PROMPT = (
    "The conversation will be shortened. Write a summary for yourself: what was asked, what you did, every fact "
    "and number that you will still need, and what you were about to do. Do not call a tool."
)
"""What the policy is asked for a summary."""


class ContextConfig(Config):
    """What happens when the context budget of an episode nears its end."""

    when_full: WhenFull = "stop"
    """stop ends the episode when nothing fits any more; drop_tool_outputs replaces the oldest tool outputs by a short
    marker; summarise lets the policy write a summary, with which the conversation goes on."""
    threshold: float = Field(default=0.9, gt=0, le=1)
    """Share of max_context_tokens from which the conversation is shortened; afterwards it must lie below."""
    target: float = Field(default=0.5, gt=0, le=1)
    """For drop_tool_outputs: outputs are dropped until the conversation takes at most this share, or none is left."""
    max_summary_tokens: int = Field(default=512, ge=1)
    """For summarise: tokens of a summary at most; they count as tokens that the policy wrote."""

    @model_validator(mode="after")
    def _target_below_threshold(self) -> ContextConfig:
        if self.target >= self.threshold:
            raise ValueError(f"target is {self.target}; it must be below threshold, which is {self.threshold}")
        return self

    def is_full(self, num_tokens: int, *, limit: int) -> bool:
        """True where a conversation of `num_tokens` has to be shortened; `limit` is max_context_tokens."""
        return self.when_full != "stop" and num_tokens >= self.threshold * limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One message as the policy is shown it.

    Attributes:
        message: what a fresh rendering is made of.
        part: `"opening"` (system and task), `"summary"`, `"turn"` (the policy's own) or `"reply"`.
        stub: what stands in its place once its output is dropped; None for what is never dropped.
    """

    message: Message
    part: Part
    stub: Message | None = None


def opening_entries(messages: Sequence[Message]) -> list[Entry]:
    """Return the entries that a conversation begins with."""
    return [Entry(message=message, part="opening") for message in messages]


def shown_messages(entries: Sequence[Entry]) -> tuple[Message, ...]:
    """Return the messages to render; a summary stands inside the user message before it.

    Chat templates that want user and assistant to alternate would refuse two user messages in a row.
    """
    out: list[Message] = []
    for entry in entries:
        if entry.part == "summary":
            _append_user(out, entry.message.content)
        else:
            out.append(entry.message)
    return tuple(out)


def with_request(messages: Sequence[Message], request: str) -> tuple[Message, ...]:
    """Return messages followed by a request of ours, inside the last one where that is the user's."""
    out = list(messages)
    _append_user(out, request)
    return tuple(out)


def drop_outputs(entries: Sequence[Entry], *, fits: Callable[[Sequence[Entry]], bool]) -> tuple[list[Entry], int]:
    """Replace the oldest tool outputs by their stubs, as few as make the rest fit.

    What was answered to the last turn stays: the policy has not read it yet.

    Args:
        entries: of the conversation.
        fits: asked about candidates, about log2 of the number of outputs times.

    Returns:
        The new entries and how many outputs were dropped: all that can be where even that does not fit, and 0 where
        there is none.
    """
    last_turn = max((i for i, entry in enumerate(entries) if entry.part == "turn"), default=0)
    droppable = [i for i, entry in enumerate(entries[:last_turn]) if _is_droppable(entry)]
    low, high = 1, len(droppable)
    while low < high:
        middle = (low + high) // 2
        if fits(_stubbed(entries, droppable[:middle])):
            high = middle
        else:
            low = middle + 1
    return _stubbed(entries, droppable[:high]), high


def can_summarise(entries: Sequence[Entry], *, keep_turns: int) -> bool:
    """True where a summary would replace anything: there are more turns than stay word for word."""
    return sum(entry.part == "turn" for entry in entries) > keep_turns


def summarised(entries: Sequence[Entry], summary: str, *, keep_turns: int) -> list[Entry]:
    """Return the opening, the summary, and the last turns with their replies."""
    turns = [i for i, entry in enumerate(entries) if entry.part == "turn"]
    tail = entries[turns[-keep_turns] :] if keep_turns else ()
    message = Message(role="user", content=SUMMARY_TITLE + summary)
    return [
        *(entry for entry in entries if entry.part == "opening"),
        Entry(message=message, part="summary"),
        *tail,
    ]


def _append_user(messages: list[Message], text: str) -> None:
    if messages and messages[-1].role == "user":
        messages[-1] = replace(messages[-1], content=f"{messages[-1].content}\n\n{text}")
    else:
        messages.append(Message(role="user", content=text))


def _is_droppable(entry: Entry) -> bool:
    stub = entry.stub
    return stub is not None and len(entry.message.content) >= _WORTHWHILE * len(stub.content)


def _stubbed(entries: Sequence[Entry], indices: Sequence[int]) -> list[Entry]:
    dropped = frozenset(indices)
    return [
        Entry(message=entry.stub, part=entry.part) if i in dropped and entry.stub is not None else entry
        for i, entry in enumerate(entries)
    ]
