"""A real vLLM server over HTTP, against transformers. Runs in vLLM's own environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio
import torch
from transformers import PreTrainedModel

from agentenv.engine.protocol import WeightManifest
from agentenv.engine.server_config import ServerCommand
from agentenv.engine.vllm_http import VLLMServer, vllm_command
from agentenv.engine.weights import named_weights
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError
from agentenv.trainers.sync.publish import publish
from tests.real.real_models import TOLERANCE, ask, changed, distance, prompt_of, saved_model, server_config, some_steps
from tests.real.test_vllm_engine import adapter_of, leftovers

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

PROMPT = prompt_of(55)
EXACT = TOLERANCE[torch.float32]
CONFIG = server_config(options={"enable_lora": True, "max_lora_rank": 8, "max_loras": 2})


class Running:
    """A server process and where it listens."""

    def __init__(self, command: ServerCommand, url: str, log: Path) -> None:
        self.url = url
        self._log = log
        self.process = subprocess.Popen(
            command.argv,
            env={**os.environ, **command.env},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, alive_path: str) -> None:
        """Wait until it serves."""
        for _ in range(400):
            if self.process.poll() is not None:
                pytest.fail(f"the server ended: {self._log.read_text()[-3000:]}")
            try:
                if httpx.get(self.url + alive_path, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(1)
        pytest.fail("the server did not come up")

    def kill(self) -> None:
        """End it and all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


