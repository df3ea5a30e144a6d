"""A configuration becomes an engine, whose processes live as long as it does and are replaced when they die."""

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from agentenv.engine.engine_venv import RECIPES, EngineVenv
from agentenv.engine.interpreter import interpreter_with
from agentenv.engine.launch import Launch, ServerProcess, Startup, start_server
from agentenv.engine.open import open_engine, pool_config, server_command
from agentenv.engine.pool import Pool
from agentenv.engine.protocol import Completion, Engine, SamplingParams, WeightManifest
from agentenv.engine.relabelled import Relabelled
from agentenv.engine.server_config import ServerConfig
from agentenv.errors import EngineError, ModelError, UsageError
from tests.engine.http_engine import command, drawn, make_adapter, make_model
from tests.engine.http_engine_client import HttpEngine
from tests.engine.processes import processes, until

PROGRAM = "http_engine.py"
QUICK: dict[str, Any] = {"probe_interval_s": 0.05, "restart_pause_s": 0.05}


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_model(tmp_path / "model")


def config(**values: Any) -> ServerConfig:
    return ServerConfig(name="vllm", **{"python": sys.executable, **values})


async def ask(engine: Engine, session: str = "s", *, seed: int = 1) -> Completion:
    return await engine.generate([7, 8], SamplingParams(max_tokens=8, seed=seed), session_id=session, deadline_s=30)


async def serving(engine: Engine, model: str, count: int) -> list[int]:
    """Return the processes that serve a model, once there are so many."""
    assert await asyncio.to_thread(until, lambda: len(processes(PROGRAM, model)) == count)
    return processes(PROGRAM, model)


async def running(model: str, folder: Path, name: str) -> ServerProcess:
    """Start a server that is nobody's, so that its url can be given."""
    own = config()
    return await start_server(
        Launch(
            name=name,
            command=lambda port: command(own, model=model, port=port, python=sys.executable),
            log_path=folder / f"{name}.log",
        )
    )


async def test_replicas_are_started_and_serve_and_end_with_the_engine(model):
    told: list[Startup] = []
    engine = await open_engine(config(replicas=2), model=model, told=told.append, adapter=make_adapter())
    try:
        assert isinstance(engine, Pool)
        assert len(await serving(engine, model, 2)) == 2
        assert (await ask(engine)).token_ids == drawn([7, 8], 1)
        assert {startup.name for startup in told if startup.is_ready} == {"vllm 0", "vllm 1"}
    finally:
        await engine.close()
    assert processes(PROGRAM, model) == []


@pytest.mark.fault(
    "engine process killed", then="the replacement serves the newest weights", metric="agentenv_pool_restarts_total"
)
async def test_a_server_that_is_killed_is_replaced_and_given_the_weights_and_nothing_is_lost(model):
    pool = pool_config(config()).model_copy(update=QUICK)
    slow = config(replicas=2, options={"latency_s": 0.5})
    engine = await open_engine(slow, model=model, version=3, pool=pool, adapter=make_adapter())
    assert isinstance(engine, Pool)
    try:
        before = await serving(engine, model, 2)
        weights = torch.tensor([1.0, 2.0])
        ack = await engine.update_weights(WeightManifest(version=4, tensors={"w": weights}))
        weights.mul_(0)
        requests = [asyncio.create_task(ask(engine, f"s{i}", seed=i)) for i in range(6)]
        await asyncio.sleep(0.2)
        os.kill(before[0], signal.SIGKILL)

        completions = await asyncio.gather(*requests)

        assert [completion.token_ids for completion in completions] == [drawn([7, 8], i) for i in range(6)]
        assert {completion.weight_versions[-1].version for completion in completions} == {4}
        assert engine.num_reissued == 3
        assert await asyncio.to_thread(until, lambda: all(s.state == "live" for s in engine.stats()))
        replicas = [replica.engine for replica in engine._replicas]
        statuses = [await _http(replica).status() for replica in replicas]
        # servers count from 0, the trainer from 3
        assert [(status["version"], status["checksum"]) for status in statuses] == [(1, ack.checksum)] * 2
        assert [s.num_restarts for s in engine.stats()] in ([1, 0], [0, 1])
    finally:
        await engine.close()
    assert processes(PROGRAM, model) == []


def _http(engine: Engine) -> HttpEngine:
    while not isinstance(engine, HttpEngine):
        engine = engine.engine  # type: ignore[attr-defined]
    return engine


async def test_a_single_server_of_our_own_is_replaced_too(model):
    pool = pool_config(config()).model_copy(update=QUICK)
    engine = await open_engine(config(), model=model, pool=pool, adapter=make_adapter())
    try:
        (pid,) = await serving(engine, model, 1)
        os.kill(pid, signal.SIGKILL)
        assert (await ask(engine)).token_ids == drawn([7, 8], 1)
        assert processes(PROGRAM, model) != [pid]
    finally:
        await engine.close()


async def test_when_one_replica_does_not_start_the_others_are_stopped_and_it_says_why(model):
    (Path(model) / "broken").touch()
    with pytest.raises(EngineError, match=r"vllm \d ended with code 1") as caught:
        await open_engine(config(replicas=2), model=model, adapter=make_adapter())
    assert "this model is broken" in str(caught.value)
    assert processes(PROGRAM, model) == []


async def test_when_a_server_cannot_be_connected_to_it_is_stopped(model):
    with pytest.raises(EngineError, match="this server is no engine"):
        await open_engine(config(options={"refuses": True}), model=model, adapter=make_adapter())
    assert processes(PROGRAM, model) == []


