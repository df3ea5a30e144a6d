"""The host's table of slots: who occupies which row of the cache, what tokens it holds, and which slot to reuse.

Running requests occupy the first slots. Behind them lie idle ones: sessions that wait for their next turn, and
rows that nobody owns any more. Shapes: S slots, X positions, W stop ids, R rows of one step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from agentenv.engine.protocol import Completion, FinishReason, SamplingParams
from agentenv.trajectory import VersionSpan

IntArray = npt.NDArray[np.int64]

_NO_ID = -1  # pads the stop ids; no token has this id


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One call of `generate` on its way through the engine.

    Attributes:
        prompt_ids: int64 token ids.
        sampling: how to sample.
        session_id: whose prefix to reuse.
        seed_state: 64-bit state of its random stream.
        result: resolved with the completion or the error.
        arrival: admission number; smaller is older.
        num_cached_tokens: prompt tokens that were in the cache.
        versions: (weight version, first output token that it sampled), in order.
    """

    prompt_ids: IntArray
    sampling: SamplingParams
    session_id: str
    seed_state: np.uint64
    result: asyncio.Future[Completion]
    arrival: int = 0
    num_cached_tokens: int = 0
    versions: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Rows of the cache that change place, all at once.

    Attributes:
        source: slots to read.
        target: slots to write; a permutation of `source`.
        num_places: how much of each row is in use.
    """

    source: IntArray
    target: IntArray
    num_places: int


class SlotTable:
    """Columns of per-slot numbers, indexed by slot.

    Attributes:
        num_running: slots `[0, num_running)` run once `compact` was called.
        epoch: changes whenever a request enters or leaves a slot, or the cache is forgotten.
        token_SX: int64, prompt and output of each slot.
        logprob_SX: float32, of the output tokens.
        length_S: tokens known, the newest sampled one included.
        computed_S: tokens whose keys and values are in the cache; never more than `length_S`.
        prompt_S: prompt tokens.
        limit_S: length at which the request ends.
        is_unread_S: True while nothing of a running request was computed in its slot.
        seed_S, temperature_S, top_p_S, top_k_S, stop_SW: sampling.
    """

    def __init__(self, *, max_slots: int, max_length: int) -> None:
        self.num_running = 0
        self.epoch = 0
        self.token_SX = np.zeros((max_slots, max_length), dtype=np.int64)
        self.logprob_SX = np.zeros((max_slots, max_length), dtype=np.float32)
        self.length_S = np.zeros(max_slots, dtype=np.int64)
        self.computed_S = np.zeros(max_slots, dtype=np.int64)
        self.prompt_S = np.zeros(max_slots, dtype=np.int64)
        self.limit_S = np.zeros(max_slots, dtype=np.int64)
        self.is_unread_S = np.zeros(max_slots, dtype=np.bool_)
        self.seed_S = np.zeros(max_slots, dtype=np.uint64)
        self.temperature_S = np.ones(max_slots)
        self.top_p_S = np.ones(max_slots)
        self.top_k_S = np.zeros(max_slots, dtype=np.int64)
        self.stop_SW = np.full((max_slots, 1), _NO_ID, dtype=np.int64)
        self._requests: list[Request | None] = [None] * max_slots
        self._sessions: list[str | None] = [None] * max_slots
        self._last_used = [0] * max_slots
        self._slot_of_session: dict[str, int] = {}
        self._clock = 0

    @property
    def max_slots(self) -> int:
        """Number of slots."""
        return len(self._requests)

    @property
    def has_room(self) -> bool:
        """True while some slot does not run a request."""
        return self.num_running < self.max_slots

    def running(self) -> list[tuple[int, Request]]:
        """Return (slot, request) of every running request."""
        return [(slot, request) for slot, request in enumerate(self._requests) if request is not None]

    def request_at(self, slot: int) -> Request:
        """Return the request that runs in `slot`."""
        request = self._requests[slot]
        assert request is not None
        return request

    def admit(self, request: Request, *, max_length: int) -> int:
        """Give `request` a slot, its session's own where that is idle, and keep the prefix that still holds.

        Args:
            request: a slot must be free: see `has_room`.
            max_length: bound on prompt and output together.
        """
        slot = self._choose_slot(request.session_id)
        self._disown(slot)
        prompt_ids, sampling = request.prompt_ids, request.sampling
        num_prompt = len(prompt_ids)
        known = min(int(self.computed_S[slot]), num_prompt - 1)  # the last prompt token must run, to sample after it
        differs = np.flatnonzero(self.token_SX[slot, :known] != prompt_ids[:known])
        self.computed_S[slot] = request.num_cached_tokens = int(differs[0]) if len(differs) else known
        self.token_SX[slot, :num_prompt] = prompt_ids
        self.length_S[slot] = self.prompt_S[slot] = num_prompt
        self.limit_S[slot] = min(num_prompt + sampling.max_tokens, max_length)
        self.is_unread_S[slot] = True
        self.seed_S[slot] = request.seed_state
        self.temperature_S[slot] = sampling.temperature
        self.top_p_S[slot] = sampling.top_p
        self.top_k_S[slot] = sampling.top_k
        self._set_stop_ids(slot, sampling.stop_ids)
        self._requests[slot] = request
        self.num_running += 1
        self.epoch += 1
        return slot

    def release(self, slot: int) -> Request:
        """End the request in `slot`; the slot stays with the session, for its next turn."""
        request = self.request_at(slot)
        self._requests[slot] = None
        self.is_unread_S[slot] = False
        self.num_running -= 1
        self.epoch += 1
        self._touch(slot)
        self.end_session(request.session_id)  # a session owns at most one slot: the newest
        self._sessions[slot] = request.session_id
        self._slot_of_session[request.session_id] = slot
        return request

    def end_session(self, session_id: str) -> None:
        """Give up the session's idle slot, if it has one."""
        slot = self._slot_of_session.get(session_id)
        if slot is not None:
            self._disown(slot)

    def forget_cache(self) -> None:
        """Mark everything in the cache as stale: running requests start over, idle sessions are forgotten."""
        self.computed_S[:] = 0
        self.epoch += 1
        for slot, _ in self.running():
            self.is_unread_S[slot] = True
        for session_id in list(self._slot_of_session):
            self.end_session(session_id)

    def clear(self) -> None:
        """Forget what idle slots held and which were used last; nothing may be running."""
        assert self.num_running == 0
        self.length_S[:] = 0
        self._last_used = [0] * self.max_slots
        self._clock = 0

    def completion(self, slot: int, *, finish_reason: FinishReason) -> Completion:
        """Return what the request in `slot` has sampled."""
        request = self.request_at(slot)
        start, stop = int(self.prompt_S[slot]), int(self.length_S[slot])
        ends = [begin for _, begin in request.versions[1:]] + [stop - start]
        spans = (
            VersionSpan(version=version, start=begin, end=end)
            for (version, begin), end in zip(request.versions, ends, strict=True)
            if end > begin
        )
        return Completion(
            token_ids=self.token_SX[slot, start:stop].tolist(),
            logprobs=self.logprob_SX[slot, start:stop].tolist(),
            finish_reason=finish_reason,
            weight_versions=tuple(spans),
            num_cached_tokens=request.num_cached_tokens,
        )

    def compact(self) -> Moves | None:
        """Swap rows so that running requests occupy the first slots.

        Returns:
            How the cache's rows must move likewise; None where nothing moves.
        """
        holes = [slot for slot in range(self.num_running) if self._requests[slot] is None]
        if not holes:
            return None
        strays = [slot for slot in range(self.num_running, self.max_slots) if self._requests[slot] is not None]
        source, target = np.array(strays + holes), np.array(holes + strays)
        columns = (self.token_SX, self.logprob_SX, self.length_S, self.computed_S, self.prompt_S, self.limit_S)
        for column in (
            *columns,
            self.is_unread_S,
            self.seed_S,
            self.temperature_S,
            self.top_p_S,
            self.top_k_S,
            self.stop_SW,
        ):
            column[target] = column[source]
        for hole, stray in zip(holes, strays, strict=True):
            _swap(self._requests, at=(hole, stray))
            _swap(self._sessions, at=(hole, stray))
            _swap(self._last_used, at=(hole, stray))
        self._slot_of_session = {name: slot for slot, name in enumerate(self._sessions) if name is not None}
        return Moves(source=source, target=target, num_places=int(self.computed_S[target].max()))

    def common_prefixes(self, slot: int, *, least: int) -> tuple[IntArray, IntArray]:
        """Find slots whose tokens start like those of `slot`.

        Args:
            slot: its newest token does not count, since that has to be computed anyway.
            least: shorter common prefixes are left out.

        Returns:
            The other slots, and how many tokens each has in common; computed or not.
        """
        known = int(self.length_S[slot]) - 1
        if known < least:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        token_X = self.token_SX[slot, :known]
        is_alike_S = (self.token_SX[:, :least] == token_X[:least]).all(axis=1)
        is_alike_S[slot] = False
        other_S = np.flatnonzero(is_alike_S)
        is_same_SX = self.token_SX[other_S, :known] == token_X
        common_S = np.where(is_same_SX.all(axis=1), known, is_same_SX.argmin(axis=1))
        common_S = np.minimum(common_S, self.length_S[other_S])
        return other_S[common_S >= least], common_S[common_S >= least]

    def record(
        self, slot_R: IntArray, *, token_R: IntArray, logprob_R: npt.NDArray[np.float32]
    ) -> tuple[IntArray, IntArray]:
        """Append one sampled token to each slot.

        Returns:
            Slots that hit a stop id, and slots that only reached their limit.
        """
        length_R = self.length_S[slot_R]
        self.token_SX[slot_R, length_R] = token_R
        self.logprob_SX[slot_R, length_R] = logprob_R
        self.length_S[slot_R] = length_R + 1
        is_stop_R = (self.stop_SW[slot_R] == token_R[:, None]).any(axis=1)
        is_full_R = (length_R + 1 >= self.limit_S[slot_R]) & ~is_stop_R
        return slot_R[is_stop_R], slot_R[is_full_R]

    def _choose_slot(self, session_id: str) -> int:
        """The session's own idle slot, else the first that nobody owns, else the one idle for longest."""
        own = self._slot_of_session.get(session_id)
        if own is not None:
            return own
        idle = [slot for slot, request in enumerate(self._requests) if request is None]
        unowned = [slot for slot in idle if self._sessions[slot] is None]
        return unowned[0] if unowned else min(idle, key=self._last_used.__getitem__)

    def _disown(self, slot: int) -> None:
        session_id = self._sessions[slot]
        if session_id is not None:
            self._sessions[slot] = None
            del self._slot_of_session[session_id]

    def _touch(self, slot: int) -> None:
        self._clock += 1
        self._last_used[slot] = self._clock

    def _set_stop_ids(self, slot: int, stop_ids: Sequence[int]) -> None:
        missing = len(stop_ids) - self.stop_SW.shape[1]
        if missing > 0:
            self.stop_SW = np.pad(self.stop_SW, ((0, 0), (0, missing)), constant_values=_NO_ID)
        self.stop_SW[slot] = _NO_ID
        self.stop_SW[slot, : len(stop_ids)] = stop_ids


def _swap(values: list[Any], *, at: tuple[int, int]) -> None:
    one, other = at
    values[one], values[other] = values[other], values[one]
