"""Tools of MCP servers (https://modelcontextprotocol.io): several servers, over stdio or streamable HTTP."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pydantic

from agentenv.content import MEDIA_TYPES, Image
from agentenv.errors import EpisodeError, ToolError, UsageError, describe
from agentenv.offload import within
from agentenv.tool import Tool, ToolOptions
from agentenv.tool_schema import check_size
from agentenv.toolkit import Toolkit

if TYPE_CHECKING:
    from mcp import Client

_STOP_S = 5.0
_MAX_TOOLS = 1_000
# makes the kernel end the server when the thread that started it is gone, however that came
_TIED = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True, kw_only=True)
class McpServer:
    """A server.

    Attributes:
        name: for errors.
        command: program and arguments of a server that speaks over its standard streams.
        url: of a server that speaks streamable HTTP.
        in_process: a server object of the `mcp` package, which runs here.
        env: environment variables of `command`, besides a few harmless ones.
        prefix: put before the names of its tools, where those of several servers would clash.
        timeout_s: seconds of one call.
        start_timeout_s: seconds until it must have listed its tools.
    """

    name: str
    command: Sequence[str] = ()
    url: str = ""
    in_process: Any = None
    env: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    timeout_s: float = 30.0
    start_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        given = bool(self.command) + bool(self.url) + (self.in_process is not None)
        if given != 1:
            raise UsageError(f"MCP server {self.name!r}: exactly one of command, url and in_process is needed")
        if isinstance(self.command, str):
            raise UsageError(f"MCP server {self.name!r}: command is a text; give a list of program and arguments")

    def target(self) -> Any:
        """Return what the `mcp` package's client connects to."""
        if self.command:
            from mcp import StdioServerParameters

            tied = [sys.executable, "-I", "-S", "-c", _TIED, *self.command]
            return StdioServerParameters(command=tied[0], args=tied[1:], env=dict(self.env))
        return self.url or self.in_process