async def test_cancelling_the_opening_stops_what_has_started(model):
    opening = asyncio.create_task(open_engine(config(replicas=2), model=model, adapter=make_adapter()))
    assert await asyncio.to_thread(until, lambda: len(processes(PROGRAM, model)) > 0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert processes(PROGRAM, model) == []


async def test_servers_that_run_already_are_used_and_left_running(model, tmp_path):
    servers = [await running(model, tmp_path, name) for name in ("one", "two")]
    try:
        urls = [server.url for server in servers]
        single = await open_engine(config(url=urls[0]), model="unused", adapter=make_adapter())
        assert isinstance(single, HttpEngine)
        assert (await ask(single)).token_ids == drawn([7, 8], 1)
        await single.close()
        both = await open_engine(config(url=tuple(urls)), model="unused", adapter=make_adapter())
        assert isinstance(both, Pool)
        assert (await ask(both)).token_ids == drawn([7, 8], 1)
        await both.close()
        assert all(server.is_running for server in servers)
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


async def test_a_server_that_is_down_is_named_and_the_others_are_let_go(model, tmp_path):
    server = await running(model, tmp_path, "one")
    try:
        urls = (server.url, "http://127.0.0.1:9")
        with pytest.raises(EngineError, match=r"127\.0\.0\.1:9"):
            await open_engine(config(url=urls), model="unused", adapter=make_adapter())
    finally:
        await server.stop()


async def test_a_server_that_holds_other_weights_is_labelled_older_until_it_is_given_ours(model, tmp_path):
    server = await running(model, tmp_path, "one")
    try:
        former = await HttpEngine.connect(server.url, config=config())
        await former.update_weights(WeightManifest(version=9, tensors={"w": torch.tensor([1.0])}))
        await former.close()

        engine = await open_engine(config(url=server.url), model="unused", version=5, adapter=make_adapter())

        assert (await engine.health()).version == 4
        assert (await ask(engine)).weight_versions[0].version == 4
        ack = await engine.update_weights(WeightManifest(version=5, tensors={"w": torch.tensor([2.0])}))
        assert ack.version == 5
        assert (await ask(engine)).weight_versions[0].version == 5
        await engine.close()
    finally:
        await server.stop()


async def test_an_engine_inside_this_process_gets_model_and_version(model):
    inside = ServerConfig(name="vllm", place="in_process")
    engine = await open_engine(inside, model=model, version=7, adapter=make_adapter())
    assert (await engine.health()).version == 7
    await engine.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "missing", "no such folder"),
        (lambda folder: "models/missing", "no such folder"),  # "models" is a folder here
        (lambda folder: _folder(folder / "empty"), "has no config.json"),
        (lambda folder: _folder(folder / "half", "config.json"), "no weights"),
        (lambda folder: _file(folder / "file"), "is a file"),
    ],
)
async def test_a_wrong_model_is_refused_before_anything_starts(tmp_path, monkeypatch, make, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelError, match=said):
        await open_engine(config(), model=make(tmp_path), adapter=make_adapter())
    assert not processes(PROGRAM, str(tmp_path))


def _folder(path: Path, *files: str) -> Path:
    path.mkdir()
    for name in files:
        (path / name).write_text("{}")
    return path


def _file(path: Path) -> Path:
    path.write_text("")
    return path


async def test_the_relabelled_engine_counts_both_ways(model):
    from tests.engine.mortal_engine import MortalEngine

    inner = MortalEngine(version=2)
    engine = Relabelled(inner, offset=10)
    assert (await engine.health()).version == 12
    assert (await engine.update_weights(WeightManifest(version=13, tensors={}))).version == 13
    assert inner.version == 3
    assert (await ask(engine)).weight_versions[0].version == 13


# The interpreter.


def test_the_configured_interpreter_is_taken_and_must_exist():
    assert interpreter_with(config(python=sys.executable)) == sys.executable
    with pytest.raises(UsageError, match=r"engine\.python is '/no/such/python'"):
        interpreter_with(config(python="/no/such/python"))


def test_an_engine_that_is_nowhere_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="agentenv engines install sglang"):
        interpreter_with(ServerConfig(name="sglang"))


def test_the_installed_environment_is_found_unless_it_is_outdated(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = next(one for one in RECIPES if (one.name, one.device) == ("sglang", "cpu"))
    (recipe.folder / "bin").mkdir(parents=True)
    python = recipe.folder / "bin" / "python"
    python.write_text("")
    python.chmod(stat.S_IRWXU)
    venv = {"name": "sglang", "device": "cpu", "version": "1", "folder": str(recipe.folder)}

    import agentenv

    EngineVenv(**venv, digest=recipe.digest, agentenv=agentenv.__version__).write()
    assert interpreter_with(ServerConfig(name="sglang")) == str(python)

    EngineVenv(**venv, digest="of other pins", agentenv=agentenv.__version__).write()
    with pytest.raises(UsageError, match="engines install"):
        interpreter_with(ServerConfig(name="sglang"))


def test_a_key_reaches_sglang_as_an_argument(monkeypatch):
    monkeypatch.setenv("AGENTENV_API_KEY", "k-1")
    keyed = config().model_copy(update={"name": "sglang"})
    argv = server_command(keyed, model="m", adapter=make_adapter())(80).argv
    assert argv[-2:] == ("--api-key", "k-1")
