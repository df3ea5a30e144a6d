"""MCP servers as programs, good and bad: `python mcp_program.py KIND`."""

import os
import sys
import time

from mcp.server import MCPServer
from mcp.types import ToolAnnotations

server = MCPServer("desk")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def write(text: str) -> str:
    """Write something."""
    return f"wrote {text}"


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def fail(why: str) -> str:
    """Fail."""
    raise ValueError(why)


@server.tool(annotations=ToolAnnotations(idempotent_hint=False))
def die() -> str:
    """End the server in the middle of a call."""
    os._exit(1)


@server.tool()
def hang() -> str:
    """Never answer."""
    time.sleep(600)
    return ""


@server.tool()
def pid() -> str:
    """Tell the number of the process."""
    return str(os.getpid())


if __name__ == "__main__":
    kind = sys.argv[1]
    if kind == "silent":
        time.sleep(600)
    if kind == "garbage":
        while True:
            sys.stdin.readline()
            sys.stdout.write("this is no JSON\n")
            sys.stdout.flush()
    if kind == "http":
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
    server.run("stdio")
