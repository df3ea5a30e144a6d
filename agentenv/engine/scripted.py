"""An engine whose replies come from a script, with latency, failure and cut-off injection; ships for tests and docs."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from agentenv.engine.protocol import (
    Ack,
    Completion,
    EngineHealth,
    FinishReason,
    PauseMode,
    SamplingParams,
    WeightManifest,
)
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError
from agentenv.messages import Image
from agentenv.trajectory import VersionSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedRequest:
    """What the engine was asked.

    Attributes:
        index: 0, 1, 2 ... over the engine's life.
        turn: 0, 1, 2 ... within the session.
        session_id: the episode.
        prompt_ids: the whole prompt.
        sampling: how to sample.
        images: of the prompt.
    """

    index: int
    turn: int
    session_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request and what was answered."""

    request: ScriptedRequest
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, by request index. A value of 0 turns a fault off.

    Attributes:
        fail_every: every n-th request raises `EngineError`.
        hang_every: every n-th request never answers; only its deadline ends it.
        abort_every: every n-th request is cut off half-way with finish reason `"abort"`.
        bad_logprob_every: every n-th completion carries a NaN log-prob.
        short_logprobs_every: every n-th completion has one log-prob too few.
    """

    fail_every: int = 0
    hang_every: int = 0
    abort_every: int = 0
    bad_logprob_every: int = 0
    short_logprobs_every: int = 0


Script = Sequence[Sequence[int]] | Callable[[ScriptedRequest], Sequence[int]]


class ScriptedEngine:
    """Answers from a script.

    Args:
        script: completions in ids, one per turn of a session (the last one repeats), or a function of the request.
            A completion longer than `max_tokens` is cut, with finish reason `"length"`.
        latency_s: seconds that every request takes.
        logprob: log-prob of every token.
        faults: what goes wrong.
        keep_exchanges: True keeps every request and answer in `exchanges`.
    """

    def __init__(
        self,
        script: Script,
        *,
        latency_s: float = 0.0,
        logprob: float = -0.5,
        faults: Faults | None = None,
        keep_exchanges: bool = False,
    ) -> None:
        self.script = script
        self.latency_s = latency_s
        self.logprob = logprob
        self.faults = Faults() if faults is None else faults
        self.keep_exchanges = keep_exchanges
        self.exchanges: list[Exchange] = []
        self.version = 0
        self._index: Iterator[int] = itertools.count()
        self._turns: dict[str, int] = {}
        self._num_running = 0
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._aborts = asyncio.Event()
        self._is_closed = False

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image] = (),
    ) -> Completion:
        """Answer from the script, after the latency."""
        if self._is_closed:
            raise EngineClosed("the scripted engine was closed")
        self._num_running += 1
        try:
            request = self._request(prompt_ids, sampling, session_id=session_id, images=images)
            if self.latency_s or not self._is_open.is_set():
                return await self._in_time(request, deadline_s=deadline_s)
            if _hits(self.faults.hang_every, request.index):
                await self._hang(deadline_s)
            return self._answer(request)
        finally:
            self._num_running -= 1

    async def end_session(self, session_id: str) -> None:
        """Forget the session's turn count."""
        self._turns.pop(session_id, None)

    async def forget_prefixes(self) -> None:
        """Do nothing: nothing is cached."""

    async def pause(self, mode: PauseMode = "abort") -> None:
        """Hold requests back; mode `"abort"` ends those that wait for their latency with half of their answer."""
        self._is_open.clear()
        if mode == "abort":
            self._aborts.set()
            self._aborts = asyncio.Event()

    async def resume(self) -> None:
        """Let requests through again."""
        self._is_open.set()

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Take the version; there are no weights."""
        if manifest.version <= self.version:
            raise EngineError(f"weights of version {manifest.version} are not newer than {self.version}")
        self.version = manifest.version
        return Ack(version=self.version, checksum="")

    async def health(self) -> EngineHealth:
        """Say how much is running."""
        return EngineHealth(
            is_ready=not self._is_closed, version=self.version, num_running=self._num_running, num_waiting=0
        )

    async def close(self) -> None:
        """Refuse further requests."""
        self._is_closed = True

    async def _in_time(self, request: ScriptedRequest, *, deadline_s: float) -> Completion:
        if _hits(self.faults.hang_every, request.index) or self.latency_s > deadline_s:
            await self._hang(deadline_s)
        try:
            async with asyncio.timeout(deadline_s):
                await self._is_open.wait()
                is_aborted = await self._wait_out_latency()
        except TimeoutError:
            raise DeadlineExceeded("engine", "generate", f"no answer within {deadline_s:g} s") from None
        return self._answer(request, is_aborted=is_aborted)

    async def _wait_out_latency(self) -> bool:
        """Wait for the latency, and for the end of a pause that fell into it; True when a pause aborted the request."""
        aborts = self._aborts
        try:
            async with asyncio.timeout(self.latency_s):
                await aborts.wait()
            return True
        except TimeoutError:
            await self._is_open.wait()
            return aborts.is_set()

    async def _hang(self, deadline_s: float) -> None:
        await asyncio.sleep(deadline_s)
        raise DeadlineExceeded("engine", "generate", f"no answer within {deadline_s:g} s")

    def _request(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, *, session_id: str, images: Sequence[Image]
    ) -> ScriptedRequest:
        turn = self._turns.get(session_id, 0)
        self._turns[session_id] = turn + 1
        return ScriptedRequest(
            index=next(self._index),
            turn=turn,
            session_id=session_id,
            prompt_ids=tuple(prompt_ids),
            sampling=sampling,
            images=tuple(images),
        )

    def _answer(self, request: ScriptedRequest, *, is_aborted: bool = False) -> Completion:
        if _hits(self.faults.fail_every, request.index):
            raise EngineError("injected failure")
        script = self.script
        ids = list(script(request) if callable(script) else script[min(request.turn, len(script) - 1)])
        finish: FinishReason = "stop"
        if is_aborted or _hits(self.faults.abort_every, request.index):
            ids, finish = ids[: len(ids) // 2], "abort"
        elif len(ids) > request.sampling.max_tokens:
            ids, finish = ids[: request.sampling.max_tokens], "length"
        completion = Completion(
            token_ids=ids,
            logprobs=self._logprobs(len(ids), request.index),
            finish_reason=finish,
            weight_versions=(VersionSpan(version=self.version, start=0, end=len(ids)),),
        )
        if self.keep_exchanges:
            self.exchanges.append(Exchange(request=request, completion=completion))
        return completion

    def _logprobs(self, count: int, index: int) -> list[float]:
        logprobs = [self.logprob] * count
        if count and _hits(self.faults.bad_logprob_every, index):
            logprobs[-1] = math.nan
        if count and _hits(self.faults.short_logprobs_every, index):
            del logprobs[-1]
        return logprobs


def _hits(every: int, index: int) -> bool:
    return every > 0 and index % every == every - 1
