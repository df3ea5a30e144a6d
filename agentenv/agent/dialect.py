"""How a policy writes its turns and is shown what happened: the part in which agents differ that share one loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from agentenv.context import DROPPED, Entry
from agentenv.messages import Message
from agentenv.renderer import Renderer, ToolSpecs


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """An assistant turn in its two forms.

    Attributes:
        message: as the environment plays it.
        shown: as a fresh rendering of the conversation shows it.
        counts: what to add to the episode's metrics.
    """

    message: Message
    shown: Message
    counts: Mapping[str, float] = field(default_factory=dict)


class Dialect(Protocol):
    """A way to write turns. It holds no state of an episode."""

    def opening(self, messages: Sequence[Message], *, tools: ToolSpecs) -> tuple[Message, ...]:
        """Return the messages that the policy is shown first, instead of the environment's."""
        ...

    def shown_tools(self, tools: ToolSpecs) -> ToolSpecs:
        """Return the tools that the chat template is given."""
        ...

    def read(self, token_ids: Sequence[int], *, renderer: Renderer, tools: ToolSpecs, turn: int) -> Spoken:
        """Read a sampled turn; whatever was written gives a message.

        Args:
            token_ids: the completion, with or without its stop id.
            renderer: of the model.
            tools: those that the environment offers.
            turn: index of the turn; makes call ids unique within the episode.
        """
        ...

    def write(self, message: Message) -> Message:
        """Return the message to render so that a policy says this; for demonstrations."""
        ...

    def replies(self, turn: Message, messages: Sequence[Message], *, renderer: Renderer) -> tuple[Entry, ...]:
        """Return what the policy is shown of the environment's answer to a turn.

        Args:
            turn: as the environment played it.
            messages: what it answered.
            renderer: of the model.
        """
        ...


class ToolDialect:
    """The chat template's own way: tools and calls in the markup that the model was trained on."""

    def opening(self, messages: Sequence[Message], *, tools: ToolSpecs) -> tuple[Message, ...]:
        """Return the messages as they are."""
        return tuple(messages)

    def shown_tools(self, tools: ToolSpecs) -> ToolSpecs:
        """Return all tools."""
        return tools

    def read(self, token_ids: Sequence[int], *, renderer: Renderer, tools: ToolSpecs, turn: int) -> Spoken:
        """Read calls from the ids."""
        message = renderer.parse(token_ids, tools=tools, turn=turn)
        return Spoken(message=message, shown=message)

    def write(self, message: Message) -> Message:
        """Return the message as it is."""
        return message

    def replies(self, turn: Message, messages: Sequence[Message], *, renderer: Renderer) -> tuple[Entry, ...]:
        """Return the messages as they are; tool outputs may be dropped later."""
        return tuple(
            Entry(
                message=message,
                part="reply",
                stub=replace(message, content=DROPPED, images=()) if message.role == "tool" else None,
            )
            for message in messages
        )
