"""Makes the engine that a configuration asks for: in this process, of servers that run, or of servers that we start."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from agentenv.engine.concurrency import ConcurrencyConfig
from agentenv.engine.interpreter import interpreter_with
from agentenv.engine.launch import Launch, Told, log_path, start_server
from agentenv.engine.model_path import checked_model
from agentenv.engine.own_server import OwnServer
from agentenv.engine.pool import Pool
from agentenv.engine.pool_config import PoolConfig
from agentenv.engine.protocol import Engine
from agentenv.engine.relabelled import Relabelled
from agentenv.engine.routed import Routed
from agentenv.engine.server_config import ServerCommand, ServerConfig, ServerName
from agentenv.errors import EngineError, EpisodeError, describe

T = TypeVar("T")

_log = logging.getLogger(__name__)
_RECONNECT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Where the code for an engine is, as import strings, so that only the engine in use is imported.

    Attributes:
        in_process: class with `async open(model, *, config, version) -> Engine`.
        server: class with `async connect(url, *, config) -> Engine`.
        command: function `(config, *, model, port, python) -> ServerCommand`.
    """

    in_process: str
    server: str
    command: str


ADAPTERS: Mapping[ServerName, Adapter] = {
    "vllm": Adapter(
        in_process="agentenv.engine.vllm:VLLMEngine",
        server="agentenv.engine.vllm_http:VLLMServer",
        command="agentenv.engine.vllm_http:vllm_command",
    ),
    "sglang": Adapter(
        in_process="agentenv.engine.sglang:SGLangEngine",
        server="agentenv.engine.sglang_http:SGLangServer",
        command="agentenv.engine.sglang_command:sglang_command",
    ),
}


async def open_engine(
    config: ServerConfig,
    *,
    model: str | Path,
    version: int = 0,
    told: Told | None = None,
    pool: PoolConfig | None = None,
    adapter: Adapter | None = None,
) -> Engine:
    """Open the engine that is configured. Closing it ends every process that was started for it.

    Servers of our own stand behind a `Pool`, which replaces those that die; so do several servers that already run.

    Args:
        config: which engine, and where.
        model: folder or Hub id; servers that already run have their own.
        version: of the weights that `model` holds. Servers that already run and hold something else are taken to hold
            `version - 1`: give them weights of `version` before anything that they sample counts as that.
        told: hears how far servers of our own have come.
        pool: deadlines and budgets of a pool.
        adapter: how the engine is reached; the shipped ones by default.

    Raises:
        UsageError: the model, the interpreter, or the engine itself is missing; nothing was started.
        EngineError: a server did not start or does not answer; whatever was opened is closed.
    """
    adapter = ADAPTERS[config.name] if adapter is None else adapter
    if config.urls:
        return await _connected(config, version=version, pool=pool, adapter=adapter)
    model = checked_model(model)
    if config.place == "in_process":
        return await _imported(adapter.in_process).open(model, config=config, version=version)
    servers = _OwnServers(config, model=model, version=version, adapter=adapter, told=told)
    engines = await gathered([servers.start(index) for index in range(config.replicas)], undo=lambda e: e.close())
    names = [f"{config.name} {index}" for index in range(config.replicas)]
    return await Pool.open(engines, config=pool or pool_config(config), restart=servers.start, names=names)


def server_command(
    config: ServerConfig, *, model: str, adapter: Adapter | None = None
) -> Callable[[int], ServerCommand]:
    """Return what makes the command that starts a server on a port.

    Raises:
        UsageError: no interpreter has the engine.
    """
    adapter = ADAPTERS[config.name] if adapter is None else adapter
    python = interpreter_with(config)
    make = _imported(adapter.command)

    def command(port: int) -> ServerCommand:
        made = make(config, model=model, port=port, python=python)
        if config.name == "sglang" and config.api_key is not None and "--api-key" not in made.argv:
            made = replace(made, argv=(*made.argv, "--api-key", config.api_key.get_secret_value()))
        return made

    return command


