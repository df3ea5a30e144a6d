"""What an engine promises, one coroutine per promise: it returns what it measured, or raises `CheckFailed`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from agentenv.check_promises import Skipped
from agentenv.engine_subject import DEADLINE_S, SOON_S, EngineSubject, refused, require, running
from agentenv.engine_weight_promises import (
    refuses_stale_weights,
    serves_the_first_weights_again,
    takes_new_weights,
    takes_new_weights_in_flight,
)
from agentenv.errors import CheckFailed, DeadlineExceeded, EngineClosed, EngineError

_NUM_CONCURRENT = 64
_PAUSE_S = 0.3
_SETTLE_S = 0.1
_TRIES = 4
_MARGIN = 16  # some engines keep a few tokens of their length to themselves


async def is_ready(subject: EngineSubject) -> str:
    """It says that it can serve, and which weights."""
    health = await subject.engine.health()
    require(health.is_ready, "health says that it is not ready")
    return f"ready, version {health.version}"


async def logprobs_are_those_of_the_model(subject: EngineSubject) -> str:
    """Log-probs agree with transformers at temperature 1, for short and long prompts."""
    worst = 0.0
    for length in (1, 7, 33, min(200, subject.max_length // 2)):
        prompt = subject.prompt(length, seed=length)
        worst = max(worst, subject.distance(prompt, await subject.ask(prompt, max_tokens=16)))
    require(worst <= subject.tolerance, f"differ by {worst:.2g} from transformers; {subject.tolerance:g} is allowed")
    return f"largest difference {worst:.1e}"


async def logprobs_are_of_what_was_sampled_from(subject: EngineSubject) -> str:
    """They follow the temperature, and are taken before top-p and top-k."""
    worst = 0.0
    settings: list[tuple[float, dict[str, Any]]] = [(0.6, {}), (1.7, {}), (1.0, {"top_k": 3}), (0.8, {"top_p": 0.5})]
    for temperature, options in settings:
        prompt = subject.prompt(12)
        completion = await subject.ask(prompt, max_tokens=12, temperature=temperature, **options)
        found = subject.distance(prompt, completion, temperature=temperature)
        require(
            found <= subject.tolerance * max(1.0, 1.0 / temperature),
            f"temperature {temperature:g} {options or ''}: differ by {found:.2g} from softmax(logits / temperature)",
        )
        worst = max(worst, found)
    return f"largest difference {worst:.1e}"


async def greedy_takes_the_best_token(subject: EngineSubject) -> str:
    """Temperature 0 gives the most likely tokens, with log-probs as at temperature 1."""
    prompt = subject.prompt(9)
    completion = await subject.ask(prompt, max_tokens=8, temperature=0.0)
    found = subject.distance(prompt, completion)
    require(found <= subject.tolerance, f"log-probs differ by {found:.2g} from those of temperature 1")
    best = subject.model.greedy(prompt, num_tokens=8)
    if list(completion.token_ids) != best:  # two tokens may be as good as equal in the engine's precision
        missed = [
            one - two
            for one, two in zip(
                subject.model.logprobs(prompt, best), subject.model.logprobs(prompt, completion.token_ids), strict=True
            )
        ]
        require(max(missed[:1]) <= 2 * subject.tolerance, f"took {list(completion.token_ids)}, the best are {best}")
    return "the most likely tokens"


async def stops_at_a_stop_id(subject: EngineSubject) -> str:
    """A stop id ends the output and is part of it."""
    _ = subject.model
    prompt = subject.prompt(11)
    free = await subject.ask(prompt, max_tokens=12, temperature=0.0)
    stop = free.token_ids[4]
    expected = list(free.token_ids[: list(free.token_ids).index(stop) + 1])
    stopped = await subject.ask(prompt, max_tokens=12, temperature=0.0, stop_ids=(stop,))
    require(list(stopped.token_ids) == expected, f"gave {list(stopped.token_ids)}; expected {expected}")
    require(stopped.finish_reason == "stop", f'finish reason is "{stopped.finish_reason}"; expected "stop"')
    return f"stopped after {len(expected)} tokens"


async def stops_at_max_tokens(subject: EngineSubject) -> str:
    """Without a stop id the output is as long as asked for; one token is possible."""
    _ = subject.model
    for count in (1, 20):
        completion = await subject.ask(subject.prompt(5), max_tokens=count)
        require(len(completion.token_ids) == count, f"{count} tokens were asked for, {len(completion.token_ids)} came")
        require(completion.finish_reason == "length", f'finish reason is "{completion.finish_reason}"')
    return "1 and 20 tokens"


async def same_seed_same_tokens(subject: EngineSubject) -> str:
    """A seed makes the draw a function of (seed, position)."""
    if not subject.honours_seeds:
        raise Skipped("this engine does not promise it")
    prompt = subject.prompt(6)
    one, two, other = [await subject.ask(prompt, max_tokens=16, seed=seed) for seed in (5, 5, 6)]
    require(list(one.token_ids) == list(two.token_ids), "the same seed gave other tokens")
    if subject.reference is not None:
        require(list(one.token_ids) != list(other.token_ids), "another seed gave the same 16 tokens")
    return "16 tokens repeated"


async def serves_many_at_once(subject: EngineSubject) -> str:
    """64 requests at once all come back, each with its own log-probs."""
    prompts = [subject.prompt(4 + index % 23, seed=index) for index in range(_NUM_CONCURRENT)]
    started = time.perf_counter()
    completions = await asyncio.gather(
        *(subject.ask(prompt, max_tokens=16, seed=index) for index, prompt in enumerate(prompts))
    )
    seconds = time.perf_counter() - started
    if subject.reference is not None:
        worst = max(subject.distance(p, c) for p, c in zip(prompts, completions, strict=True))
        require(worst <= subject.tolerance, f"log-probs differ by {worst:.2g} when {_NUM_CONCURRENT} run together")
    return f"{sum(len(c.token_ids) for c in completions) / seconds:.0f} tokens/s"


async def reuses_a_prefix(subject: EngineSubject) -> str:
    """The second turn of a session finds most of the first in the cache, and its log-probs are still right."""
    session, prompt = subject.new_session(), subject.prompt(min(128, subject.max_length // 4))
    first = await subject.ask(prompt, session=session, max_tokens=16)
    longer = [*prompt, *first.token_ids, *subject.prompt(5, seed=9)]
    second = await subject.ask(longer, session=session, max_tokens=8)
    if subject.reference is not None:
        found = subject.distance(longer, second)
        require(found <= subject.tolerance, f"log-probs after a cached prefix differ by {found:.2g}")
    return f"{second.num_cached_tokens} of {len(longer)} prompt tokens cached"


async def takes_cancellation(subject: EngineSubject) -> str:
    """A cancelled request leaves the engine, and the next one is served."""
    async with running(subject) as task:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await subject.settle(what="cancelled")
    await subject.ask(subject.prompt(4))
    return "the request left"


async def keeps_deadlines(subject: EngineSubject) -> str:
    """A request that is too slow raises `DeadlineExceeded` and leaves the engine."""
    await subject.engine.pause("keep")  # so that it is too slow on every machine
    try:
        started = time.perf_counter()
        try:
            await subject.ask(subject.prompt(4), max_tokens=subject.max_length // 2, deadline_s=0.2)
        except DeadlineExceeded:
            late = time.perf_counter() - started - 0.2
        else:
            raise CheckFailed("a deadline of 0.2 s passed without DeadlineExceeded")
    finally:
        await subject.engine.resume()
    await subject.settle(what="past its deadline")
    await subject.ask(subject.prompt(4))
    return f"raised {late * 1000:.0f} ms after the deadline"


async def aborts_on_pause(subject: EngineSubject) -> str:
    """`pause("abort")` ends running requests with what they have, or nothing, and it serves again after `resume`."""
    async with running(subject) as task:
        await subject.engine.pause("abort")
        await subject.engine.resume()
        completion = await asyncio.wait_for(task, SOON_S)
    require(completion.finish_reason == "abort", f'finish reason is "{completion.finish_reason}"; expected "abort"')
    if subject.reference is not None and completion.token_ids:
        found = subject.distance(subject.prompt(8), completion)
        require(found <= subject.tolerance, f"log-probs of the aborted tokens differ by {found:.2g}")
    await subject.ask(subject.prompt(4))
    return f"ended with {len(completion.token_ids)} tokens"


async def goes_on_after_a_pause(subject: EngineSubject) -> str:
    """`pause("keep")` stops the clock for running requests; after `resume` they end as if nothing had been."""
    for attempt in range(_TRIES):
        async with running(subject, share_of_time=0.3 / 2**attempt) as task:
            await subject.engine.pause("keep")
            await asyncio.sleep(_SETTLE_S)
            if task.done():
                continue  # it was as good as done when the pause came
            await asyncio.sleep(_PAUSE_S)
            require(not task.done(), "a request ended while the engine was paused")
            await subject.engine.resume()
            completion = await asyncio.wait_for(task, DEADLINE_S)
            break
    else:
        raise CheckFailed(f"{_TRIES} requests ended before the engine was paused")
    if subject.reference is not None:
        require(
            completion.finish_reason == "length", f'finish reason is "{completion.finish_reason}"; expected "length"'
        )
        found = subject.distance(subject.prompt(8), completion)
        require(found <= subject.tolerance, f"log-probs around the pause differ by {found:.2g}")
    return f"{len(completion.token_ids)} tokens across the pause"


async def refuses_unknown_ids(subject: EngineSubject) -> str:
    """An id outside the vocabulary is refused, and the engine lives."""
    _ = subject.model
    for token in (subject.vocab_size, -1, 2**31):
        error = await refused(subject.ask([1, token, 2]), what=f"id {token}")
    await subject.ask(subject.prompt(4))
    return error


async def refuses_what_is_too_long(subject: EngineSubject) -> str:
    """A prompt that leaves no room is refused; an output that would not fit is cut. The engine lives."""
    _ = subject.model
    error = await refused(subject.ask(subject.prompt(subject.max_length + 1)), what="a prompt beyond max_length")
    await refused(subject.ask([]), what="an empty prompt")
    completion = await subject.ask(subject.prompt(subject.max_length - _MARGIN), max_tokens=4 * _MARGIN)
    count = len(completion.token_ids)
    require(count <= _MARGIN + 1, f"{count} tokens came where {_MARGIN} had room")
    require(completion.finish_reason == "length", f'finish reason is "{completion.finish_reason}"')
    return error


async def fails_loudly_when_killed(subject: EngineSubject) -> str:
    """An engine that dies in the middle of a request fails it soon, and says that it is not ready."""
    if subject.kill is None:
        raise Skipped("no way to kill it was given")
    async with running(subject) as task:
        started = time.perf_counter()
        await subject.kill()
        error = await refused(asyncio.wait_for(task, SOON_S), what="a request of a killed engine")
        seconds = time.perf_counter() - started
    try:
        health = await asyncio.wait_for(subject.engine.health(), SOON_S)
    except EngineError:
        return f"failed after {seconds:.1f} s: {error}"
    require(not health.is_ready, "it is dead, and health says that it is ready")
    return f"failed after {seconds:.1f} s: {error}"


async def closes_once(subject: EngineSubject) -> str:
    """`close` can be called again, and nothing is served after it."""
    await subject.engine.close()
    await subject.engine.close()
    try:
        await subject.ask(subject.prompt(4), deadline_s=SOON_S)
    except EngineClosed as error:
        return str(error)
    raise CheckFailed("it served a request after it was closed")


Promise = Callable[[EngineSubject], Awaitable[str]]

PROMISES: dict[str, Promise] = {
    "ready": is_ready,
    "log-probs": logprobs_are_those_of_the_model,
    "temperature": logprobs_are_of_what_was_sampled_from,
    "greedy": greedy_takes_the_best_token,
    "stop ids": stops_at_a_stop_id,
    "length": stops_at_max_tokens,
    "seeds": same_seed_same_tokens,
    "concurrency": serves_many_at_once,
    "prefix cache": reuses_a_prefix,
    "cancellation": takes_cancellation,
    "deadline": keeps_deadlines,
    "abort": aborts_on_pause,
    "pause": goes_on_after_a_pause,
    "new weights": takes_new_weights,
    "new weights in flight": takes_new_weights_in_flight,
    "stale weights": refuses_stale_weights,
    "unknown ids": refuses_unknown_ids,
    "too long": refuses_what_is_too_long,
    "first weights again": serves_the_first_weights_again,
    "killed": fails_loudly_when_killed,
    "closed": closes_once,
}
