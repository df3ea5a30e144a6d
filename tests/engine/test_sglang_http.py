"""The SGLang adapter against the protocol stand-in."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from safetensors.torch import save_file

from agentenv.engine.protocol import LoraAdapter, SamplingParams, WeightManifest
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.sglang_http import SGLangServer
from agentenv.engine.sglang_stand_in import SGLangStandIn
from agentenv.engine.sglang_stand_in_model import stand_in_logprobs, stand_in_weights
from agentenv.errors import DeadlineExceeded, EngineError, UsageError
from agentenv.messages import Image
from tests.engine.sglang_behaviours import *  # noqa: F403
from tests.engine.sglang_behaviours import PROMPT, Subject, ask, expected, moved, newest, until

CONFIG = ServerConfig(name="sglang", max_length=250)


@pytest.fixture(params=["tied", "untied"])
def checkpoint(request, tmp_path):
    weights = {n: torch.from_numpy(v) for n, v in stand_in_weights(is_tied=request.param == "tied").items()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 97, "max_position_embeddings": 256}))
    return tmp_path, weights


@pytest.fixture
async def server(checkpoint):
    folder, weights = checkpoint
    async with SGLangStandIn(
        {n: t.numpy() for n, t in weights.items()}, model_path=str(folder), step_s=0.002
    ) as server:
        yield server


@pytest.fixture
async def subject(server, checkpoint):
    subject = Subject(
        connect=lambda config: SGLangServer.connect(server.url, config=config),
        weights=checkpoint[1],
        reference=lambda weights, ids, temperature: stand_in_logprobs(
            {n: t.numpy() for n, t in weights.items()}, ids, temperature=temperature
        ),
        kill=server.kill,
    )
    yield subject
    await subject.close()


@pytest.fixture
def own_subject(subject):
    return subject


async def test_a_server_says_what_it_is(server):
    engine = await SGLangServer.connect(server.url, config=CONFIG)
    facts = engine.facts
    assert (facts.release, facts.vocab_size, facts.dtype, facts.device, facts.tp_size) == (
        (0, 5, 23),
        97,
        "float32",
        "cpu",
        1,
    )
    assert (facts.max_length, facts.max_prompt_tokens) == (250, 249)
    assert await newest(engine) == 0
    await engine.close()


async def test_the_vocabulary_is_found_where_the_model_folder_is_elsewhere():
    async with SGLangStandIn(stand_in_weights(vocab_size=53), model_path="/on/another/machine") as server:
        engine = await SGLangServer.connect(server.url, config=CONFIG)
        assert engine.vocab_size == 53
        assert server.num_in_flight == 0
        await engine.close()


@pytest.mark.fault(
    "engine answers nonsense: SGLang", then="the next request is answered", metric="agentenv_engine_errors_total"
)
@pytest.mark.parametrize(
    ("fault", "said"),
    [("html", "not JSON"), ("half_json", "not JSON"), ("error", "answered 500: Internal Server Error")],
)
async def test_a_server_that_answers_nonsense_is_named(server, fault, said):
    server.fault = fault
    with pytest.raises(EngineError, match=said):
        await SGLangServer.connect(server.url, config=CONFIG)
    server.fault = ""
    engine = await SGLangServer.connect(server.url, config=CONFIG)
    server.fault = fault
    with pytest.raises(EngineError, match=said):
        await ask(engine)
    assert not (await engine.health()).is_ready
    server.fault = ""
    assert len((await ask(engine)).token_ids) == 12
    await engine.close()


async def test_a_server_that_does_not_answer_ends_with_the_deadline(server):
    engine = await SGLangServer.connect(server.url, config=CONFIG)
    server.fault, server.fault_path = "hang", "/generate"
    with pytest.raises(DeadlineExceeded, match=r"within 0\.1 s"):
        await engine.generate([1], SamplingParams(max_tokens=1), session_id="s", deadline_s=0.1)
    await engine.close()


async def test_nobody_at_the_address_is_said_at_once():
    with pytest.raises(EngineError, match="is the server running"):
        await SGLangServer.connect("http://127.0.0.1:9", config=CONFIG)
    with pytest.raises(UsageError, match="expected one such as"):
        await SGLangServer.connect("127.0.0.1:9", config=CONFIG)


async def test_a_key_is_sent_and_never_shown(monkeypatch):
    config = ServerConfig(name="sglang", max_length=250)
    monkeypatch.setenv("AGENTENV_API_KEY", "the-key")
    async with SGLangStandIn(api_key="the-key") as server:
        engine = await SGLangServer.connect(server.url, config=config)
        assert len((await ask(engine)).token_ids) == 12
        await engine.close()
        monkeypatch.delenv("AGENTENV_API_KEY")
        with pytest.raises(UsageError, match="environment variable AGENTENV_API_KEY"):
            await SGLangServer.connect(server.url, config=CONFIG)
    monkeypatch.setenv("AGENTENV_API_KEY", "the-key")
    async with SGLangStandIn(api_key="another") as server:
        with pytest.raises(UsageError) as refusal:
            await SGLangServer.connect(server.url, config=config)
        assert "the-key" not in str(refusal.value)


async def test_a_release_without_sessions_is_updated_without_them(checkpoint):
    folder, weights = checkpoint
    async with SGLangStandIn(
        {n: t.numpy() for n, t in weights.items()}, model_path=str(folder), release="0.5.20"
    ) as server:
        engine = await SGLangServer.connect(server.url, config=CONFIG)
        await engine.update_weights(WeightManifest(version=1, tensors=moved(weights)))
        asked = [path for path, _ in server.requests]
        await engine.close()
    assert "/update_weights_from_tensor" in asked
    assert "/begin_weight_update" not in asked


async def test_weights_that_broke_off_are_never_served_until_an_update_succeeds(subject, server):
    engine = await subject.engine()
    version, weights = await newest(engine), moved(subject.weights)
    server.fault, server.fault_path = "error", "/update_weights_from_tensor"
    with pytest.raises(EngineError, match="answered 500"):
        await engine.update_weights(WeightManifest(version=version + 1, tensors=weights))
    server.fault = ""

    assert not (await engine.health()).is_ready
    with pytest.raises(EngineError, match="serves nothing, its update to version"):
        await ask(engine)
    with pytest.raises(EngineError, match="stays paused"):
        await engine.resume()
    await engine.update_weights(WeightManifest(version=version + 1, tensors=weights))
    await engine.resume()
    completion = await ask(engine)
    await engine.close()
    assert completion.logprobs == pytest.approx(expected(subject, weights, completion), abs=1e-4)


async def test_weights_that_arrive_otherwise_than_sent_are_found_out(subject, server):
    engine = await subject.engine()
    server.corrupts_updates = True
    with pytest.raises(EngineError, match="holds other weights than version"):
        await engine.update_weights(WeightManifest(version=await newest(engine) + 1, tensors=moved(subject.weights)))
    with pytest.raises(EngineError, match="serves nothing"):
        await ask(engine)
    await engine.close()


@pytest.mark.parametrize("fault", ["unknown", "missing"])
async def test_names_are_checked_also_where_the_checkpoint_is_elsewhere(checkpoint, fault):
    _, weights = checkpoint
    async with SGLangStandIn({n: t.numpy() for n, t in weights.items()}, model_path="/on/another/machine") as server:
        engine = await SGLangServer.connect(server.url, config=CONFIG)
        broken = {**weights, "model.nothing.weight": torch.zeros(3)}
        if fault == "missing":
            broken = {n: t for n, t in weights.items() if n != "model.embed_tokens.weight"} or {"x": torch.zeros(1)}
        with pytest.raises(EngineError, match=r"weight update refused|nothing that goes by a name"):
            await engine.update_weights(WeightManifest(version=1, tensors=broken))
        await engine.update_weights(WeightManifest(version=1, tensors=moved(weights)))
        assert engine.proof.num_proven == len(weights)
        await engine.close()


async def test_an_update_that_another_one_blocks_changes_nothing(subject, server):
    engine = await subject.engine()
    with server.session(), pytest.raises(EngineError, match="already open"):
        await engine.update_weights(WeightManifest(version=await newest(engine) + 1, tensors=subject.weights))
    assert len((await ask(engine)).token_ids) == 12
    await engine.close()


async def test_what_sglang_does_not_take_is_refused_with_what_it_takes(server):
    with pytest.raises(UsageError, match="tensor, disk, gloo or nccl"):
        await SGLangServer.connect(server.url, config=CONFIG.model_copy(update={"weight_sync": "shm"}))
    with pytest.raises(UsageError, match="needs GPUs"):
        await SGLangServer.connect(server.url, config=CONFIG.model_copy(update={"weight_sync": "nccl"}))
    engine = await SGLangServer.connect(server.url, config=CONFIG)
    adapter = LoraAdapter(rank=2, alpha=4.0, target_modules=("q_proj",))
    with pytest.raises(UsageError, match="merge the adapter"):
        await engine.update_weights(WeightManifest(version=1, adapter=adapter))
    params = SamplingParams(max_tokens=1)
    with pytest.raises(EngineError, match="reads text only"):
        await engine.generate([1], params, session_id="s", deadline_s=5, images=[Image(data=b"")])
    await engine.close()


async def test_every_request_has_an_id_of_its_own_and_of_one_width(server):
    engine, other = [await SGLangServer.connect(server.url, config=CONFIG) for _ in range(2)]
    await asyncio.gather(*(ask(e, max_tokens=1) for e in (engine, other) for _ in range(12)))
    ids = [body["rid"] for path, body in server.requests if path == "/generate"]
    assert len(set(ids)) == 24
    assert {len(request_id) for request_id in ids} == {len(ids[0])}
    await engine.close()
    await other.close()


async def test_a_request_that_is_given_up_is_aborted_by_its_own_id(subject, server):
    engine = await subject.engine()
    with pytest.raises(DeadlineExceeded):
        await engine.generate(PROMPT, SamplingParams(max_tokens=230), session_id="s", deadline_s=0.05)
    await until(lambda: has_asked(server, "/abort_request"))
    asked = dict(server.requests)
    assert asked["/abort_request"] == {"rid": asked["/generate"]["rid"]}


async def test_a_request_that_comes_during_a_pause_does_not_reach_the_server(subject, server):
    engine = await subject.engine()
    await engine.pause("keep")
    with pytest.raises(DeadlineExceeded):
        await engine.generate(PROMPT, SamplingParams(max_tokens=4), session_id="s", deadline_s=0.05)
    # the server would swallow its abort, and run it for nobody after the pause
    assert not await has_asked(server, "/generate")
    assert not await has_asked(server, "/abort_request")
    await engine.resume()


async def has_asked(server: SGLangStandIn, path: str) -> bool:
    return any(asked == path for asked, _ in server.requests)