def pool_config(config: ServerConfig) -> PoolConfig:
    """Return the pool's settings that fit an engine: it begins with twice the tokens that the cache holds, because the
    episodes of a group share their prompts and outputs grow only slowly."""
    cache = config.cache_tokens
    bounds = ConcurrencyConfig(
        start_tokens=2 * cache,
        lowest_tokens=max(1, cache // 8),
        highest_tokens=64 * cache,
        step_tokens=max(1, cache // 8),
    )
    return PoolConfig(concurrency=bounds, restart_timeout_s=config.startup_timeout_s + 60.0)


async def gathered(coroutines: Sequence[Coroutine[Any, Any, T]], *, undo: Callable[[T], Awaitable[object]]) -> list[T]:
    """Run at once and return the results in order; if one fails, the others are cancelled and what they made is undone.

    Raises:
        BaseException: the first failure.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        made = [result for result in results if not isinstance(result, BaseException)]
        await asyncio.gather(*(undo(result) for result in made), return_exceptions=True)
        raise


class _OwnServers:
    """Starts servers on this machine, also in place of those that died."""

    def __init__(self, config: ServerConfig, *, model: str, version: int, adapter: Adapter, told: Told | None) -> None:
        self.config = config
        self._version = version
        self._adapter = adapter
        self._told = told
        self._command = server_command(config, model=model, adapter=adapter)

    async def start(self, index: int) -> Engine:
        """Start the server of a replica and connect to it."""
        config = self.config
        name = f"{config.name} {index}"
        process = await start_server(
            Launch(
                name=name,
                command=self._command,
                log_path=log_path(name),
                timeout_s=config.startup_timeout_s,
                api_key=config.api_key.get_secret_value() if config.api_key else "",
            ),
            told=self._told,
        )
        try:
            engine = await _imported(self._adapter.server).connect(process.url, config=config)
            own = OwnServer(engine, process=process)
            return await _labelled(own, version=self._version)
        except BaseException:
            await process.stop()
            raise


async def _connected(config: ServerConfig, *, version: int, pool: PoolConfig | None, adapter: Adapter) -> Engine:
    """Connect to servers that already run."""
    server = _imported(adapter.server)

    async def connect(url: str) -> Engine:
        engine = await server.connect(url, config=config)
        return await _labelled(engine, version=version, is_known=False)

    async def reconnect(index: int) -> Engine:
        while True:  # the pool sets the deadline
            try:
                return await connect(config.urls[index])
            except (EngineError, EpisodeError) as error:
                _log.info("%s is not back yet: %s", config.urls[index], describe(error))
            await asyncio.sleep(_RECONNECT_S)

    engines = await gathered([connect(url) for url in config.urls], undo=lambda engine: engine.close())
    if len(engines) == 1 and config.router is None:
        return engines[0]
    workers = await Pool.open(engines, config=pool or pool_config(config), restart=reconnect, names=config.urls)
    if config.router is None:
        return workers
    try:
        return await _behind_router(config.router, engines=engines, workers=workers, config=config)
    except BaseException:
        await workers.close()
        raise


async def _behind_router(url: str, *, engines: Sequence[Engine], workers: Pool, config: ServerConfig) -> Engine:
    """Sample through a router; the front counts versions as the servers do, and is labelled as they are."""
    from agentenv.engine.sglang_router import sglang_front

    first = engines[0]
    offset = first.offset if isinstance(first, Relabelled) else 0
    bare = [engine.engine if isinstance(engine, Relabelled) else engine for engine in engines]
    front = Relabelled(sglang_front(url, workers=bare, config=config), offset=offset)
    return Routed(front, workers=workers, version=(await workers.health()).version)


async def _labelled(engine: Engine, *, version: int, is_known: bool = True) -> Engine:
    """Let an engine count its weights as the trainer does; closes it where that fails.

    Args:
        engine: to label.
        version: of the weights of the model.
        is_known: True for an engine that was just started on the model; one that already ran holds its weights only
            if it says so.
    """
    try:
        held = (await engine.health()).version
    except BaseException:
        await engine.close()
        raise
    if held == version:
        return engine
    if not is_known:
        _log.warning("a server holds weights of version %d, not %d: give it these before it samples", held, version)
    return Relabelled(engine, offset=(version if is_known else version - 1) - held)


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
