"""Real servers that we start: they serve, take weights, are replaced when they are killed, and end with the engine."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from agentenv.byte_tokenizer import byte_backend
from agentenv.engine.open import open_engine
from agentenv.engine.pool import Pool
from agentenv.engine.protocol import Completion, Engine, SamplingParams, WeightManifest, check_completion
from agentenv.engine.server_config import ServerConfig
from agentenv.engine.warden import descendants
from agentenv.engine.weights import named_weights
from agentenv.trainers.tiny import make_tiny_model
from tests.engine.processes import command_line, is_alive

ENGINES = [pytest.param("vllm", marks=pytest.mark.vllm), pytest.param("sglang", marks=pytest.mark.sglang)]
PROMPT = list(b"What is 17 times 3? Answer with a number.")


@pytest.fixture
def model(tmp_path: Path) -> tuple[str, Any]:
    folder = tmp_path / "model"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_backend(), eos_token="<|im_end|>")
    sizes: dict[str, Any] = {"hidden_size": 128, "num_layers": 2, "max_length": 512}
    policy: Any = make_tiny_model(len(tokenizer), seed=0, **sizes)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), policy


async def greedy(engine: Engine, session: str, *, length: int = 24) -> Completion:
    sampling = SamplingParams(max_tokens=length, temperature=0.0, stop_ids=())
    completion = await engine.generate(PROMPT, sampling, session_id=session, deadline_s=300)
    check_completion(completion)
    return completion


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ENGINES)
async def test_a_killed_server_is_replaced_and_serves_the_published_weights(name, model):
    folder, policy = model
    config = ServerConfig(
        name=name,
        replicas=2,
        max_length=256,
        max_slots=16,
        cache_tokens=8192,
        dtype="float32",
        device="cpu",
    )
    engine = await open_engine(config, model=folder, version=5)
    try:
        assert isinstance(engine, Pool)
        replicas = engine._replicas
        processes = [replica.engine.engine.process for replica in replicas]  # type: ignore[attr-defined]
        before = await greedy(engine, "a")
        assert [span.version for span in before.weight_versions] == [5]

        weights = {key: value.detach().clone().mul_(1.5) for key, value in named_weights(policy).items()}
        await engine.pause("keep")
        await engine.update_weights(WeightManifest(version=6, tensors=weights))
        await engine.resume()
        for value in weights.values():
            value.zero_()  # the optimizer goes on
        served = await greedy(engine, "b")
        assert list(served.token_ids) != list(before.token_ids)

        running = [asyncio.create_task(greedy(engine, f"s{i}", length=150)) for i in range(8)]
        await asyncio.sleep(0.3)
        warden = processes[0]._warden.pid
        below = descendants(warden)
        victim = next(pid for pid in below if "warden.py" not in command_line(pid))
        os.kill(victim, signal.SIGKILL)
        completions = await asyncio.gather(*running)

        assert len({tuple(completion.token_ids) for completion in completions}) == 1
        async with asyncio.timeout(600):
            while not all(stats.state == "live" for stats in engine.stats()):  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(0.5)
        async with asyncio.timeout(30):  # the warden lets them end by themselves first
            while any(is_alive(pid) for pid in below):  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(0.1)
        # each replica by itself: the one that survived, and the one that began anew and was given the weights
        for replica in replicas:
            again = await greedy(replica.engine, "c")
            assert list(again.token_ids) == list(served.token_ids)
            assert torch.allclose(torch.tensor(again.logprobs), torch.tensor(served.logprobs), atol=1e-4)
            assert [span.version for span in again.weight_versions] == [6]
        below = [pid for replica in replicas for pid in descendants(replica.engine.engine.process._warden.pid)]  # type: ignore[attr-defined]
        assert below
    finally:
        await engine.close()
    assert not any(is_alive(pid) for pid in below)
