"""An engine under check: how it is asked, what its answers are compared with, and requests that run meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from agentenv.check_promises import Skipped
from agentenv.engine.protocol import Completion, Engine, SamplingParams, WeightManifest, check_completion
from agentenv.errors import CheckFailed, EngineError, describe

if TYPE_CHECKING:
    from agentenv.engine.reference import Reference

DEADLINE_S = 120.0
SOON_S = 30.0
_TRIES = 8


@dataclass(kw_only=True)
class EngineSubject:
    """What is checked.

    Attributes:
        engine: under test.
        reference: the weights that it must hold now; None for an engine without a model.
        vocab_size: of the model.
        max_length: tokens of prompt and output that it takes.
        tolerance: how far a log-prob may be from transformers'.
        updates_weights: False where weights may not be changed.
        honours_seeds: False for an engine that draws as it likes.
        kill: ends the engine by force.
        original: the reference of the beginning.
    """

    engine: Engine
    reference: Reference | None
    vocab_size: int
    max_length: int
    tolerance: float
    updates_weights: bool
    honours_seeds: bool
    kill: Callable[[], Awaitable[None]] | None
    original: Reference | None = None
    _sessions: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.original = self.reference

    @property
    def model(self) -> Reference:
        """The weights that the engine must hold now."""
        if self.reference is None:
            raise Skipped("this engine has no model to compare with")
        return self.reference

    def prompt(self, length: int, *, seed: int = 0) -> list[int]:
        """Return random ids."""
        return np.random.default_rng((seed, length)).integers(0, self.vocab_size, length).tolist()

    def new_session(self) -> str:
        """Return a session id that was not used before."""
        return f"{next(self._sessions):016x}"

    async def ask(
        self, prompt: Sequence[int], *, session: str = "", deadline_s: float = DEADLINE_S, **options: Any
    ) -> Completion:
        """Sample a continuation, and refuse what is not well-formed."""
        sampling = SamplingParams(**{"max_tokens": 8, "seed": 1, **options})
        name = session or self.new_session()
        completion = await self.engine.generate(prompt, sampling, session_id=name, deadline_s=deadline_s)
        check_completion(completion, vocab_size=self.vocab_size)
        return completion

    def distance(self, prompt: Sequence[int], completion: Completion, *, temperature: float = 1.0) -> float:
        """Return the largest difference between the engine's log-probs and the model's."""
        expected = self.model.logprobs(prompt, completion.token_ids, temperature=temperature)
        return distance_of(completion.logprobs, expected)

    async def settle(self, *, what: str) -> None:
        """Wait until nothing runs in the engine."""
        deadline = time.monotonic() + SOON_S
        while (health := await self.engine.health()).num_running + health.num_waiting:
            if time.monotonic() > deadline:
                raise CheckFailed(f"{what}: {health.num_running} requests still run after {SOON_S:g} s")
            await asyncio.sleep(0.02)

    async def update(self, reference: Reference) -> None:
        """Give the engine these weights, one version up."""
        version = (await self.engine.health()).version + 1
        ack = await self.engine.update_weights(WeightManifest(version=version, tensors=reference.weights()))
        require(ack.version == version, f"version {version} was sent, {ack.version} acknowledged")
        self.reference = reference

    def needs_updates(self) -> None:
        """Skip where weights may not be changed."""
        if not self.updates_weights:
            raise Skipped("weights may not be changed here")


@contextlib.asynccontextmanager
async def running(subject: EngineSubject, *, share_of_time: float = 0.3) -> AsyncIterator[asyncio.Task[Completion]]:
    """Give a long request that has begun and is not done; whatever happens, it is gone afterwards.

    Args:
        subject: the engine.
        share_of_time: how far the request shall be, of the time that one takes.

    Raises:
        CheckFailed: every request ended before it could be worked on.
    """
    prompt, count = subject.prompt(8), max(8, subject.max_length // 2)
    started = time.perf_counter()
    await subject.ask(prompt, max_tokens=count)  # how long one takes here
    wait_s = share_of_time * (time.perf_counter() - started)
    for attempt in range(_TRIES):
        task = asyncio.create_task(subject.ask(prompt, max_tokens=count, seed=2))
        try:
            await _has_begun(subject, task)
            await asyncio.wait((task,), timeout=wait_s / 2**attempt)
            if task.done() and not task.exception():
                continue  # the machine was busy when the time was taken
            yield task
            return
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with contextlib.suppress(EngineError, TimeoutError):  # a dead engine cannot resume; the check has said so
                await asyncio.wait_for(subject.engine.resume(), SOON_S)
    raise CheckFailed(f"{_TRIES} requests of {count} tokens each ended before they could be seen to run")


async def _has_begun(subject: EngineSubject, task: asyncio.Task[Completion]) -> None:
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        if task.done() or (await subject.engine.health()).num_running:
            return
        await asyncio.sleep(0.001)


def distance_of(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the largest difference between two rows of log-probs."""
    return max((abs(a - b) for a, b in zip(one, other, strict=True)), default=0.0)


def root_mean_square(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the typical difference between two rows of log-probs; 0 where there are none."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / max(1, len(one)))


async def refused(awaitable: Awaitable[object], *, what: str) -> str:
    """Return the engine's words of refusal."""
    try:
        await awaitable
    except EngineError as error:
        return str(error)
    except Exception as error:
        raise CheckFailed(f"{what}: raised {describe(error)}; expected EngineError") from error
    raise CheckFailed(f"{what} was taken")


def require(condition: bool, complaint: str) -> None:
    """Raise `CheckFailed` with the complaint unless the condition holds."""
    if not condition:
        raise CheckFailed(complaint)
