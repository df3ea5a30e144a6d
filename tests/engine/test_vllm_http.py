"""The client of vLLM servers against a stand-in over real HTTP, and the command that starts a server."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
import torch

from agentenv.engine.protocol import Engine, LoraAdapter, SamplingParams, WeightManifest, check_completion
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.vllm_http import VLLMServer, vllm_command
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError, UsageError
from agentenv.messages import Image
from tests.engine.vllm_stand_in import OLD, stand_in

CONFIG = ServerConfig(name="vllm")
WEIGHTS = {"w": torch.ones(3)}


@pytest.fixture
async def server():
    async with stand_in() as server:
        yield server


@pytest.fixture
async def engine(server):
    engine = await VLLMServer.connect(server.url, config=CONFIG)
    server.calls.clear()
    server.bodies.clear()
    yield engine
    await engine.close()


async def ask(engine, prompt=(1, 2, 3), *, deadline_s=5.0, images=(), **sampling):
    params = SamplingParams(**{"max_tokens": 4, **sampling})
    return await engine.generate(prompt, params, session_id="s", deadline_s=deadline_s, images=images)


async def test_a_completion_carries_ids_logprobs_versions_and_cached_tokens(engine, server):
    completion = await ask(engine, stop_ids=(5,), seed=2**63 + 4)

    check_completion(completion, vocab_size=50)
    assert list(completion.token_ids) == [1, 8, 15, 22]
    assert list(completion.logprobs) == [-0.5] * 4
    assert [(span.version, span.start, span.end) for span in completion.weight_versions] == [(0, 0, 4)]
    assert completion.num_cached_tokens == 2
    assert server.bodies[0]["token_ids"] == [1, 2, 3]
    sent = server.bodies[0]["sampling_params"]
    assert (sent["stop_token_ids"], sent["ignore_eos"], sent["seed"], sent["logprobs"]) == ([5], True, 4, 0)
    assert isinstance(engine, Engine)


async def test_weights_that_nobody_named_become_version_0_on_the_server(server):
    await (await VLLMServer.connect(server.url, config=CONFIG)).close()

    assert server.weights == "0"


async def test_the_version_of_a_server_is_taken_over(server):
    server.weights = "12"
    engine = await VLLMServer.connect(server.url, config=CONFIG)

    assert (await engine.health()).version == 12
    assert [span.version for span in (await ask(engine)).weight_versions] == [12]
    await engine.close()


@pytest.mark.parametrize(
    ("path", "status", "text", "message"),
    [
        ("/version", 200, "<html>hello</html>", "not JSON"),
        ("/version", 200, '{"half": ', "not JSON"),
        ("/version", 500, "oops", "answered 500: oops"),
        ("/version", 200, "{}", "another program"),
        ("/health", 503, "", "answered 503"),
        ("/v1/models", 200, '{"data": []}', "names no model"),
        ("/weight_info", 500, "x", "answered 500"),
        ("/weight_info", 200, '{"weight_version": "theirs"}', "no version number of ours"),
        ("/inference/v1/generate", 500, "x", "answered 500"),
        ("/inference/v1/generate", 200, '{"choices": [{"token_ids": [1]}]}', "0 log-probs"),
    ],
)
async def test_what_is_no_vllm_is_told_at_once(server, path, status, text, message):
    server.replies[path] = (status, text)

    with pytest.raises(EngineError, match=message):
        await VLLMServer.connect(server.url, config=CONFIG)


async def test_nothing_at_the_address_is_an_engine_error(server):
    with pytest.raises(EngineError, match="is the server running"):
        await VLLMServer.connect("http://127.0.0.1:9", config=CONFIG)


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0", "nightly"])
async def test_another_version_of_vllm_is_refused(server, version):
    server.version = version

    with pytest.raises(UsageError, match=r">=0.32,<0.33"):
        await VLLMServer.connect(server.url, config=CONFIG)


async def test_a_paused_server_is_told_at_once(server):
    server.is_paused = True

    with pytest.raises(EngineError, match="paused"):
        await VLLMServer.connect(server.url, config=CONFIG)


async def test_a_plain_server_evaluates_and_names_what_updating_needs(server):
    server.has_dev_mode = server.takes_tokens = False
    engine = await VLLMServer.connect(server.url, config=CONFIG)

    completion = await ask(engine)

    assert list(completion.token_ids) == [1, 8, 15, 22]
    assert [(span.version, span.end) for span in completion.weight_versions] == [(0, 4)]
    for call in (engine.pause(), engine.forget_prefixes(), engine.update_weights(WeightManifest(version=1))):
        with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE=1"):
            await call
    with pytest.raises(EngineError, match="--enable-scale-out"):
        await ask(engine, images=[Image(data=b"")])
    await engine.close()


async def test_updates_need_versions_per_token(server):
    server.takes_tokens = False
    engine = await VLLMServer.connect(server.url, config=CONFIG)

    with pytest.raises(EngineError, match="--enable-scale-out"):
        await engine.update_weights(WeightManifest(version=1, tensors=WEIGHTS))
    await engine.close()


@pytest.mark.parametrize(
    ("scale", "sampling", "is_allowed"),
    [
        ("raw", {"temperature": 1.0, "top_p": 0.5}, True),
        ("raw", {"temperature": 0.0}, True),
        ("raw", {"temperature": 0.7}, False),
        ("masked", {"temperature": 0.7}, True),
        ("masked", {"temperature": 0.0, "top_k": 3}, True),
        ("masked", {"temperature": 1.0, "top_k": 3}, False),
        ("masked", {"temperature": 1.0, "top_p": 0.9}, False),
        ("unmasked", {"temperature": 0.7, "top_k": 3, "top_p": 0.9}, True),
        ("unmasked", {"temperature": 2.5}, False),
        ("unmasked", {"temperature": 0.001}, False),
    ],
)
async def test_sampling_whose_logprobs_would_be_wrong_is_refused(server, scale, sampling, is_allowed):
    server.scale = scale
    engine = await VLLMServer.connect(server.url, config=CONFIG)

    if is_allowed:
        assert (await ask(engine, **sampling)).finish_reason == "length"
    else:
        with pytest.raises(EngineError, match="temperature"):
            await ask(engine, **sampling)
    await engine.close()


@pytest.mark.parametrize("prompt", [[], [-1], [2**31], [1.5], [1] * 200])
async def test_bad_prompts_never_leave(engine, server, prompt):
    with pytest.raises(EngineError, match="prompt"):
        await ask(engine, prompt)

    assert server.bodies == []


@pytest.mark.fault("engine answers nonsense: vLLM", then="the answer is refused", metric="agentenv_engine_errors_total")
@pytest.mark.parametrize(
    "choices",
    [
        [],
        [{"finish_reason": "stop", "token_ids": [1, 2], "logprobs": {"content": [{"token_id": 1, "logprob": -1}]}}],
        [{"finish_reason": "stop", "token_ids": [1], "logprobs": {"content": [{"token_id": 2, "logprob": -1}]}}],
        [{"finish_reason": "error", "token_ids": []}],
        [{"finish_reason": "stop", "token_ids": "abc"}],
    ],
)
async def test_answers_that_cannot_be_trained_on_are_refused(engine, server, choices):
    server.replies["/inference/v1/generate"] = (200, json.dumps({"choices": choices}))

    with pytest.raises(EngineError):
        await ask(engine)


async def test_a_deadline_and_a_cancellation_close_the_connection(engine, server):
    server.hold.clear()
    with pytest.raises(DeadlineExceeded):
        await ask(engine, deadline_s=0.1)
    task = asyncio.create_task(ask(engine))
    await asyncio.sleep(0.1)
    assert (await engine.health()).num_running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.1)

    assert server.num_cut == 2
    assert (await engine.health()).num_running == 0


async def test_closing_fails_what_waits_and_what_comes(engine, server):
    server.hold.clear()
    waiting = asyncio.create_task(ask(engine))
    await asyncio.sleep(0.1)
    await engine.close()

    with pytest.raises(EngineClosed):
        await waiting
    with pytest.raises(EngineClosed):
        await ask(engine)
    with pytest.raises(EngineClosed):
        await engine.update_weights(WeightManifest(version=1, tensors=WEIGHTS))
    assert not (await engine.health()).is_ready


async def test_a_server_that_is_gone_is_not_ready(engine, server):
    server.replies["/health"] = (503, "")

    assert not (await engine.health()).is_ready


async def test_health_tells_the_servers_own_queue_and_cache_use(engine, server):
    server.replies["/metrics"] = (200, "vllm:num_requests_waiting 7.0\nvllm:kv_cache_usage_perc 0.625\n")

    health = await engine.health()

    assert (health.is_ready, health.num_waiting, health.cache_use) == (True, 7, 0.625)
    server.replies["/metrics"] = (404, "")  # switched off
    health = await engine.health()
    assert (health.is_ready, health.num_waiting, health.cache_use) == (True, 0, 0.0)


async def test_an_update_pauses_transfers_drops_caches_and_resumes(engine, server):
    ack = await engine.update_weights(WeightManifest(version=3, tensors=WEIGHTS))

    assert server.calls == [
        "/pause?mode=keep&clear_cache=false",
        "/init_weight_transfer_engine",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache?reset_running_requests=true",
        "/resume",
    ]
    assert (ack.version, ack.dtype, server.weights) == (3, "bfloat16", "3")
    assert [span.version for span in (await ask(engine)).weight_versions] == [3]


async def test_inside_a_pause_an_update_neither_pauses_nor_resumes(engine, server):
    await engine.pause("abort")
    await engine.update_weights(WeightManifest(version=1, tensors=WEIGHTS))
    await engine.update_weights(WeightManifest(version=2, tensors=WEIGHTS))

    assert server.calls[0] == "/pause?mode=abort&clear_cache=false"
    assert [call for call in server.calls if "pause" in call or "resume" in call] == server.calls[:1]
    assert server.calls.count("/init_weight_transfer_engine") == 1


async def test_versions_must_grow(engine, server):
    await engine.update_weights(WeightManifest(version=3, tensors=WEIGHTS))
    server.calls.clear()

    with pytest.raises(EngineError, match=r"version 3 .* versions must grow"):
        await engine.update_weights(WeightManifest(version=3, tensors=WEIGHTS))
    assert server.calls == []


async def test_somebody_else_who_updates_the_server_is_noticed(engine, server):
    server.weights = "8"

    with pytest.raises(EngineError, match=r"weights '8'.* version 0: somebody else"):
        await engine.update_weights(WeightManifest(version=9, tensors=WEIGHTS))
    assert server.calls == []


async def test_weights_that_the_worker_refused_leave_the_old_ones_serving(engine, server):
    server.replies["/update_weights"] = (500, json.dumps({"error": {"message": "x" * 400 + OLD}}))

    with pytest.raises(EngineError, match="old weights serve on"):
        await engine.update_weights(WeightManifest(version=1, tensors=WEIGHTS))

    assert server.calls[-1] == "/resume"
    assert (await ask(engine)).finish_reason == "length"


async def test_weights_that_may_be_torn_stop_the_engine_until_an_update_succeeds(engine, server):
    server.replies["/update_weights"] = (500, "worker crashed")
    with pytest.raises(EngineError, match="serves nothing until an update succeeds"):
        await engine.update_weights(WeightManifest(version=1, tensors=WEIGHTS))

    assert "/resume" not in server.calls
    assert "/abort_requests" in server.calls
    assert not (await engine.health()).is_ready
    with pytest.raises(EngineError, match="worker crashed"):
        await ask(engine)

    del server.replies["/update_weights"]
    await engine.update_weights(WeightManifest(version=2, tensors=WEIGHTS))
    assert server.calls[-1] == "/resume"
    assert (await ask(engine)).finish_reason == "length"


async def test_nothing_of_an_update_is_left_in_shared_memory(engine, server):
    before = {name for name in os.listdir("/dev/shm") if name.startswith("agentenv-weights-")}
    await engine.update_weights(WeightManifest(version=1, tensors=WEIGHTS))
    server.replies["/update_weights"] = (500, "x")
    with pytest.raises(EngineError):
        await engine.update_weights(WeightManifest(version=2, tensors=WEIGHTS))

    assert {name for name in os.listdir("/dev/shm") if name.startswith("agentenv-weights-")} <= before


async def test_requests_take_the_newest_adapter_and_old_ones_are_removed(engine, server):
    shape = LoraAdapter(rank=1, alpha=1.0, target_modules=("q_proj",))
    for version in (1, 2):
        await engine.update_weights(WeightManifest(version=version, tensors=WEIGHTS, adapter=shape))
    completion = await ask(engine)

    assert server.bodies[-1]["model"] == "agentenv-2"
    assert [span.version for span in completion.weight_versions] == [2]
    assert server.calls.count("/v1/unload_lora_adapter") == 1
    await engine.update_weights(WeightManifest(version=3, tensors=WEIGHTS))
    await ask(engine)
    assert server.bodies[-1]["model"] == "served"
    assert server.calls.count("/v1/unload_lora_adapter") == 2


async def test_adapters_need_the_route(engine, server):
    server.replies["/v1/load_lora_adapter"] = (404, '{"detail":"Not Found"}')

    with pytest.raises(EngineError, match="enable_lora"):
        await engine.update_weights(
            WeightManifest(
                version=1, tensors=WEIGHTS, adapter=LoraAdapter(rank=1, alpha=1.0, target_modules=("q_proj",))
            )
        )


async def test_gpu_transfers_say_that_they_need_a_gpu(server):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for way in ("nccl", "ipc"):
        engine = await VLLMServer.connect(server.url, config=ServerConfig(name="vllm", weight_sync=way))
        with pytest.raises(UsageError, match="between GPUs"):
            await engine.update_weights(WeightManifest(version=1, tensors=WEIGHTS))
        assert (await ask(engine)).finish_reason == "length"
        await engine.close()


def picture_server(server, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"image_token_id": 9, "vocab_size": 60}))
    card = {"id": "served", "root": str(tmp_path), "max_model_len": 200}
    server.replies["/v1/models"] = (200, json.dumps({"data": [card]}))


async def test_a_run_of_placeholders_is_sent_as_one_and_must_come_back_as_it_was(server, tmp_path):
    picture_server(server, tmp_path)
    engine = await VLLMServer.connect(server.url, config=CONFIG)
    image = Image(data=b"png", media_type="image/png")

    await ask(engine, [1, 9, 9, 9, 2, 9, 9, 9], images=[image, image])
    with pytest.raises(EngineError, match="7 tokens here and 8 in vLLM"):
        await ask(engine, [1, 9, 9, 2, 9, 9, 9], images=[image, image])
    with pytest.raises(EngineError, match="2 runs of the placeholder 9, but 1 pictures"):
        await ask(engine, [1, 9, 9, 9, 2, 9], images=[image])

    assert server.bodies[2]["token_ids"] == [1, 9, 2, 9]
    assert server.bodies[2]["content_parts"] == [{"type": "image_url", "url": "data:image/png;base64,cG5n"}] * 2
    await engine.close()


async def test_ids_are_checked_against_the_models_own_vocabulary(server, tmp_path):
    picture_server(server, tmp_path)
    engine = await VLLMServer.connect(server.url, config=CONFIG)

    with pytest.raises(EngineError, match=r"\[0, 60\)"):
        await ask(engine, [60])
    await engine.close()


def test_the_command_bounds_memory_and_binds_this_host(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTENV_API_KEY", "hidden")
    settings = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps({**settings, "dtype": "float32"}))
    config = ServerConfig(
        name="vllm",
        max_length=500,
        max_slots=7,
        cache_tokens=1000,
        device="cpu",
        options={"enforce_eager": False, "max_num_seqs": 9, "enable_lora": True, "disable_log_stats": None},
    )

    command = vllm_command(config, model=str(tmp_path), port=8123, python="/opt/python")

    argv = list(command.argv)
    assert argv[:3] == ["/opt/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert argv[argv.index("--host") + 1] == "127.0.0.1"
    assert argv[argv.index("--port") + 1] == "8123"
    # 32 blocks of 32 tokens hold 1000, one more is vLLM's own; 2 * 4 layers * 2 heads * 16 wide * 4 bytes a token
    assert argv[argv.index("--kv-cache-memory-bytes") + 1] == str(33 * 32 * 1024)
    assert argv[argv.index("--dtype") + 1] == "float32"
    assert argv[argv.index("--max-num-seqs") + 1] == "9"
    assert argv[argv.index("--seed") + 1] == "0"
    assert json.loads(argv[argv.index("--weight-transfer-config") + 1]) == {"backend": "agentenv_shm"}
    assert {"--no-enforce-eager", "--enable-lora", "--enable-prefix-caching", "--enable-scale-out"} <= set(argv)
    assert "--disable-log-stats" not in argv
    assert "hidden" not in " ".join(argv)
    assert command.env["VLLM_API_KEY"] == "hidden"
    assert command.env["VLLM_SERVER_DEV_MODE"] == command.env["VLLM_NO_USAGE_STATS"] == "1"
    assert command.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == command.env["HF_HUB_OFFLINE"] == "1"
    assert command.alive_path == "/health"


def test_the_command_refuses_transfers_that_vllm_does_not_have():
    with pytest.raises(UsageError, match="weight_sync is 'gloo'"):
        vllm_command(ServerConfig(name="vllm", weight_sync="gloo"), model="owner/name", port=1, python="python")


async def test_a_missing_vllm_is_named_with_the_command_that_installs_it(tmp_path):
    from agentenv.engine.vllm import VLLMEngine

    try:
        import vllm  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(UsageError, match="agentenv engines install vllm"):
            await VLLMEngine.open(tmp_path, config=CONFIG)
    else:
        pytest.skip("vLLM is installed here")
