"""Collects, while an episode runs, exactly the ids that the engine saw and produced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agentenv.engine.protocol import Completion
from agentenv.messages import Image
from agentenv.trajectory import TokenSequence, Turn


@dataclass(slots=True)
class _OpenSequence:
    """A sequence that still grows; spans are of sampled tokens."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)

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
            token_ids=np.array(self.token_ids, dtype=np.int32),
            logprobs=logprobs,
            is_sampled=is_sampled,
            images=tuple(self.images),
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
    def context_length(self) -> int:
        """Tokens of the current sequence; 0 before the first."""
        return len(self._sequences[-1].token_ids) if self._sequences else 0

    @property
    def images(self) -> list[Image]:
        """Images of the current sequence, one for every run of placeholder ids. Callers never change it."""
        return self._sequences[-1].images

    @property
    def last_turn_ids(self) -> list[int]:
        """Ids that the policy wrote last in the current sequence; none where it has not spoken yet."""
        spans = self._sequences[-1].spans
        start, end = spans[-1] if spans else (0, 0)
        return self.token_ids[start:end]

    @property
    def num_breaks(self) -> int:
        return max(0, len(self._sequences) - 1)

    @property
    def num_turns(self) -> int:
        """Assistant turns so far."""
        return len(self._turns)

    def begin(self, prompt_ids: Sequence[int], *, images: Sequence[Image] = ()) -> None:
        """Start a sequence with a rendered conversation and its images; a second call is a break in history."""
        self._sequences.append(_OpenSequence(token_ids=list(prompt_ids), images=list(images)))

    def observe(self, token_ids: Sequence[int], *, images: Sequence[Image] = ()) -> None:
        """Append ids that the policy did not write, and the images whose placeholders are among them."""
        self._sequences[-1].token_ids.extend(token_ids)
        self._sequences[-1].images.extend(images)

    def sample(self, completion: Completion) -> None:
        """Append what the engine sampled, as a new turn."""
        self._sample(completion, sequence=len(self._sequences) - 1)

    def _sample(self, completion: Completion, *, sequence: int) -> None:
        open_sequence = self._sequences[sequence]
        start = len(open_sequence.token_ids)
        open_sequence.token_ids.extend(completion.token_ids)
        open_sequence.logprobs.extend(completion.logprobs)
        end = len(open_sequence.token_ids)
        open_sequence.spans.append((start, end))
        self.num_sampled += end - start
        self._turns.append(
            Turn(
                sequence=sequence,
                start=start,
                end=end,
                finish_reason=completion.finish_reason,
                weight_versions=completion.weight_versions,
            )
        )

    def exchange(
        self,
        prompt_ids: Sequence[int],
        completion: Completion,
        *,
        sequence: int | None,
        images: Sequence[Image] = (),
    ) -> int:
        """Record a call of an agent that keeps its own conversation, as a new turn.

        Args:
            prompt_ids: the whole prompt.
            completion: what was sampled after it.
            sequence: which sequence the prompt extends; None begins one.
            images: of the whole prompt.

        Returns:
            the index of the sequence.
        """
        if sequence is None:
            sequence = len(self._sequences)
            self.begin(prompt_ids, images=images)
        else:
            self._sequences[sequence].images[:] = images
            known = self._sequences[sequence].token_ids
            assert known == list(prompt_ids[: len(known)]), "a prompt must extend its sequence"
            known.extend(prompt_ids[len(known) :])
        self._sample(completion, sequence=sequence)
        return sequence

    def judge(
        self,
        *,
        num_tool_calls: int,
        num_malformed_calls: int,
        reward_components: Mapping[str, float],
        turn: int = -1,
    ) -> None:
        """Note what the environment said of a turn, the last one unless told otherwise."""
        last = self._turns[turn]
        self._turns[turn] = Turn(
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
