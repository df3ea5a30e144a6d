"""SGLang's in-process engine: the same tests as against its server, and what it must not do to this process."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from agentenv.engine.server_config import ServerConfig
from agentenv.engine.sglang import SGLangEngine
from agentenv.engine.sglang_protocol import SGLangTransport
from agentenv.engine.sglang_verbs import SGLangVerbs
from agentenv.engine.weights import named_weights
from tests.engine.sglang_behaviours import *  # noqa: F403
from tests.engine.sglang_behaviours import Subject, ask
from tests.engine.small_models import qwen3
from tests.real.test_sglang_server import CONFIG, reference_of

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(600)]


class Lent:
    """A transport that is not closed with the engines that use it."""

    def __init__(self, transport: SGLangTransport) -> None:
        self.generate = transport.generate
        self.abort = transport.abort
        self.control = transport.control
        self.flush_cache = transport.flush_cache
        self.weight_version = transport.weight_version
        self.load = transport.load

    async def close(self) -> None:
        pass


async def opened(folder: Any) -> tuple[SGLangEngine, Any, list[Any]]:
    """Return an engine, its model, and the processes that it started."""
    model = qwen3()
    model.save_pretrained(folder)
    before = set(multiprocessing.active_children())
    engine = await SGLangEngine.open(folder, config=CONFIG)
    return engine, model, [child for child in multiprocessing.active_children() if child not in before]


def subject_of(engine: SGLangEngine, model: Any, processes: list[Any]) -> Subject:
    async def connect(config: ServerConfig) -> SGLangVerbs:
        facts = dataclasses.replace(
            engine.facts,
            weight_version=await engine.transport.weight_version(),
            max_length=config.max_length,
            max_prompt_tokens=config.max_length - 1,
        )
        return SGLangVerbs(Lent(engine.transport), facts=facts, config=config, host="127.0.0.1", is_own=True)

    return Subject(
        connect=connect,
        weights=named_weights(model),
        reference=reference_of(model),
        kill=processes[0].kill,
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Iterator[tuple[SGLangEngine, Any, list[Any]]]:
    opening = opened(tmp_path_factory.mktemp("model"))
    engine = asyncio.run(opening)
    yield engine
    asyncio.run(engine[0].close())


@pytest.fixture
async def subject(engine):
    subject = subject_of(*engine)
    yield subject
    await subject.close()


@pytest.fixture
async def own_subject(tmp_path):
    engine, model, processes = await opened(tmp_path)
    subject = subject_of(engine, model, processes)
    yield subject
    await subject.close()
    await engine.close()


async def test_closing_ends_its_own_processes_and_no_others(tmp_path):
    handler = signal.getsignal(signal.SIGQUIT)
    start_method = multiprocessing.get_start_method(allow_none=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as bystander:  # noqa: ASYNC220
        engine, _, processes = await opened(tmp_path)
        assert len((await ask(engine)).token_ids) == 12
        os.kill(os.getpid(), signal.SIGQUIT)  # as a child does that fails; the process lives on
        await engine.close()
        await engine.close()
        assert processes
        assert not any(process.is_alive() for process in processes)
        assert bystander.poll() is None
        bystander.kill()
    assert signal.getsignal(signal.SIGQUIT) == handler
    assert multiprocessing.get_start_method(allow_none=True) == start_method
