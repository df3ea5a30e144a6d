"""The stand-in answers in the shapes that the real server was recorded with; the recordings lie in `sglang_http/`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from agentenv.engine.sglang_stand_in import SGLangStandIn
from agentenv.engine.sglang_stand_in_model import stand_in_logprobs, stand_in_weights
from agentenv.engine.sglang_weights import tensor_payload, weights_folder

RECORDINGS = Path(__file__).parent / "sglang_http"
WEIGHTS = stand_in_weights(vocab_size=320)
TENSORS = {name: torch.from_numpy(value) for name, value in WEIGHTS.items()}
LONG = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 1900, "ignore_eos": True}, "return_logprob": True}

RETRACT = ("/pause_generation", {"mode": "retract"})
IN_PLACE = ("/pause_generation", {"mode": "in_place"})
ABORT = ("/pause_generation", {"mode": "abort"})
BEGIN = ("/begin_weight_update", {})
GENERATE = ("/generate", LONG)

# recording -> what happened before; a request to /generate is left running
BEFORE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "abort_request": [],
    "abort_request_unknown": [],
    "begin_weight_update": [],
    "continue_generation": [RETRACT],
    "end_weight_update": [BEGIN],
    "flush_cache": [],
    "flush_cache_paused_abort": [ABORT],
    "flush_cache_paused_in_place": [GENERATE, IN_PLACE],
    "flush_cache_paused_retract": [GENERATE, RETRACT],
    "flush_cache_while_running": [GENERATE],
    "generate_err_bad_temp": [],
    "generate_err_duplicate_rid": [("/generate", {**LONG, "rid": "dup"})],
    "generate_err_no_input": [],
    "generate_err_unknown_sampling_field": [],
    "generate_logprob_t1": [],
    "generate_skip_tokenizer_init": [],
    "generate_stop_token_ids": [],
    "get_get_model_info": [],
    "get_health": [],
    "get_model_info": [],
    "get_ping": [],
    "get_ready": [],
    "get_server_info": [],
    "pause_generation_abort": [],
    "pause_generation_bad_mode": [],
    "pause_generation_in_place": [],
    "pause_generation_retract": [],
    "update_weight_version": [],
    "update_weights_from_disk": [RETRACT],
    "update_weights_from_disk_bad_path": [RETRACT],
    "update_weights_from_tensor": [RETRACT, BEGIN],
    "update_weights_from_tensor_inflight_in_place_flush_true_refused": [GENERATE, IN_PLACE, BEGIN],
    "update_weights_from_tensor_inflight_retract_flush_true": [GENERATE, RETRACT, BEGIN],
    "update_weights_from_tensor_without_session": [RETRACT],
    "weights_checker_checksum": [],
}


@pytest.fixture
async def server():
    async with SGLangStandIn(WEIGHTS, context_length=2048, step_s=0.001, health_timeout_s=0.2) as server:
        yield server


@pytest.fixture
async def session(server):
    async with aiohttp.ClientSession(server.url) as session:
        yield session


def recording(name: str) -> dict[str, Any]:
    return json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))


async def answer(session, method: str, path: str, body: Any) -> tuple[int, Any]:
    async with session.request(method, path, json=body) as response:
        text = await response.text()
    return response.status, json.loads(text) if text.startswith("{") else text


def assert_same_shape(ours: Any, recorded: Any, where: str = "body") -> None:
    """Every part of our answer was recorded, and is of the recorded type; `None` says nothing about a type."""
    if isinstance(recorded, str) and isinstance(ours, str):
        if where == "body":
            assert ours == recorded
    elif isinstance(ours, dict) and isinstance(recorded, dict):
        if all(isinstance(key, str) and "." in key for key in ours):  # names of weights, which differ by model
            ours, recorded = {"name": next(iter(ours.values()))}, {"name": next(iter(recorded.values()))}
        assert set(ours) <= set(recorded), f"{where}: the real server says nothing of {set(ours) - set(recorded)}"
        for key, value in ours.items():
            assert_same_shape(value, recorded[key], f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(recorded, list):
        for one, other in zip(ours[:1], [item for item in recorded[:1] if "in all" not in str(item)], strict=False):
            assert_same_shape(one, other, f"{where}[0]")
    elif ours is not None and recorded is not None:
        numbers = (int, float)
        is_number = isinstance(ours, numbers) and isinstance(recorded, numbers)
        assert is_number or type(ours) is type(recorded), f"{where}: {ours!r} is not of the type of {recorded!r}"


@pytest.mark.parametrize("name", BEFORE)
async def test_an_answer_has_the_status_and_shape_of_the_recorded_one(server, session, name):
    recorded = recording(name)
    request, response = recorded["request"], recorded["response"]
    running = []
    for path, body in BEFORE[name]:
        if path == "/generate":
            running.append(asyncio.create_task(answer(session, "POST", path, body)))
            async with asyncio.timeout(10):
                while not server.num_running:  # noqa: ASYNC110 - seen from outside, it has no event
                    await asyncio.sleep(0.001)
        else:
            assert (await answer(session, "POST", path, body))[0] == 200
    body = request["json"]
    if name == "generate_stop_token_ids":  # its own model draws other ids
        body = {**body, "sampling_params": {**body["sampling_params"], "stop_token_ids": list(range(320))}}
    with weights_folder(TENSORS) as folder:
        if body and "serialized_named_tensors" in body:
            body = {**body, "serialized_named_tensors": [tensor_payload(TENSORS)]}
        if body and body.get("model_path", "").startswith("models/"):
            body = {**body, "model_path": str(folder)}
        status, ours = await answer(session, request["method"], request["path"], body)
    for task in running:
        task.cancel()

    assert status == response["status"]
    assert_same_shape(ours, response["body"])


async def test_an_aborted_request_answers_as_recorded_where_it_ran_and_where_it_waited():
    async with (
        SGLangStandIn(WEIGHTS, context_length=2048, step_s=0.001, max_running=1) as server,
        aiohttp.ClientSession(server.url) as session,
    ):
        tasks = []
        for name in ("generate_aborted", "generate_aborted_in_queue"):
            tasks.append(asyncio.create_task(answer(session, "POST", "/generate", recording(name)["request"]["json"])))
            await asyncio.sleep(0.05)
        await answer(session, "POST", "/abort_request", {"abort_all": True})
        (_, ran), (_, waited) = await asyncio.gather(*tasks)
    assert_same_shape(ran, recording("generate_aborted")["response"]["body"])
    assert_same_shape(waited, recording("generate_aborted_in_queue")["response"]["body"])
    assert len(ran["output_ids"]) == len(ran["meta_info"]["output_token_logprobs"]) > 0
    assert waited["output_ids"] == []


async def test_an_abort_takes_every_id_that_begins_with_its_own(session):
    tasks = {
        name: asyncio.create_task(answer(session, "POST", "/generate", {**LONG, "rid": name}))
        for name in ("a1", "a10", "b1")
    }
    await asyncio.sleep(0.05)
    await answer(session, "POST", "/abort_request", {"rid": "a"})  # no request has this very id: nothing happens
    await answer(session, "POST", "/abort_request", {"rid": "a1"})
    (_, one), (_, ten) = await tasks["a1"], await tasks["a10"]
    assert one["meta_info"]["finish_reason"]["type"] == ten["meta_info"]["finish_reason"]["type"] == "abort"
    assert not tasks["b1"].done()
    tasks["b1"].cancel()


async def test_health_does_not_answer_while_paused_and_ping_does(session):
    await answer(session, "POST", *RETRACT)
    assert (await answer(session, "GET", "/health", None))[0] == 503
    assert (await answer(session, "GET", "/ready", None))[0] == 503
    assert (await answer(session, "GET", "/ping", None))[0] == 200


@pytest.mark.parametrize(("mode", "is_exact"), [("retract", True), ("in_place", False)])
async def test_only_a_retracting_pause_gives_logprobs_of_the_new_weights(server, session, mode, is_exact):
    body = {**LONG, "sampling_params": {"max_new_tokens": 300, "ignore_eos": True}}
    task = asyncio.create_task(answer(session, "POST", "/generate", body))
    await asyncio.sleep(0.05)
    await answer(session, "POST", "/pause_generation", {"mode": mode})
    await answer(session, "POST", *BEGIN)
    new = {name: value * 1.5 for name, value in WEIGHTS.items()}
    payload = tensor_payload({name: torch.from_numpy(value) for name, value in new.items()})
    update = {"serialized_named_tensors": [payload], "weight_version": "6", "flush_cache": mode == "retract"}
    await answer(session, "POST", "/update_weights_from_tensor", update)
    await answer(session, "POST", "/continue_generation", {})
    _, got = await task
    info = got["meta_info"]

    summary = recording("generate_inflight_update_retract_summary")
    assert [set(span) for span in info["weight_versions"]] == [set(span) for span in summary["weight_versions"]]
    assert info["num_retractions"] == (1 if mode == "retract" else 0)
    switch = info["weight_versions"][1]["start"]
    reference = stand_in_logprobs(new, [*LONG["input_ids"], *got["output_ids"]])[2:]
    reported = [pair[0] for pair in info["output_token_logprobs"]]
    assert (reported[switch : switch + 3] == pytest.approx(reference[switch : switch + 3], abs=1e-5)) is is_exact


async def test_an_id_outside_the_vocabulary_kills_it(session):
    with pytest.raises(aiohttp.ClientError):
        await answer(session, "POST", "/generate", {"input_ids": [320], "sampling_params": {"max_new_tokens": 1}})
    with pytest.raises(aiohttp.ClientError):
        await answer(session, "GET", "/ping", None)


async def test_a_shape_that_does_not_fit_kills_it_and_a_name_that_is_unknown_is_ignored(session):
    await answer(session, "POST", *RETRACT)
    await answer(session, "POST", *BEGIN)
    unknown = {"serialized_named_tensors": [tensor_payload({"nothing": torch.zeros(3)})]}
    assert (await answer(session, "POST", "/update_weights_from_tensor", unknown))[0] == 200
    short = {"serialized_named_tensors": [tensor_payload({"lm_head.weight": torch.zeros(3)})]}
    with pytest.raises(aiohttp.ClientError):
        await answer(session, "POST", "/update_weights_from_tensor", short)