def start(
    folder: Path, *, log: Path, without: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> Running:
    """Start our command on a free port, some of its flags left out."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = vllm_command(CONFIG, model=str(folder), port=port, python=sys.executable)
    argv = list(command.argv)
    for flag in without:
        place = argv.index(flag)
        del argv[place : place + (1 if argv[place + 1].startswith("--") else 2)]
    changed_command = ServerCommand(argv=tuple(argv), env={**command.env, **(environment or {})})
    return Running(changed_command, f"http://127.0.0.1:{port}", log)


class Served:
    """A client, the model whose weights its server has, and the version."""

    def __init__(self, engine: VLLMServer, model: PreTrainedModel, running: Running) -> None:
        self.engine = engine
        self.model = model
        self.running = running
        self.version = 0

    async def update(self, model: PreTrainedModel) -> None:
        await publish(self.engine, named_weights(model), version=self.version + 1)
        self.version += 1
        self.model = model


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, PreTrainedModel]]:
    """One server with everything for the whole file."""
    folder = tmp_path_factory.mktemp("model")
    model = saved_model(folder)
    server = start(folder, log=folder / "server.log")
    try:
        server.wait("/health")
        yield server, model
    finally:
        server.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(running: tuple[Running, PreTrainedModel]) -> AsyncIterator[Served]:
    server, model = running
    engine = await VLLMServer.connect(server.url, config=CONFIG)
    served = Served(engine, model, server)
    yield served
    await served.engine.close()  # a test may have connected anew


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.6, 1.0, 0), (0.0, 1.0, 0), (0.7, 0.8, 0), (1.3, 1.0, 5)],
)
async def test_logprobs_are_after_the_temperature_and_before_the_masks(served, temperature, top_p, top_k):
    completion = await ask(served.engine, PROMPT, temperature=temperature, top_p=top_p, top_k=top_k)

    assert len(completion.token_ids) == 30
    assert distance(served.model, PROMPT, completion, temperature=temperature or 1.0) < EXACT


async def test_stop_ids_length_seed_and_cached_tokens_cross_the_wire(served):
    prompt = prompt_of(300, seed=5)
    free = await ask(served.engine, prompt)
    stop = free.token_ids[9]
    stopped = await ask(served.engine, prompt, stop_ids=(stop,))
    first = list(free.token_ids).index(stop)

    assert (free.finish_reason, stopped.finish_reason) == ("length", "stop")
    assert list(stopped.token_ids) == list(free.token_ids)[: first + 1]
    assert stopped.num_cached_tokens >= 288
    await served.engine.forget_prefixes()
    assert (await ask(served.engine, prompt)).num_cached_tokens == 0


async def test_bad_prompts_are_refused_and_the_server_lives(served):
    for prompt in ([], [10**6], [-1], prompt_of(2000)):
        with pytest.raises(EngineError):
            await ask(served.engine, prompt)

    assert (await served.engine.health()).is_ready


async def test_sixty_four_at_once_are_all_exact(served):
    prompts = [prompt_of(20 + index, seed=index) for index in range(64)]

    completions = await asyncio.gather(
        *(ask(served.engine, prompt, seed=index, max_tokens=20) for index, prompt in enumerate(prompts))
    )

    assert max(distance(served.model, p, c) for p, c in zip(prompts, completions, strict=True)) < EXACT


async def _num_running(url: str) -> float:
    async with httpx.AsyncClient() as client:
        text = (await client.get(url + "/metrics")).text
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(names))


async def test_deadlines_and_cancelling_abort_the_request_in_the_server(served):
    with pytest.raises(DeadlineExceeded):
        await ask(served.engine, PROMPT, max_tokens=900, deadline_s=0.3)
    task = asyncio.create_task(ask(served.engine, PROMPT, max_tokens=900))
    await some_steps(served.engine)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await served.engine.pause("keep")  # what still ran would be frozen here, and counted
    await asyncio.sleep(0.5)
    count = await _num_running(served.running.url)
    await served.engine.resume()
    assert count == 0


async def test_pause_abort_ends_a_request_with_what_it_has(served):
    task = asyncio.create_task(ask(served.engine, PROMPT, max_tokens=900))
    await some_steps(served.engine)

    await served.engine.pause("abort")
    completion = await task
    await served.engine.resume()

    assert completion.finish_reason == "abort"
    assert 0 < len(completion.token_ids) < 900
    assert distance(served.model, PROMPT, completion) < EXACT


async def test_an_update_in_flight_splits_every_request_at_the_switch(served):
    old = served.model
    new = changed(old, seed=served.version + 10)
    prompts = [prompt_of(40, seed=index) for index in range(4)]
    tasks = [asyncio.create_task(ask(served.engine, prompt, max_tokens=500)) for prompt in prompts]
    await some_steps(served.engine)

    await served.update(new)
    completions = await asyncio.gather(*tasks)

    for prompt, completion in zip(prompts, completions, strict=True):
        before, after = completion.weight_versions
        assert (before.version, after.version) == (served.version - 1, served.version)
        assert 0 < before.end == after.start < after.end == 500
        assert distance(old, prompt, completion, end=before.end) < EXACT
        assert distance(new, prompt, completion, start=after.start) < EXACT
        assert distance(old, prompt, completion, start=after.start) > 0.1
    assert not leftovers()


async def test_weights_that_do_not_fit_leave_the_old_ones_serving(served):
    tensors = {n: t for n, t in named_weights(changed(served.model, seed=77)).items() if n != "model.norm.weight"}

    with pytest.raises(EngineError, match="The old weights serve on"):
        await served.engine.update_weights(WeightManifest(version=served.version + 1, tensors=tensors))

    assert (await served.engine.health()).is_ready
    assert distance(served.model, PROMPT, await ask(served.engine, PROMPT)) < EXACT
    assert not leftovers()


async def test_adapters_serve_by_version_over_http(served):
    merged, tensors, shape = adapter_of(served.model, seed=1)
    served.version += 1
    await served.engine.update_weights(WeightManifest(version=served.version, tensors=tensors, adapter=shape))

    completion = await ask(served.engine, PROMPT)

    assert distance(merged, PROMPT, completion) < EXACT
    assert [span.version for span in completion.weight_versions] == [served.version]
    await served.update(changed(served.model, seed=9))
    assert distance(served.model, PROMPT, await ask(served.engine, PROMPT)) < EXACT
    assert not leftovers()


async def test_a_second_trainer_is_told_apart(served):
    other = await VLLMServer.connect(served.running.url, config=CONFIG)
    try:
        await publish(other, named_weights(served.model), version=served.version + 5)
        with pytest.raises(EngineError, match="somebody else updates it too"):
            await served.engine.update_weights(
                WeightManifest(version=served.version + 9, tensors=named_weights(served.model))
            )
    finally:
        await other.close()
    served.version += 5
    await served.engine.close()
    served.engine = await VLLMServer.connect(served.running.url, config=CONFIG)
    assert (await served.engine.health()).version == served.version


async def test_closing_fails_what_waits(served):
    other = await VLLMServer.connect(served.running.url, config=CONFIG)
    waiting = asyncio.create_task(ask(other, PROMPT, max_tokens=900))
    await some_steps(other)
    await other.close()

    with pytest.raises(EngineClosed):
        await waiting
    with pytest.raises(EngineClosed):
        await ask(other, PROMPT)


async def test_a_server_without_our_flags_evaluates_and_says_what_updating_needs(tmp_path):
    model = saved_model(tmp_path)
    server = start(
        tmp_path,
        log=tmp_path / "server.log",
        without=("--enable-scale-out", "--logprobs-mode", "--worker-cls", "--weight-transfer-config"),
        environment={"VLLM_SERVER_DEV_MODE": "0"},
    )
    try:
        server.wait("/health")
        engine = await VLLMServer.connect(server.url, config=CONFIG)
        completion = await ask(engine, PROMPT)
        greedy = await ask(engine, PROMPT, temperature=0.0)
        with pytest.raises(EngineError, match="before the temperature"):
            await ask(engine, PROMPT, temperature=0.6)
        with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE=1"):
            await engine.update_weights(WeightManifest(version=1, tensors=named_weights(model)))
        with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE=1"):
            await engine.pause("keep")
        await engine.close()
    finally:
        server.kill()
    assert distance(model, PROMPT, completion) < EXACT
    assert distance(model, PROMPT, greedy) < EXACT
    assert [span.version for span in completion.weight_versions] == [0]


async def test_a_killed_engine_process_fails_every_waiting_request_within_seconds(served):
    tasks = [asyncio.create_task(ask(served.engine, PROMPT, max_tokens=900)) for _ in range(3)]
    await some_steps(served.engine)
    children = psutil.Process(served.running.process.pid).children(recursive=True)
    next(child for child in children if "EngineCore" in child.name()).kill()
    started = time.perf_counter()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert time.perf_counter() - started < 30
    assert all(isinstance(result, EngineError) for result in results)
    assert not (await served.engine.health()).is_ready
