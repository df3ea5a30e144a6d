"""The few verbs that every inference engine speaks, and the values that cross them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from agentenv.errors import EngineError, UsageError
from agentenv.messages import Image
from agentenv.trajectory import VersionSpan

FinishReason = Literal["stop", "length", "abort"]
PauseMode = Literal["abort", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next tokens are drawn.

    Attributes:
        max_tokens: upper bound on new tokens, at least 1.
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1]; 1 is off.
        top_k: 0 is off.
        stop_ids: token ids that end the generation; the stop token is part of the output.
        seed: makes the draw a function of (seed, position); None lets the engine choose.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; at least 1 is needed")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature is {self.temperature}; a finite number >= 0 is needed (0 is greedy)")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must lie in (0, 1] (1 is off)")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; it must be >= 0 (0 is off)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the engine sampled.

    Attributes:
        token_ids: new ids, the stop id included.
        logprobs: one per id: log-prob under softmax(logits / temperature), before top-p and top-k.
            For greedy decoding the temperature is taken as 1.
        finish_reason: `"stop"` (a stop id), `"length"`, or `"abort"` (cut off by the engine).
        weight_versions: spans that cover `[0, len(token_ids))`.
        num_cached_tokens: prompt tokens served from a prefix cache.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    finish_reason: FinishReason
    weight_versions: tuple[VersionSpan, ...]
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAdapter:
    """The shape of a low-rank adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Attributes:
        rank: r.
        alpha: the adapter's output is scaled by alpha / rank.
        target_modules: names of the linear layers that it changes, e.g. `("q_proj", "v_proj")`.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """New weights for an engine.

    Attributes:
        version: version number, larger than any before.
        tensors: parameter name -> tensor, by reference; the engine copies before it acknowledges.
            The values are torch tensors; the core does not import torch.
        adapter: None where `tensors` are the whole model; else they are this adapter's matrices under the names of a
            peft checkpoint, and the base model stays as it is.
    """

    version: int
    tensors: Mapping[str, object] = field(default_factory=dict)
    adapter: LoraAdapter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """An engine's acknowledgement of new weights.

    Attributes:
        version: the version that is served from now on.
        checksum: of the weights as the engine holds them.
        dtype: in which it holds them, e.g. `"bfloat16"`; empty where that is the dtype they were sent in.
    """

    version: int
    checksum: str
    dtype: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """A snapshot of an engine.

    Attributes:
        is_ready: requests can be served, now or after `resume`.
        version: of the weights that it serves.
        num_running: requests that it computes.
        num_waiting: requests that wait for room in it.
        cache_use: share of its key-value cache that running requests hold, in [0, 1]; 0 where it does not say.
    """

    is_ready: bool
    version: int
    num_running: int
    num_waiting: int
    cache_use: float = 0.0


@runtime_checkable
class Engine(Protocol):
    """An inference engine in token ids."""

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image] = (),
    ) -> Completion:
        """Sample a continuation.

        Args:
            prompt_ids: token ids of the whole prompt; a picture is the run of placeholder ids that the model reads it
                as.
            sampling: how to sample.
            session_id: the episode; engines use it for prefix affinity.
            deadline_s: seconds from now after which `DeadlineExceeded` is raised and the request aborted.
            images: one for every run of placeholder ids, in order; engines of text models refuse them.

        Raises:
            EngineError: the request failed. Cancelling the awaiting task aborts the request.
        """
        ...

    async def end_session(self, session_id: str) -> None:
        """Forget what is cached for an episode; unknown sessions are ignored."""
        ...

    async def forget_prefixes(self) -> None:
        """Drop every cached prefix, so that what comes next does not depend on what came before."""
        ...

    async def pause(self, mode: PauseMode = "abort") -> None:
        """Stop generating: running requests are aborted, or kept and continued after `resume`."""
        ...

    async def resume(self) -> None:
        """Go on after `pause`."""
        ...

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Take new weights, drop stale prefix caches and acknowledge."""
        ...

    async def health(self) -> EngineHealth:
        """Say whether requests can be served."""
        ...

    async def close(self) -> None:
        """Free everything; idempotent. Waiting requests fail with `EngineClosed`."""
        ...


def check_completion(completion: Completion, *, vocab_size: int | None = None) -> None:
    """Refuse a completion that must not reach a trainer.

    Raises:
        EngineError: lengths disagree, a log-prob is not a finite number <= 0 (1e-4 is allowed for
            rounding), an id is out of range, or version spans do not cover the output.
    """
    count = len(completion.token_ids)
    if len(completion.logprobs) != count:
        raise EngineError(f"engine returned {count} token ids but {len(completion.logprobs)} log-probs; refusing both")
    if count and not _are_logprobs(completion.logprobs):
        index, value = next((i, v) for i, v in enumerate(completion.logprobs) if not _are_logprobs((v,)))
        raise EngineError(f"engine returned log-prob {value!r} at position {index}; a finite number <= 0 is needed")
    if (
        vocab_size is not None
        and count
        and not (0 <= min(completion.token_ids) <= max(completion.token_ids) < vocab_size)
    ):
        raise EngineError(f"engine returned a token id outside [0, {vocab_size})")
    position = 0
    for span in completion.weight_versions:
        if span.start != position or span.end < span.start:
            break
        position = span.end
    if position != count:
        raise EngineError(f"weight version spans cover {position} of {count} tokens; every token needs a version")


def _are_logprobs(values: Sequence[float]) -> bool:
    """True when all are finite and at most 0, up to rounding; a sum finds NaN, infinities and None at C speed."""
    try:
        return math.isfinite(sum(values)) and max(values) <= 1e-4
    except TypeError:
        return False
