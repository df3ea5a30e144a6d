"""Messages as keys of caches: equal where a chat template cannot tell them apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from agentenv.content import Image
from agentenv.messages import Message


class MessageKey:
    """A message that hashes by what a template can see; of images, that is where they stand.

    Attributes:
        message: as it is rendered; its images carry no data, so that caches do not hold on to files.
    """

    __slots__ = ("_hash", "_parts", "message")

    def __init__(self, message: Message) -> None:
        if message.images:
            places = tuple(Image(data=b"", position=image.position) for image in message.images)
            message = replace(message, images=places)
        self.message = message
        calls = dumped([call.to_dict() for call in message.tool_calls]) if message.tool_calls else ""
        self._parts = (
            message.role,
            message.content,
            calls,
            message.name,
            message.tool_call_id,
            message.reasoning,
            message.images,
        )
        self._hash = hash(self._parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MessageKey) and self._parts == other._parts


def message_keys(messages: Sequence[Message]) -> tuple[MessageKey, ...]:
    """Return the keys of a conversation."""
    return tuple(map(MessageKey, messages))


def dumped(value: object) -> str:
    """Return one text for equal JSON values."""
    return json.dumps(value, sort_keys=True, default=str)
