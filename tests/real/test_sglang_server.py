"""The SGLang adapter against the real server: the same tests as against the stand-in, and a few that need a model."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentenv.engine.server_config import ServerConfig
from agentenv.engine.sglang_command import sglang_command
from agentenv.engine.sglang_http import SGLangServer
from agentenv.engine.weights import named_weights
from tests.engine.sglang_behaviours import *  # noqa: F403
from tests.engine.sglang_behaviours import PROMPT, Subject, Weights, ask
from tests.engine.small_models import qwen3, reference_logprobs

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(600)]

START_TIMEOUT_S = 300.0
CONFIG = ServerConfig(name="sglang", max_length=250, cache_tokens=16384, max_slots=64, device="cpu")


class RealServer:
    """A server process, in a group of its own."""

    def __init__(self, model: Path, *, config: ServerConfig = CONFIG) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = sglang_command(config, model=model, port=port, python=sys.executable)
        self.url = f"http://127.0.0.1:{port}"
        self.log = model / "server.log"
        self._process = subprocess.Popen(
            command.argv,
            env={**os.environ, **command.env},
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait(command.alive_path)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the server and the processes that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait(self, alive_path: str) -> None:
        ends = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends:
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(self.url + alive_path, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])


def started(folder: Path, *, is_tied: bool) -> tuple[RealServer, Any]:
    model = qwen3(tied=is_tied)
    model.save_pretrained(folder)
    for attempt in range(3):
        try:
            return RealServer(folder), model
        except AssertionError as error:  # it binds seconds after we looked for a free port
            if attempt == 2 or "address already in use" not in str(error):
                raise
    raise AssertionError("the loop above returns or raises")


def reference_of(model: Any) -> Callable[[Weights, Sequence[int], float], list[float]]:
    """Return what `Subject.reference` is to be: the log-probs of transformers."""
    scratch = copy.deepcopy(model)

    def reference(weights: Weights, ids: Sequence[int], temperature: float) -> list[float]:
        scratch.load_state_dict(weights, strict=False)
        return reference_logprobs(scratch, ids, temperature=temperature).tolist()

    return reference


def subject_of(server: RealServer, model: Any) -> Subject:
    return Subject(
        connect=lambda config: SGLangServer.connect(server.url, config=config),
        weights=named_weights(model),
        reference=reference_of(model),
        kill=server.kill,
    )


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def server(request, tmp_path_factory) -> Iterator[tuple[RealServer, Any]]:
    server, model = started(tmp_path_factory.mktemp("model"), is_tied=request.param)
    yield server, model
    server.kill()


@pytest.fixture
async def subject(server):
    subject = subject_of(*server)
    yield subject
    await subject.close()


@pytest.fixture
async def own_subject(tmp_path):
    server, model = started(tmp_path, is_tied=True)
    subject = subject_of(server, model)
    yield subject
    await subject.close()
    server.kill()


async def test_ten_turns_of_an_episode_find_nine_tenths_of_their_prompts_in_the_cache(subject):
    engine = await subject.engine()
    prompt, num_prompt, num_cached = list(PROMPT) * 4, 0, 0
    for turn in range(10):
        completion = await ask(engine, prompt)
        num_prompt += len(prompt) if turn else 0  # nobody could have read the first one
        num_cached += completion.num_cached_tokens
        prompt += [*completion.token_ids, 7, 7]
    assert num_cached >= 0.9 * num_prompt
