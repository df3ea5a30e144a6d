"""The small model inside the SGLang stand-in, and the scheduler that steps, pauses and retracts its requests."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Weights = dict[str, FloatArray]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

_MEMORY = 0.5  # how much of the past a step keeps
_PADDING = 64  # SGLang pads vocabularies to so many rows


def stand_in_weights(*, vocab_size: int = 97, width: int = 16, seed: int = 0, is_tied: bool = False) -> Weights:
    """Return weights for the stand-in's model, under the names of a checkpoint.

    Args:
        vocab_size: rows.
        width: columns.
        seed: of the values.
        is_tied: True leaves the head out; the embedding then serves as both.
    """
    generator = np.random.default_rng(seed)
    names = (EMBEDDING,) if is_tied else (EMBEDDING, HEAD)
    return {name: generator.normal(0.0, 0.4, (vocab_size, width)).astype(np.float32) for name in names}


def stand_in_logprobs(weights: Mapping[str, FloatArray], token_ids: Sequence[int], *, temperature: float = 1.0) -> Any:
    """Return log p(token t | tokens before it) of tokens 1, 2, ...: what the stand-in must report for them."""
    state = np.zeros(weights[EMBEDDING].shape[1], dtype=np.float32)
    logprobs: list[float] = []
    for token, following in itertools.pairwise(token_ids):
        state = _next_state(weights, state, token)
        logprobs.append(float(_log_softmax(_logits(weights, state) / temperature)[following]))
    return logprobs


@dataclass(kw_only=True)
class StandInRequest:
    """A request on its way through the scheduler.

    Attributes:
        request_id: of the client's choice.
        prompt_ids: checked.
        params: sampling parameters, as they came.
        state: of the model after the last token; None has to be computed, under the weights that are then there.
        versions: `(version, first position)`, in order.
    """

    request_id: str
    prompt_ids: list[int]
    params: Mapping[str, Any]
    generator: np.random.Generator
    done: asyncio.Future[Literal["stop", "length", "abort"]]
    state: FloatArray | None = None
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[tuple[str, int]] = field(default_factory=list)
    matched: int | None = None
    num_cached: int = 0
    num_retractions: int = 0
    was_read: bool = False
    abort_asked: bool = False
    abort_message: str = "Aborted"


class StandInScheduler:
    """Runs requests token by token, as SGLang's scheduler does.

    Args:
        weights: of the model; replaced value by value in updates.
        version: of the weights.
        max_running: requests that run at once; further ones wait.
        step_s: seconds that a token takes.
        context_length: a request never grows beyond it.
    """

    def __init__(self, weights: Weights, *, version: str, max_running: int, step_s: float, context_length: int) -> None:
        self.weights = weights
        self.version = version
        self.max_running = max_running
        self.step_s = step_s
        self.context_length = context_length
        self.waiting: list[StandInRequest] = []
        self.running: list[StandInRequest] = []
        self.is_paused = False
        self._cached: list[list[int]] = []
        self._work = asyncio.Event()

    def add(self, request: StandInRequest) -> None:
        """Put a request in line."""
        self.waiting.append(request)
        self._work.set()

    def abort(self, prefix: str) -> None:
        """End all whose id begins with `prefix`: waiting ones with nothing, running ones with what they have."""
        for request in [r for r in self.waiting if r.request_id.startswith(prefix)]:
            self.waiting.remove(request)
            request.output_ids, request.logprobs, request.versions = [], [], []
            request.abort_message = "Abort in waiting queue"
            self._finish(request, "abort")
        for request in self.running:
            request.abort_asked |= request.request_id.startswith(prefix)

    def pause(self, *, retracts: bool) -> None:
        """Stop stepping; retracting takes running requests back into the line, without what was computed of them."""
        self.is_paused = True
        if retracts:
            for request in self.running:
                request.state = None
                request.num_retractions += 1
            self.waiting = self.running + self.waiting
            self.running = []

    def go_on(self) -> None:
        """Step again."""
        self.is_paused = False
        self._work.set()

    def flush(self) -> bool:
        """Drop cached prefixes; False where requests run, or wait without a pause."""
        if self.running or (self.waiting and not self.is_paused):
            return False
        self._cached.clear()
        return True

    def set_version(self, version: str) -> None:
        """Serve another version from the next token on."""
        self.version = version
        for request in [*self.running, *self.waiting]:
            if request.was_read:
                request.versions.append((version, len(request.output_ids)))

    def sums(self) -> dict[str, str]:
        """Return the sums that the weights checker reports, of padded rows; a tied head is no parameter of its own."""
        return {name: hashlib.sha256(_padded(value).tobytes()).hexdigest()[:16] for name, value in self.weights.items()}

    async def run(self) -> None:
        """Step for ever."""
        while True:
            if self.is_paused or not (self.running or self.waiting):
                self._work.clear()
                await self._work.wait()
                continue
            self._step()
            await asyncio.sleep(self.step_s)

    def _step(self) -> None:
        while self.waiting and len(self.running) < self.max_running:
            self.running.append(self.waiting.pop(0))
        for request in list(self.running):
            if request.abort_asked:
                self._end(request, "abort")
            else:
                self._advance(request)

    def _advance(self, request: StandInRequest) -> None:
        if request.state is None:
            self._read(request)
        assert request.state is not None
        limit = min(int(request.params["max_new_tokens"]), self.context_length - 2 - len(request.prompt_ids))
        if limit > len(request.output_ids):
            self._draw(request)
        stop_ids = [] if request.params.get("ignore_eos") else request.params.get("stop_token_ids") or []
        if request.output_ids and request.output_ids[-1] in stop_ids:
            request.matched = request.output_ids[-1]
            self._end(request, "stop")
        elif len(request.output_ids) >= limit:
            self._end(request, "length")

    def _read(self, request: StandInRequest) -> None:
        """Compute the state after prompt and output, the cached part of the prompt for free."""
        tokens = [*request.prompt_ids, *request.output_ids]
        if not request.was_read:
            known = (_shared_length(tokens, cached) for cached in self._cached)
            request.num_cached = min(max(known, default=0), len(request.prompt_ids) - 1)
            request.versions.append((self.version, 0))
            request.was_read = True
        state = np.zeros(self.weights[EMBEDDING].shape[1], dtype=np.float32)
        for token in tokens:
            state = _next_state(self.weights, state, token)
        request.state = state

    def _draw(self, request: StandInRequest) -> None:
        assert request.state is not None
        temperature = float(request.params.get("temperature", 1.0))
        logprobs = _log_softmax(_logits(self.weights, request.state) / (temperature or 1.0))
        if temperature == 0:
            token = int(np.argmax(logprobs))
        else:
            allowed = _masked(logprobs, top_k=int(request.params.get("top_k", -1)), top_p=_top_p(request.params))
            token = int(request.generator.choice(len(allowed), p=allowed))
        request.output_ids.append(token)
        request.logprobs.append(float(logprobs[token]))
        request.state = _next_state(self.weights, request.state, token)

    def _end(self, request: StandInRequest, reason: Literal["stop", "length", "abort"]) -> None:
        self.running.remove(request)
        self._cached.append([*request.prompt_ids, *request.output_ids[:-1]])
        self._finish(request, reason)

    def _finish(self, request: StandInRequest, reason: Literal["stop", "length", "abort"]) -> None:
        if not request.done.done():
            request.done.set_result(reason)


def _next_state(weights: Mapping[str, FloatArray], state: FloatArray, token: int) -> FloatArray:
    return (_MEMORY * state + weights[EMBEDDING][token]).astype(np.float32)


def _logits(weights: Mapping[str, FloatArray], state: FloatArray) -> FloatArray:
    return weights.get(HEAD, weights[EMBEDDING]) @ state


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - np.log(np.exp(shifted).sum())


def _masked(logprobs: npt.NDArray[np.float64], *, top_k: int, top_p: float) -> npt.NDArray[np.float64]:
    order = np.argsort(-logprobs)
    sorted_p = np.exp(logprobs[order])
    is_kept = np.cumsum(sorted_p) - sorted_p < top_p
    if top_k > 0:
        is_kept[top_k:] = False
    probabilities = np.zeros_like(logprobs)
    probabilities[order[is_kept]] = sorted_p[is_kept]
    return probabilities / probabilities.sum()


def _top_p(params: Mapping[str, Any]) -> float:
    return float(params.get("top_p", 1.0))


def _shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    length = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        length += 1
    return length


def _padded(value: FloatArray) -> FloatArray:
    missing = -value.shape[0] % _PADDING if value.ndim > 1 else 0
    return np.concatenate([value, np.zeros((missing, *value.shape[1:]), dtype=value.dtype)]) if missing else value
