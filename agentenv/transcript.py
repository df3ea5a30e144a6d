"""A whole episode as people read it: who said what, what was called, what it earned and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from agentenv.messages import Message
from agentenv.trajectory import Trajectory
from agentenv.vision import described_content


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptRow:
    """One episode for a report or a tracker.

    Attributes:
        title: environment and task.
        phase: part of the run, e.g. `"rl"`.
        step: training step.
        messages: the whole conversation.
        turn_rewards: reward of every assistant turn; they belong to the last assistant messages.
        reward: the episode's return.
        reward_components: terminal and group rewards by name.
        stop_reason: how it ended.
        num_sampled_tokens: tokens that the policy wrote.
        error: what failed, for infrastructure endings; else empty.
    """

    title: str
    phase: str
    step: int
    messages: tuple[Message, ...]
    reward: float
    stop_reason: str
    turn_rewards: tuple[float, ...] = ()
    reward_components: Mapping[str, float] = field(default_factory=dict)
    num_sampled_tokens: int = 0
    error: str = ""

    @property
    def text(self) -> str:
        """The conversation as plain text, one paragraph per message."""
        return "\n\n".join(f"[{message.role}] {_body(message)}" for message in self.messages)

    def reward_of_message(self, index: int) -> float | None:
        """Return the turn reward of a message, or None where it is no turn of the policy."""
        if self.messages[index].role != "assistant":
            return None
        num_later = sum(message.role == "assistant" for message in self.messages[index + 1 :])
        turn = len(self.turn_rewards) - 1 - num_later
        return self.turn_rewards[turn] if turn >= 0 else None


def transcript_of(trajectory: Trajectory, *, step: int, phase: str) -> TranscriptRow:
    """Return the readable form of a trajectory."""
    return TranscriptRow(
        title=f"{trajectory.env_id} / {trajectory.task_id}" if trajectory.task_id else trajectory.env_id,
        phase=phase,
        step=step,
        messages=trajectory.messages,
        turn_rewards=tuple(turn.reward for turn in trajectory.turns),
        reward=float(trajectory.reward),
        reward_components=dict(trajectory.reward_components),
        stop_reason=trajectory.stop_reason.value,
        num_sampled_tokens=trajectory.num_sampled_tokens,
        error=trajectory.error,
    )


def call_text(name: str, arguments: Mapping[str, object]) -> str:
    """Return a tool call as `name(key=value)`, with values as JSON."""
    pairs = (f"{key}={json.dumps(value, ensure_ascii=False, default=str)}" for key, value in arguments.items())
    return f"{name}({', '.join(pairs)})"


def _body(message: Message) -> str:
    calls = [
        call_text(call.name, call.arguments) if call.status == "ok" else f"{call.status}: {call.raw}"
        for call in message.tool_calls
    ]
    return "\n".join(part for part in (message.reasoning, described_content(message), *calls) if part)
