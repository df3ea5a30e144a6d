"""`check_engine`: what an engine promises, as checks that anybody may run against their own set-up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from agentenv.check import CheckReport, CheckResult, result_of
from agentenv.engine.protocol import Engine
from agentenv.engine_promises import PROMISES
from agentenv.engine_subject import EngineSubject
from agentenv.errors import CheckFailed, UsageError

_PROMISE_TIMEOUT_S = 300.0


async def check_engine(
    engine: Engine,
    *,
    model: str | Path | None,
    name: str = "engine",
    vocab_size: int | None = None,
    max_length: int = 1024,
    dtype: str = "float32",
    updates_weights: bool = True,
    honours_seeds: bool = True,
    only: Collection[str] = (),
    kill: Callable[[], Awaitable[None]] | None = None,
    raise_on_failure: bool = True,
    told: Callable[[CheckResult], None] | None = None,
) -> CheckReport:
    """Check that an engine keeps the promises of `agentenv.engine.protocol.Engine`.

    The engine is worked on for a minute or so: it gets new weights, is paused, flooded, asked for nonsense, and closed
    at the end. A server then holds the weights of `model` again, under a higher version; with `kill` it is dead.

    Args:
        engine: idle, and used by nobody else.
        model: the folder that it serves; log-probs are compared with transformers'. None, for an engine without
            weights, skips everything that needs them.
        name: for the report.
        vocab_size: of the model; None asks `model`.
        max_length: tokens of prompt and output that the engine takes.
        dtype: of the engine's weights; decides how close log-probs must be.
        updates_weights: False for an endpoint that may not be changed.
        honours_seeds: False for an engine that draws as it likes, as SGLang does outside its deterministic mode.
        only: names of the promises to check; empty checks all.
        kill: ends the engine's process by force; the last check then kills it in the middle of a request.
        raise_on_failure: False only reports.
        told: called with every result as it comes.

    Raises:
        CheckFailed: lists every promise that does not hold.
        UsageError: `only` names an unknown promise, or nothing tells the size of the vocabulary.
    """
    unknown = sorted(set(only) - set(PROMISES))
    if unknown:
        raise UsageError(f"there is no promise {unknown[0]!r}; there are {', '.join(PROMISES)}")
    chosen = [promise for promise in PROMISES if not only or promise in only]
    reference = None
    if model is not None:
        from agentenv.engine.reference import Reference

        reference = await asyncio.to_thread(Reference.load, model, dtype=dtype)
    if vocab_size is None:
        if reference is None:
            raise UsageError("check_engine needs vocab_size where no model folder is given")
        vocab_size = reference.vocab_size
    subject = EngineSubject(
        engine=engine,
        reference=reference,
        vocab_size=vocab_size,
        max_length=max_length,
        tolerance=_TOLERANCES.get(dtype, 0.02),
        updates_weights=updates_weights,
        honours_seeds=honours_seeds,
        kill=kill,
    )
    results = [await _result(promise, subject, told=told) for promise in chosen]
    report = CheckReport(name=name, results=tuple(results))
    if raise_on_failure:
        report.require_ok()
    return report


async def _result(promise: str, subject: EngineSubject, *, told: Callable[[CheckResult], None] | None) -> CheckResult:
    """Look at one promise."""
    try:
        async with asyncio.timeout(_PROMISE_TIMEOUT_S):
            found: str | Exception = await PROMISES[promise](subject)
    except TimeoutError:
        found = CheckFailed(f"no end within {_PROMISE_TIMEOUT_S:g} s")
    except Exception as error:  # whatever an engine raises is a finding
        found = error
    result = result_of(promise, found)
    if told is not None:
        told(result)
    return result


_TOLERANCES = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.02}