class McpTools(Toolkit):
    """The tools of connected servers, with their schemas as the servers wrote them.

    Made by `connect`. A tool that the server does not call read-only is refused unless the environment's policy names
    it, because it changes things outside of the episode.
    """

    def __init__(self, connections: Sequence[_Connection]) -> None:
        self._connections = tuple(connections)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools of all servers."""
        return tuple(item for connection in self._connections for item in connection.tools)

    async def close(self) -> None:
        """End the connections, and with them the servers that they started."""
        await asyncio.gather(*(connection.stop() for connection in self._connections))


async def connect(*servers: McpServer) -> McpTools:
    """Connect to servers, from an asynchronous `setup`: `self.attach(await connect(McpServer(...)))`.

    Raises:
        EpisodeError: side `"tool"`: a server did not start, or did not list its tools in time.
        UsageError: the package mcp is not installed.
    """
    try:
        import mcp  # noqa: F401 - asked for here, so that the error names the extra
    except ImportError as error:
        raise UsageError('MCP servers need mcp; run `pip install "agentenv[mcp]"`') from error
    connections = [_Connection(server) for server in servers]
    try:
        await asyncio.gather(*(connection.start() for connection in connections))
    except BaseException:
        await asyncio.gather(*(connection.stop() for connection in connections))
        raise
    return McpTools(connections)


class _Connection:
    """One client, which lives in a task of its own: its scopes must be left by the task that entered them."""

    def __init__(self, server: McpServer) -> None:
        self.tools: tuple[Tool, ...] = ()
        self._server = server
        self._client: Client | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._where = f"MCP server {server.name}"

    async def start(self) -> None:
        ready: asyncio.Future[tuple[Tool, ...]] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(ready), name=self._where)
        self.tools = await within(ready, timeout_s=self._server.start_timeout_s, side="tool", where=self._where)

    async def stop(self) -> None:
        self._stopping.set()
        task, self._task = self._task, None
        if task is None:
            return
        done, _ = await asyncio.wait((task,), timeout=_STOP_S)
        if not done:
            task.cancel()
            await asyncio.wait((task,), timeout=_STOP_S)

    async def call(self, name: str, arguments: Mapping[str, object]) -> object:
        """Call a tool and return its content; raises ToolError for what the server tells the model."""
        from mcp import MCPError, types

        if self._client is None:
            raise EpisodeError("tool", self._where, "the connection has ended")
        call = asyncio.ensure_future(self._client.call_tool(name, dict(arguments)))
        ended = asyncio.ensure_future(self._stopping.wait())
        try:
            # a connection that dies may leave a call without an answer
            assert self._task is not None
            await asyncio.wait((call, ended, self._task), return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise EpisodeError("tool", self._where, "the server ended in the middle of a call")
            result = call.result()
        except MCPError as error:
            if error.code in (types.INVALID_PARAMS, types.METHOD_NOT_FOUND):
                raise ToolError(error.message) from None
            raise EpisodeError("tool", self._where, f"{error.message} (code {error.code})") from error
        finally:
            call.cancel()
            ended.cancel()
        content = _content(result)
        if result.is_error:
            raise ToolError(content if isinstance(content, str) else "the tool failed")
        return content

    async def _live(self, ready: asyncio.Future[tuple[Tool, ...]]) -> None:
        from mcp import Client

        try:
            async with Client(self._server.target(), read_timeout_seconds=self._server.timeout_s) as client:
                tools = await self._list(client)
                self._client = client
                if not ready.done():
                    ready.set_result(tools)
                await self._stopping.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(EpisodeError("tool", self._where, _cause(error)))
            elif isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._client = None

    async def _list(self, client: Client) -> tuple[Tool, ...]:
        found: list[Tool] = []
        cursor: str | None = None
        while True:
            page = await client.list_tools(cursor=cursor)
            found.extend(self._tool(item) for item in page.tools)
            cursor = page.next_cursor
            if not cursor:
                return tuple(found)
            if len(found) > _MAX_TOOLS:
                raise EpisodeError("tool", self._where, f"it lists more than {_MAX_TOOLS} tools")

    def _tool(self, listed: Any) -> Tool:
        hints = listed.annotations
        options = ToolOptions(
            read_only=bool(hints and hints.read_only_hint),
            idempotent=bool(hints and (hints.read_only_hint or hints.idempotent_hint)),
            reaches_outside=True,
            timeout_s=self._server.timeout_s,
            inline=False,
        )
        return McpTool(
            name=f"{self._server.prefix}{listed.name}",
            description=listed.description or listed.title or "",
            parameters=dict(listed.input_schema),
            function=functools.partial(self._run, listed.name),
            options=options,
            arguments_model=pydantic.BaseModel,
        )

    async def _run(self, name: str, *, arguments: Mapping[str, object]) -> object:
        return await self.call(name, arguments)


class McpTool(Tool):
    """A tool whose arguments are checked against the schema of its server; any name of an argument is possible."""

    def read_arguments(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """See `Tool.read_arguments`."""
        check_size(arguments, name=self.name, max_chars=self.options.max_argument_chars)
        problems = [
            f"{'.'.join(str(part) for part in error.absolute_path) or 'arguments'}: {error.message[:300]}"
            for error in self._validator.iter_errors(dict(arguments))
        ]
        if problems:
            raise ToolError(f"invalid arguments for {self.name}: " + "; ".join(problems[:5]))
        return {"arguments": arguments}

    @functools.cached_property
    def _validator(self) -> Any:
        import jsonschema
        import jsonschema.validators

        cls = jsonschema.validators.validator_for(self.parameters, default=jsonschema.Draft202012Validator)
        return cls(self.parameters)


def _content(result: Any) -> object:
    """Return what a call gave as a text, or as texts and images."""
    parts: list[str | Image] = []
    for item in result.content:
        if item.type == "text":
            parts.append(item.text)
        elif item.type == "image" and item.mime_type in MEDIA_TYPES:
            parts.append(Image(data=base64.b64decode(item.data), media_type=item.mime_type))
        elif item.type == "resource" and getattr(item.resource, "text", None) is not None:
            parts.append(item.resource.text)
        else:
            parts.append(f"[{item.type} that cannot be shown]")
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    if any(isinstance(part, Image) for part in parts):
        return parts
    return "\n".join(part for part in parts if isinstance(part, str)) or "ok"


def _cause(error: BaseException) -> str:
    """Return what is wrong, from inside the groups that task scopes wrap around it."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return describe(error)
