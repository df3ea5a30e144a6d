"""Tools of real MCP servers: in process, over stdio and over HTTP; and servers that hang, die or talk nonsense."""

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from agentenv import tool_turn
from agentenv.engine.ports import free_port
from agentenv.errors import DeadlineExceeded, EpisodeError, UsageError
from agentenv.tool_policy import ToolPolicy
from agentenv.tools.mcp import McpServer, connect
from tests.engine.processes import is_alive
from tests.tools.desks import Desk, box, offered, told

pytest.importorskip("mcp")
PROGRAM = str(Path(__file__).parent / "mcp_program.py")
ALL = ToolPolicy(may_change_outside=frozenset({"write", "die", "hang", "pid"}))


def stdio(kind="stdio", **options):
    return McpServer(name="desk", command=[sys.executable, PROGRAM, kind], **options)


def toolbox(kit):
    return replace(box(kit), policy=ALL)


async def gone(pid):
    for _ in range(200):
        if not is_alive(pid):
            return True
        await asyncio.sleep(0.05)
    return False


async def test_tools_of_a_program_keep_their_schemas_and_answer():
    kit = await connect(stdio())
    try:
        tools = toolbox(kit)
        add = tools.tools["add"]
        assert add.description == "Add two numbers."
        assert add.parameters["required"] == ["a", "b"]
        assert (add.options.read_only, add.options.reaches_outside) == (True, True)
        assert await told(tools, "add", a=2, b=3) == "5"
        assert await told(tools, "add", a="x", b=3) == (
            "Error: invalid arguments for add: a: 'x' is not of type 'integer'"
        )
        assert "'b' is a required property" in await told(tools, "add", a=1)
        assert (await told(tools, "fail", why="no paper")).startswith("Error: ")
        assert await told(tools, "write", text="x") == "wrote x"
        pid = int(await told(tools, "pid"))
    finally:
        await kit.close()
    assert await gone(pid)


async def test_what_changes_things_is_refused_unless_the_policy_names_it():
    kit = await connect(stdio())
    try:
        tools = box(kit)
        assert sorted(offered(tools.specs)) == ["add", "fail"]
        assert "not allowed here" in await told(tools, "write", text="x")
    finally:
        await kit.close()


async def test_a_server_that_dies_in_a_call_is_a_failure_of_the_infrastructure():
    kit = await connect(stdio(timeout_s=20.0))
    try:
        started = time.monotonic()
        with pytest.raises(EpisodeError) as caught:
            await told(toolbox(kit), "die")
        assert caught.value.side == "tool"
        assert time.monotonic() - started < 10
    finally:
        await kit.close()


async def test_a_server_that_hangs_misses_its_deadline_and_is_ended():
    kit = await connect(stdio(timeout_s=1.0))
    tools = toolbox(kit)
    pid = int(await told(tools, "pid"))
    with pytest.raises(EpisodeError):
        await told(tools, "hang")
    await kit.close()
    assert await gone(pid)


@pytest.mark.parametrize("kind", ["silent", "garbage"])
async def test_a_server_that_never_lists_its_tools_is_a_failure(kind):
    with pytest.raises(DeadlineExceeded, match="MCP server desk: no answer within 2 s"):
        await connect(stdio(kind, start_timeout_s=2.0))


async def test_a_program_that_is_not_there_is_a_failure():
    with pytest.raises(EpisodeError, match="MCP server desk"):
        await connect(McpServer(name="desk", command=["/nowhere/server"], start_timeout_s=10.0))


async def test_two_servers_of_one_kind_need_a_prefix():
    from tests.tools.mcp_program import server

    here = McpServer(name="here", in_process=server)
    kit = await connect(here, replace(here, name="there", prefix="there_"))
    try:
        tools = toolbox(kit)
        assert await told(tools, "there_add", a=1, b=1) == await told(tools, "add", a=1, b=1) == "2"
    finally:
        await kit.close()
    clash = await connect(here, here)
    with pytest.raises(UsageError, match='two tools are called "add"'):
        box(clash)
    await clash.close()


async def test_tools_over_http_answer_and_a_server_that_ends_is_a_failure():
    port = free_port("127.0.0.1")
    process = await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, "http", str(port), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}/mcp"
        async with httpx.AsyncClient() as client:
            for _ in range(200):
                try:
                    await client.get(url, timeout=1)
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(0.1)
        kit = await connect(McpServer(name="web", url=url, timeout_s=5.0))
        tools = toolbox(kit)
        assert await told(tools, "add", a=20, b=22) == "42"
        process.kill()
        await asyncio.wait_for(process.wait(), 10)
        with pytest.raises(EpisodeError):
            await told(tools, "write", text="x")
        await kit.close()
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait_for(process.wait(), 10)


async def test_a_server_dies_with_us_however_we_end():
    program = (
        "import asyncio, sys, os, signal\n"
        "from agentenv.tools.mcp import McpServer, connect\n"
        "async def main():\n"
        f"    kit = await connect(McpServer(name='desk', command=[sys.executable, {PROGRAM!r}, 'stdio']))\n"
        "    pid = next(item for item in kit.tools if item.name == 'pid')\n"
        "    sys.stdout.write(await pid.function(arguments={}))\n"
        "    sys.stdout.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == -9
    assert await gone(int(said))


def test_an_environment_attaches_servers_in_its_setup_and_ends_them():
    from tests.tools.mcp_program import server

    class Office(Desk):
        """Use a server. Reward: none."""

        async def setup(self, rng, task):
            self.attach(await connect(McpServer(name="desk", in_process=server)))
            return "Add."

    env = Office()
    for _ in range(2):
        env.reset(seed=0)
        assert env.step(tool_turn("add", {"a": 1, "b": 2}).to_dict())[0] == "3"
    env.close()


def test_a_server_without_or_with_two_ways_to_reach_it_is_refused():
    with pytest.raises(UsageError, match="exactly one of command, url and in_process"):
        McpServer(name="desk")
    with pytest.raises(UsageError, match="give a list of program"):
        McpServer(name="desk", command="python server.py")
