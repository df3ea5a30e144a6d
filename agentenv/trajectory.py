"""What is left of an episode: its turns, its token sequences, its rewards and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from agentenv.messages import Image, Message

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class StopReason(StrEnum):
    """Why an episode ended. The members of `INFRASTRUCTURE` say nothing about the policy."""

    COMPLETED = "completed"  # the agent gave its final answer, or the environment reached its end
    TOOL_STOPPED = "tool_stopped"  # a tool ended the episode
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    CONTEXT_OVERFLOW = "context_overflow"
    PARSE_ERROR = "parse_error"  # malformed calls, repeated past the limit
    DEADLINE = "deadline"
    ENV_ERROR = "env_error"
    TOOL_ERROR = "tool_error"
    REWARD_ERROR = "reward_error"
    ENGINE_ERROR = "engine_error"
    CANCELLED = "cancelled"


INFRASTRUCTURE = frozenset(
    {
        StopReason.DEADLINE,
        StopReason.ENV_ERROR,
        StopReason.TOOL_ERROR,
        StopReason.REWARD_ERROR,
        StopReason.ENGINE_ERROR,
        StopReason.CANCELLED,
    }
)
"""Endings that are retried, then masked out of loss and group baseline; never scored 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Tokens `[start, end)` of one completion were sampled by weights of `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One assistant turn.

    Attributes:
        sequence: index into `Trajectory.sequences`.
        start: first sampled token's position in that sequence.
        end: one past the last sampled token; equal to `start` for an empty generation.
        finish_reason: what the engine said: `"stop"`, `"length"` or `"abort"`.
        weight_versions: spans relative to `start`.
        num_tool_calls: attempts, malformed ones included.
        num_malformed_calls: attempts that could not be parsed.
        reward_components: per-turn rewards by name, already weighted.
    """

    sequence: int
    start: int
    end: int
    finish_reason: str
    weight_versions: tuple[VersionSpan, ...] = ()
    num_tool_calls: int = 0
    num_malformed_calls: int = 0
    reward_components: Mapping[str, float] = field(default_factory=dict)

    @property
    def reward(self) -> float:
        """Sum of the turn's reward components."""
        return float(sum(self.reward_components.values()))

    @property
    def num_tokens(self) -> int:
        """Number of sampled tokens."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """Token ids exactly as the engine saw and produced them; one per unbroken history.

    Attributes:
        token_ids: int32[T].
        logprobs: float32[T]; log-prob under the sampling policy, 0 where the token was not sampled.
        is_sampled: bool[T]; True where the policy wrote the token.
        images: one for every run of image placeholders in `token_ids`, in order.
    """

    token_ids: IntArray
    logprobs: FloatArray
    is_sampled: BoolArray
    images: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.logprobs) == len(self.is_sampled)

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """A finished episode, successful or not.

    Attributes:
        env_id: registered id of the environment.
        task_id: which task was played.
        group_id: members of a group share task and environment seed.
        member: index within the group.
        seed: the environment's seed.
        stop_reason: how it ended.
        error: what failed, for infrastructure endings; else empty.
        turns: assistant turns in order.
        sequences: token sequences; more than one where history was rewritten.
        reward_components: terminal and group rewards by name, already weighted.
        messages: the whole conversation.
        metrics: timings and counts; never part of what must be deterministic.
        attempt: 0 for the first try, counted up by retries.
    """

    env_id: str
    task_id: str
    group_id: str
    member: int
    seed: int
    stop_reason: StopReason
    turns: tuple[Turn, ...]
    sequences: tuple[TokenSequence, ...]
    reward_components: Mapping[str, float]
    messages: tuple[Message, ...]
    error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    attempt: int = 0

    @property
    def is_scored(self) -> bool:
        """True when the rewards speak about the policy; False for infrastructure failures."""
        return self.stop_reason not in INFRASTRUCTURE

    @property
    def terminal_reward(self) -> float:
        """Sum of terminal and group components."""
        return float(sum(self.reward_components.values()))

    @property
    def reward(self) -> float:
        """Episode return: all turn rewards plus the terminal ones."""
        return self.terminal_reward + sum(turn.reward for turn in self.turns)

    @property
    def num_sampled_tokens(self) -> int:
        """Number of tokens that the policy wrote."""
        return sum(turn.num_tokens for turn in self.turns)

    @property
    def num_tokens(self) -> int:
        """Number of tokens over all sequences."""
        return sum(len(sequence) for sequence in self.sequences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All trajectories of one task that are compared with each other."""

    group_id: str
    trajectories: tuple[Trajectory, ...]

    @property
    def scored(self) -> tuple[Trajectory, ...]:
        """The members that count for baseline and loss."""
        return tuple(t for t in self.trajectories if t.is_scored)
