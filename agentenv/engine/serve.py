"""Starts engine servers from the terminal, says how to use and how to stop them, and stops them all in the end."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from agentenv.engine.launch import Launch, ServerProcess, Startup, log_path, start_server
from agentenv.engine.model_path import checked_model
from agentenv.engine.open import Adapter, gathered, server_command
from agentenv.engine.server_config import API_KEY_VARIABLE, ServerCommand, ServerConfig
from agentenv.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

_QUIET_LINE_S = 10.0


def serve(
    config: ServerConfig,
    *,
    model: str,
    host: str = "127.0.0.1",
    port: int = 0,
    console: Console | None = None,
    adapter: Adapter | None = None,
) -> int:
    """Serve a model until interrupted.

    Args:
        config: which engine, how many replicas, and its limits.
        model: folder or Hub id.
        host: address to listen on; other machines reach it only if it is no loopback address, which demands
            `config.api_key`.
        port: of the first replica; the others follow. 0 takes free ones.
        console: where to write; the terminal by default.
        adapter: how the engine is reached; the shipped one by default.

    Returns:
        The exit code: 0 after an interrupt, 1 where servers ended by themselves.

    Raises:
        UsageError: model, host, port or interpreter cannot be used; nothing was started.
        EngineError: a server did not start; the others were stopped.
    """
    from rich.console import Console

    if config.urls:
        raise UsageError("servers that already run cannot be started; leave engine.url out")
    if not _is_loopback(host) and config.api_key is None:
        raise UsageError(
            f"{host} can be reached by other machines, which then could use and change the model; put an API key into "
            f"the environment variable {API_KEY_VARIABLE}, or listen on 127.0.0.1"
        )
    launches = _launches(config, model=checked_model(model), host=host, port=port, adapter=adapter)
    screen = _Screen(console or Console(highlight=False, soft_wrap=True))
    return asyncio.run(_serve(launches, config=config, screen=screen))


def listening_on(command: ServerCommand, host: str) -> ServerCommand:
    """Return the command of a server that listens on another address."""
    argv = list(command.argv)
    if "--host" in argv:
        argv[argv.index("--host") + 1] = host
    else:
        argv += ["--host", host]
    return replace(command, argv=tuple(argv))


def _launches(config: ServerConfig, *, model: str, host: str, port: int, adapter: Adapter | None) -> list[Launch]:
    make = server_command(config, model=model, adapter=adapter)
    return [
        Launch(
            name=f"{config.name} {index}",
            command=lambda own_port: listening_on(make(own_port), host),
            log_path=log_path(f"{config.name} {index}"),
            host=host,
            port=port + index if port else 0,
            timeout_s=config.startup_timeout_s,
            api_key=config.api_key.get_secret_value() if config.api_key else "",
        )
        for index in range(config.replicas)
    ]


async def _serve(launches: Sequence[Launch], *, config: ServerConfig, screen: _Screen) -> int:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    asking = asyncio.create_task(asked.wait())
    servers: list[ServerProcess] = []
    starting = asyncio.create_task(_start_all(launches, screen=screen))
    try:
        await asyncio.wait({starting, asking}, return_when=asyncio.FIRST_COMPLETED)
        if asked.is_set():
            return 0
        servers = starting.result()
        screen.ready(servers, config=config)
        return await _watch(servers, asking=asking, screen=screen)
    finally:
        screen.clear()
        asking.cancel()
        starting.cancel()  # stops what it has started
        await asyncio.gather(starting, asking, return_exceptions=True)
        await asyncio.gather(*(server.stop() for server in servers), return_exceptions=True)
        screen.say("all servers are stopped")


async def _start_all(launches: Sequence[Launch], *, screen: _Screen) -> list[ServerProcess]:
    return await gathered(
        [start_server(launch, told=screen.told) for launch in launches], undo=lambda server: server.stop()
    )


async def _watch(servers: Sequence[ServerProcess], *, asking: asyncio.Task[bool], screen: _Screen) -> int:
    """Wait until somebody asks for the end, or no server is left; says it when one ends by itself."""
    ends = {asyncio.create_task(server.wait()): server for server in servers}
    code = 0
    try:
        while ends:
            await asyncio.wait({asking, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return code
            for task in [task for task in ends if task.done()]:
                server = ends.pop(task)
                screen.ended(server, num_left=len(ends))
                code = 1
        return code
    finally:
        for task in ends:
            task.cancel()


class _Screen:
    """What the terminal shows: one line while servers start, then how to use them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status = console.status("starting") if console.is_terminal else None
        self._latest: dict[str, Startup] = {}
        self._said_at = 0.0

    def told(self, startup: Startup) -> None:
        """Show how far the servers have come."""
        self._latest[startup.name] = startup
        num_ready = sum(one.is_ready for one in self._latest.values())
        line = f"{num_ready} of {len(self._latest)} serve, {startup.elapsed_s:.0f} of at most {startup.timeout_s:.0f} s"
        if self._status is not None:
            from rich.markup import escape

            self._status.start()
            self._status.update(f"{line}  [dim]{escape(startup.line[:80])}[/]")
        elif startup.is_ready or time.monotonic() - self._said_at >= _QUIET_LINE_S:
            self._said_at = time.monotonic()
            self.say(f"{line}  {startup.line[:80]}")

    def ready(self, servers: Sequence[ServerProcess], *, config: ServerConfig) -> None:
        """Say where the servers are and how to use and stop them."""
        self.clear()
        urls = [_public_url(server) for server in servers]
        for server, url in zip(servers, urls, strict=True):
            self.say(f"{server.launch.name} serves at {url}  (log: {server.log_path})")
        given = urls[0] if len(urls) == 1 else urls
        self.say(f"in a run file:  engine: {{name: {config.name}, url: {json.dumps(given)}}}")
        if config.api_key is not None:
            self.say(f"clients need the same {API_KEY_VARIABLE}")
        if config.name == "vllm" and not _is_loopback(servers[0].launch.host):
            self.say("vLLM asks for the key under /v1 only: let none but trusted machines reach these ports")
        self.say("Ctrl-C stops all")

    def ended(self, server: ServerProcess, *, num_left: int) -> None:
        """Say that a server ended by itself."""
        self.say(
            f"{server.launch.name} ended with code {server.exit_code}; {num_left} left. Its log: {server.log_path}"
        )
        for line in server.log_tail(8):
            self.say(f"    {line}")

    def say(self, line: str) -> None:
        """Write a line as it is."""
        self.console.print(line, markup=False)

    def clear(self) -> None:
        """Take the line of progress away."""
        if self._status is not None:
            self._status.stop()


def _public_url(server: ServerProcess) -> str:
    host = server.launch.host
    if host in ("0.0.0.0", "::"):
        return f"http://{socket.gethostname()}:{server.port}"
    return server.url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
