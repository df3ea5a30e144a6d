"""The scripted engine and the refusal of completions that must not be trained on."""

import math
import time

import pytest

from agentenv.engine.protocol import Completion, SamplingParams, WeightManifest, check_completion
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError, UsageError
from agentenv.trajectory import VersionSpan

SAMPLING = SamplingParams(max_tokens=4)


async def ask(engine, session="s", **options):
    return await engine.generate([1, 2], SAMPLING, session_id=session, deadline_s=options.get("deadline_s", 5))


async def test_every_session_gets_the_script_from_its_beginning():
    engine = ScriptedEngine([[1], [2]])
    assert [(await ask(engine, name)).token_ids for name in ("a", "b", "a", "a")] == [[1], [1], [2], [2]]
    await engine.end_session("a")
    assert (await ask(engine, "a")).token_ids == [1]


async def test_a_long_reply_is_cut_and_says_length():
    done = await ask(ScriptedEngine([[1, 2, 3, 4, 5]]))
    assert (done.token_ids, done.finish_reason) == ([1, 2, 3, 4], "length")


async def test_latency_is_waited_and_a_deadline_is_kept():
    started = time.monotonic()
    await ask(ScriptedEngine([[1]], latency_s=0.02))
    assert time.monotonic() - started >= 0.02
    with pytest.raises(DeadlineExceeded):
        await ask(ScriptedEngine([[1]], latency_s=10), deadline_s=0.02)


async def test_weights_must_grow_and_tag_the_tokens():
    engine = ScriptedEngine([[1]])
    await engine.update_weights(WeightManifest(version=3))
    assert (await ask(engine)).weight_versions == (VersionSpan(version=3, start=0, end=1),)
    with pytest.raises(EngineError, match="not newer"):
        await engine.update_weights(WeightManifest(version=3))


async def test_a_closed_engine_refuses():
    engine = ScriptedEngine([[1]])
    await engine.close()
    with pytest.raises(EngineClosed):
        await ask(engine)
    assert not (await engine.health()).is_ready


async def test_faults_hit_every_nth_request():
    engine = ScriptedEngine([[1, 2]], faults=Faults(fail_every=2, abort_every=3))
    await ask(engine)
    with pytest.raises(EngineError, match="injected"):
        await ask(engine)
    assert (await ask(engine)).finish_reason == "abort"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logprobs": [-0.5]}, "2 token ids but 1 log-probs"),
        ({"logprobs": [-0.5, math.nan]}, "nan at position 1"),
        ({"logprobs": [None, -0.5]}, "None at position 0"),
        ({"logprobs": [-0.5, 0.5]}, "0.5 at position 1"),
        ({"logprobs": [-math.inf, -0.5]}, "-inf at position 0"),
        ({"weight_versions": (VersionSpan(version=0, start=0, end=1),)}, "cover 1 of 2"),
        ({"token_ids": [1, 99]}, r"outside \[0, 50\)"),
    ],
)
def test_a_completion_that_must_not_be_trained_on_is_refused_with_the_reason(change, said):
    good = {
        "token_ids": [1, 2],
        "logprobs": [-0.5, 0.0],
        "finish_reason": "stop",
        "weight_versions": (VersionSpan(version=0, start=0, end=2),),
    }
    check_completion(Completion(**good), vocab_size=50)
    with pytest.raises(EngineError, match=said):
        check_completion(Completion(**{**good, **change}), vocab_size=50)


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temperature": -1}, {"temperature": math.nan}, {"top_p": 0}, {"top_k": -1}]
)
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(UsageError):
        SamplingParams(**{"max_tokens": 1, **wrong})
