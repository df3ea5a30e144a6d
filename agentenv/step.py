"""`Step`: what one step of an environment gave, and how Gymnasium is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentenv.messages import Message
from agentenv.trajectory import StopReason

_TERMINATING = frozenset({StopReason.COMPLETED, StopReason.TOOL_STOPPED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step of an environment gave.

    Attributes:
        messages: new messages for the agent: the delta, never the history.
        reward_components: weighted values by name; turn components, and at the end the terminal ones too.
        turn_reward_components: the turn components alone.
        stop_reason: None while the episode goes on.
        num_malformed_calls: attempts of this turn that could not be parsed.
    """

    messages: tuple[Message, ...]
    reward_components: Mapping[str, float]
    turn_reward_components: Mapping[str, float]
    stop_reason: StopReason | None
    num_malformed_calls: int = 0


def has_terminated(reason: StopReason | None) -> bool:
    """True where the task itself came to its end, False where it goes on or was cut off."""
    return reason in _TERMINATING


def info_of(step: Step, *, component_names: Sequence[str]) -> dict[str, Any]:
    """Return the `info` of a step; every component is always present, so that it has one shape."""
    components = dict.fromkeys(component_names, 0.0)
    components.update(step.reward_components)
    return {
        "messages": tuple(message.to_dict() for message in step.messages),
        "reward_components": components,
        "stop_reason": "" if step.stop_reason is None else step.stop_reason.value,
    }


def observation_of(messages: tuple[Message, ...]) -> str:
    """Return new messages as one text, which is what Gymnasium sees of them."""
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(message.content for message in messages)
