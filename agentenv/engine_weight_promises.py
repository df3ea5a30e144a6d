"""What an engine promises about new weights, one coroutine per promise."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agentenv.engine.protocol import Completion, WeightManifest
from agentenv.engine_subject import (
    DEADLINE_S,
    EngineSubject,
    distance_of,
    refused,
    require,
    root_mean_square,
    running,
)
from agentenv.errors import CheckFailed

if TYPE_CHECKING:
    from agentenv.engine.reference import Reference

_UPDATE_TRIES = 8
_TAIL = 4.0


async def takes_new_weights(subject: EngineSubject) -> str:
    """New weights are served as soon as they are acknowledged, and no prefix of the old ones survives."""
    subject.needs_updates()
    prompt = subject.prompt(min(64, subject.max_length // 4))
    session = subject.new_session()
    before = await subject.ask(prompt, session=session, max_tokens=12)
    if subject.reference is None:
        version = (await subject.engine.health()).version + 1
        ack = await subject.engine.update_weights(WeightManifest(version=version))
        require(ack.version == version, f"version {version} was sent, {ack.version} acknowledged")
        return f"version {version}"
    old = subject.model
    await subject.update(old.perturbed(seed=1))
    after = await subject.ask(prompt, session=session, max_tokens=12)
    version = (await subject.engine.health()).version
    require({span.version for span in after.weight_versions} == {version}, f"spans {after.weight_versions}")
    require({span.version for span in before.weight_versions} == {version - 1}, f"spans {before.weight_versions}")
    found = subject.distance(prompt, after)
    stale = distance_of(after.logprobs, old.logprobs(prompt, after.token_ids))
    require(
        found <= subject.tolerance, f"log-probs differ by {found:.2g} from the new weights, {stale:.2g} from the old"
    )
    require(after.num_cached_tokens == 0, f"{after.num_cached_tokens} cached tokens survived the update")
    return f"new weights within {found:.1e}, old ones {stale:.2g} away"


async def takes_new_weights_in_flight(subject: EngineSubject) -> str:
    """A running request goes on over an update: the old weights up to the switch, the new ones after it."""
    subject.needs_updates()
    old = subject.model
    for attempt in range(_UPDATE_TRIES):
        new = old.perturbed(seed=10 + attempt)
        async with running(subject, share_of_time=(attempt + 1) / (_UPDATE_TRIES + 1)) as task:
            await subject.engine.pause("keep")
            await subject.update(new)
            await subject.engine.resume()
            completion = await asyncio.wait_for(task, DEADLINE_S)
        if len(completion.weight_versions) == 2:
            return _both_sides(subject, completion, old=old, new=new)
        old = new
    raise CheckFailed(f"{_UPDATE_TRIES} updates came while a request ran, and none shows in its version spans")


def _both_sides(subject: EngineSubject, completion: Completion, *, old: Reference, new: Reference) -> str:
    prompt = subject.prompt(8)
    first, second = completion.weight_versions
    require(second.version == first.version + 1, f"spans {completion.weight_versions}")
    sides = (("before the switch", slice(first.end), old), ("after the switch", slice(second.start, None), new))
    worst = 0.0
    for side, tokens, weights in sides:
        found, expected = completion.logprobs[tokens], weights.logprobs(prompt, completion.token_ids)[tokens]
        largest, typical = distance_of(found, expected), root_mean_square(found, expected)
        # of hundreds of roundings the largest is far from the typical one; weights mixed up are far beyond both
        is_close = typical <= subject.tolerance and largest <= _TAIL * subject.tolerance
        require(is_close, f"{side}, log-probs differ by {typical:.2g}, at most {largest:.2g}, from its weights")
        worst = max(worst, largest)
    return f"{first.end} old and {second.end - second.start} new tokens, within {worst:.1e}"


async def refuses_stale_weights(subject: EngineSubject) -> str:
    """A version that is not newer is refused, and nothing changes."""
    subject.needs_updates()
    version = (await subject.engine.health()).version
    tensors = {} if subject.reference is None else subject.model.perturbed(seed=99).weights()
    error = await refused(
        subject.engine.update_weights(WeightManifest(version=version, tensors=tensors)), what="a version of before"
    )
    require((await subject.engine.health()).version == version, "the version changed")
    if subject.reference is not None:
        prompt = subject.prompt(10)
        found = subject.distance(prompt, await subject.ask(prompt))
        require(found <= subject.tolerance, f"the weights changed all the same: log-probs differ by {found:.2g}")
    return error


async def serves_the_first_weights_again(subject: EngineSubject) -> str:
    """The weights of the beginning, sent back, are served exactly."""
    subject.needs_updates()
    _ = subject.model
    assert subject.original is not None
    await subject.update(subject.original)
    prompt = subject.prompt(20)
    found = subject.distance(prompt, await subject.ask(prompt, max_tokens=16))
    require(found <= subject.tolerance, f"log-probs differ by {found:.2g}")
    return f"within {found:.1e}"
