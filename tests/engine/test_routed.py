"""Behind a router, sampling goes one way and every verb another, and old weights do not slip through."""

import pytest
from pydantic import ValidationError

from agentenv.engine.protocol import SamplingParams, WeightManifest
from agentenv.engine.routed import Routed
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.sglang_router import RouterTransport, sglang_front
from agentenv.errors import EngineError
from tests.engine.mortal_engine import MortalEngine


async def ask(engine: Routed) -> int:
    sampling = SamplingParams(max_tokens=8, seed=1)
    completion = await engine.generate([1, 2], sampling, session_id="s", deadline_s=5)
    return completion.weight_versions[-1].version


async def test_requests_go_through_the_router_and_verbs_to_the_servers():
    front, workers = MortalEngine(version=1), MortalEngine(version=1)
    engine = Routed(front, workers=workers, version=1)
    assert await ask(engine) == 1
    await engine.pause("keep")
    await engine.update_weights(WeightManifest(version=2, tensors={}))
    await engine.resume()
    await engine.forget_prefixes()
    await engine.end_session("s")
    assert front.calls == ["generate", "pause keep", "resume"]
    assert workers.calls == ["pause keep", "update 2", "resume", "forget", "end s"]
    assert (await engine.health()).version == 2
    await engine.close()
    assert (front.num_closed, workers.num_closed) == (1, 1)


async def test_an_answer_of_older_weights_is_asked_again_once_and_then_refused():
    front = MortalEngine(version=1)
    engine = Routed(front, workers=MortalEngine(version=1), version=1)
    await engine.update_weights(WeightManifest(version=2, tensors={}))
    with pytest.raises(EngineError, match="twice chose a server with weights of version 1, but 2 is served"):
        await ask(engine)
    assert front.calls == ["generate", "generate"]
    front.version = 2
    assert await ask(engine) == 2


class Worker:
    """The transport of a server, as far as aborting needs it."""

    def __init__(self, *, is_gone: bool = False) -> None:
        self.is_gone = is_gone
        self.aborted: list[str] = []

    async def abort(self, request_id: str) -> None:
        if self.is_gone:
            raise EngineError("gone")
        self.aborted.append(request_id)


async def test_an_abort_reaches_every_server_and_one_that_is_gone_does_not_hinder_it():
    from agentenv.engine.http import JsonClient

    workers = [Worker(), Worker(is_gone=True), Worker()]
    transport = RouterTransport(JsonClient("http://127.0.0.1:9"), workers=workers)
    await transport.abort("r1")
    assert [worker.aborted for worker in workers] == [["r1"], [], ["r1"]]
    assert await transport.control("pause_generation", {}, deadline_s=1) == {}
    with pytest.raises(EngineError, match="gone"):
        await RouterTransport(JsonClient("http://127.0.0.1:9"), workers=workers[1:2]).abort("r2")
    await transport.close()


def test_a_router_needs_servers_behind_it():
    with pytest.raises(EngineError, match="name them"):
        sglang_front("http://127.0.0.1:9", workers=[], config=ServerConfig(name="sglang", url="http://a:1"))
    with pytest.raises(ValidationError, match="router needs name sglang"):
        ServerConfig(name="vllm", url="http://a:1", router="http://r:1")
    with pytest.raises(ValidationError, match="router needs name sglang"):
        ServerConfig(name="sglang", router="http://r:1")
