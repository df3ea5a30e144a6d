"""Collects, while an episode runs, exactly the ids that the engine saw and produced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agentenv.engine.protocol import Completion
from agentenv.trajectory import TokenSequence, Turn


@dataclass(slots=True)
class _OpenSequence:
    """A sequence that still grows; spans are of sampled tokens."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)

    def freeze(self) -> TokenSequence:
        count = len(self.token_ids)
        logprobs = np.zeros(count, dtype=np.float32)
        is_sampled = np.zeros(count, dtype=np.bool_)
        position = 0
        for start, end in self.spans:
            logprobs[start:end] = self.logprobs[position : position + end - start]
            is_sampled[start:end] = True
            position += end - start
        return TokenSequence(
            token_ids=np.array(self.token_ids, dtype=np.int32), logprobs=logprobs, is_sampled=is_sampled
        )


class Recorder:
    """Token-level record of one episode.

    Attributes:
        token_ids: ids of the current sequence: the next prompt. Callers read it and never change it.
        num_sampled: sampled tokens over all sequences.
        num_breaks: how often history was rewritten, so that a new sequence began.
    """

    def __init__(self) -> None:
        self._sequences: list[_OpenSequence] = []
        self._turns: list[Turn] = []
        self.num_sampled = 0

    @property
    def token_ids(self) -> list[int]:
        return self._sequences[-1].token_ids

    @property
    def num_breaks(self) -> int:
        return max(0, len(self._sequences) - 1)

    @property
    def num_turns(self) -> int:
        """Assistant turns so far."""
        return len(self._turns)

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Start a sequence with a rendered conversation; a second call is a break in history."""
        self._sequences.append(_OpenSequence(token_ids=list(prompt_ids)))

    def observe(self, token_ids: Sequence[int]) -> None:
        """Append ids that the policy did not write."""
        self._sequences[-1].token_ids.extend(token_ids)

    def sample(self, completion: Completion) -> None:
        """Append what the engine sampled, as a new turn."""
        sequence = self._sequences[-1]
        start = len(sequence.token_ids)
        sequence.token_ids.extend(completion.token_ids)
        sequence.logprobs.extend(completion.logprobs)
        end = len(sequence.token_ids)
        sequence.spans.append((start, end))
        self.num_sampled += end - start
        self._turns.append(
            Turn(
                sequence=len(self._sequences) - 1,
                start=start,
                end=end,
                finish_reason=completion.finish_reason,
                weight_versions=completion.weight_versions,
            )
        )

    def judge(self, *, num_tool_calls: int, num_malformed_calls: int, reward_components: Mapping[str, float]) -> None:
        """Note what the environment said of the last turn."""
        last = self._turns[-1]
        self._turns[-1] = Turn(
            sequence=last.sequence,
            start=last.start,
            end=last.end,
            finish_reason=last.finish_reason,
            weight_versions=last.weight_versions,
            num_tool_calls=num_tool_calls,
            num_malformed_calls=num_malformed_calls,
            reward_components=dict(reward_components),
        )

    def turns(self) -> tuple[Turn, ...]:
        """Return the turns so far."""
        return tuple(self._turns)

    def sequences(self) -> tuple[TokenSequence, ...]:
        """Return the sequences so far, as arrays."""
        return tuple(sequence.freeze() for sequence in self._sequences)
