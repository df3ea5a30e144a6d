"""The remote back end against our own server, over HTTP on loopback; the server's programs run in bubblewrap."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentenv.agent.http_listener import HttpListener
from agentenv.errors import SandboxError, SandboxUnavailable, ToolError, UsageError
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.code_tests import CallTest, run_tests
from agentenv.tools.sandbox.choice import Choice, chosen, close_sandboxes, make_backend
from agentenv.tools.sandbox.remote import RemoteBackend, Retries
from agentenv.tools.sandbox.sandbox import Limits, SandboxBackend
from agentenv.tools.sandbox.server import sandbox_app, serve

LIMITS = Limits(wall_s=20.0)
NO_WAIT = Retries(most=2, wait_s=0.01, answer_s=60.0)

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[str]:
    """Serve an application on a free port until the end; gives its address."""
    listener = HttpListener(who="the sandbox server", host="127.0.0.1", port=0, token="")
    await listener.start(app)
    try:
        yield listener.root_url
    finally:
        await listener.close()


@pytest.fixture
async def local() -> AsyncIterator[SandboxBackend]:
    made = make_backend(SandboxSettings(), "bwrap")
    yield made
    await made.close()


@pytest.fixture
async def remote(local: SandboxBackend) -> AsyncIterator[RemoteBackend]:
    async with served(sandbox_app(local)) as url:
        backend = RemoteBackend(url=url, retries=NO_WAIT)
        yield backend
        await backend.close()


@asynccontextmanager
async def answering(*answers: Callable[[Request], Response]) -> AsyncIterator[tuple[RemoteBackend, list[Any]]]:
    """A server that gives these answers, the last one for ever, and what it was asked."""
    asked: list[Any] = []

    async def run_code(request: Request) -> Response:
        asked.append(await request.json())
        return answers[min(len(asked), len(answers)) - 1](request)

    async with served(Starlette(routes=[Route("/run_code", run_code, methods=["POST"])])) as url:
        backend = RemoteBackend(url=url, token="t" * 16, retries=NO_WAIT)
        yield backend, asked
        await backend.close()


def finished(**changed: Any) -> Callable[[Request], Response]:
    result = {"status": "Finished", "execution_time": 0.25, "return_code": 0, "stdout": "42\n", "stderr": "", **changed}
    return lambda _: JSONResponse({"status": "Success", "message": "", "run_result": result, "files": {}})


@needs_bwrap
async def test_a_program_runs_there_and_its_ending_comes_back(remote: RemoteBackend):
    done = await remote.execute("import sys; print(input() * 2); sys.exit(3)", stdin="ab\n", limits=LIMITS)
    assert (done.ending, done.exit_code, done.stdout) == ("exited", 3, "abab\n")
    killed = await remote.execute("import os; os.kill(os.getpid(), 9)", limits=LIMITS)
    assert (killed.ending, killed.signal) == ("signal", 9)
    late = await remote.execute("while True: pass", limits=Limits(wall_s=0.5))
    assert late.ending == "timeout"


@needs_bwrap
async def test_the_folder_of_an_episode_travels_with_its_commands(remote: RemoteBackend):
    sandbox = await remote.open(limits=LIMITS)
    await sandbox.write_file("deep/in.txt", b"one\x00two")
    done = await sandbox.run(["sh", "-c", "cp deep/in.txt out.txt; ln -s out.txt link; cat; exit 5"], stdin="ä")
    assert (done.ending, done.exit_code, done.stdout) == ("exited", 5, "ä")
    assert await sandbox.read_file("link") == b"one\x00two"
    assert [(info.path, info.kind, info.size) for info in await sandbox.list_files()] == [
        ("deep", "folder", 0),
        ("deep/in.txt", "file", 7),
        ("link", "link", 0),
        ("out.txt", "file", 7),
    ]
    packed = await sandbox.snapshot()
    await sandbox.run(["rm", "-r", "deep"])
    assert [info.path for info in await sandbox.list_files()] == ["link", "out.txt"]
    await sandbox.restore(packed)
    assert (await sandbox.run(["cat", "deep/in.txt"])).is_success
    await sandbox.close()
    with pytest.raises(SandboxError, match="was closed"):
        await sandbox.run(["true"])


@needs_bwrap
async def test_a_command_that_hangs_is_ended_and_its_folder_kept(remote: RemoteBackend):
    sandbox = await remote.open(limits=LIMITS)
    done = await sandbox.run(["sh", "-c", "echo kept > kept.txt; sleep 60"], timeout_s=1.0)
    assert done.ending == "timeout"
    assert await sandbox.read_file("kept.txt") == b"kept\n"
    missing = await sandbox.run(["no-such-program"])
    assert (missing.ending, missing.exit_code) == ("exited", 127)
    killed = await sandbox.run(["sh", "-c", "kill -9 $$"])
    assert (killed.ending, killed.signal) == ("signal", 9)


@needs_bwrap
async def test_a_folder_that_grows_too_large_is_the_commands_failure(remote: RemoteBackend):
    sandbox = await remote.open(limits=Limits(wall_s=20.0, work_bytes=1 << 20))
    await sandbox.write_file("kept.txt", b"kept")
    done = await sandbox.run(["sh", "-c", "head -c 3000000 /dev/zero > large; rm kept.txt"])
    assert (done.ending, done.exit_code) == ("exited", 1)
    assert "The folder is as it was" in done.stderr
    assert [info.path for info in await sandbox.list_files()] == ["kept.txt"]


@needs_bwrap
async def test_paths_that_lead_out_are_refused(remote: RemoteBackend):
    sandbox = await remote.open(limits=LIMITS)
    await sandbox.run(["sh", "-c", "ln -s / root; ln -s ../../etc up; ln -s loop loop"])
    for path in ("../x", "/etc/passwd", "root/etc/passwd", "up/passwd", "loop", "a/../../x"):
        with pytest.raises(ToolError):
            await sandbox.read_file(path)
        with pytest.raises(ToolError):
            await sandbox.write_file(path, b"x")
    await sandbox.write_file("/work/fine.txt", b"x")
    assert await sandbox.read_file("fine.txt") == b"x"


@needs_bwrap
async def test_there_is_no_interpreter_that_lives_on(remote: RemoteBackend):
    sandbox = await remote.open(limits=LIMITS)
    with pytest.raises(UsageError, match="no persistent interpreter"):
        await sandbox.python("1")


@needs_bwrap
async def test_programs_are_graded_there(remote: RemoteBackend):
    tests = [CallTest(args=(2,), expected=4), CallTest(args=(3,), expected=10)]
    report = await run_tests("def f(x): return x * x", tests, entry_point="f", limits=LIMITS, backend=remote)
    assert (report.passed, report.total) == (1, 2)


@needs_bwrap
async def test_a_remote_back_end_is_chosen_by_its_address_after_the_self_test(local: SandboxBackend):
    async with served(sandbox_app(local)) as url:
        try:
            choice = await chosen(SandboxSettings(backend="remote", url=url))
            assert isinstance(choice, Choice)
            assert choice.describe() == "remote, isolation strong"
        finally:
            await close_sandboxes()


async def test_without_an_address_or_with_a_wrong_one_there_is_no_remote_back_end():
    with pytest.raises(SandboxUnavailable, match=r"needs sandbox\.url"):
        make_backend(SandboxSettings(backend="remote"), "remote")
    with pytest.raises(UsageError, match="must begin with http"):
        make_backend(SandboxSettings(backend="remote", url="localhost:8080"), "remote")


async def test_a_busy_server_is_asked_again_and_then_given_up():
    busy = lambda _: Response(status_code=503)  # noqa: E731
    async with answering(busy, busy, finished()) as (backend, asked):
        assert (await backend.execute("x", limits=LIMITS)).stdout == "42\n"
        assert len(asked) == 3
    async with answering(busy) as (backend, asked):
        with pytest.raises(SandboxError, match="failed 3 times; last: status 503"):
            await backend.execute("x", limits=LIMITS)
        assert len(asked) == 3


async def test_a_server_that_does_not_listen_is_an_error_of_the_sandbox():
    async with answering(finished()) as (backend, _):
        pass
    backend = RemoteBackend(url=str(backend._url), retries=NO_WAIT)
    with pytest.raises(SandboxError, match="failed 3 times"):
        await backend.execute("x", limits=LIMITS)


async def test_a_server_that_hangs_is_not_asked_twice():
    async def hang(request: Request) -> Response:
        await request.json()
        await asyncio.sleep(3)
        return Response()

    async with served(Starlette(routes=[Route("/run_code", hang, methods=["POST"])])) as url:
        backend = RemoteBackend(url=url, retries=Retries(most=3, wait_s=0.01, answer_s=0.2))
        with pytest.raises(SandboxError, match=r"no answer within 0\.3 s"):
            await backend.execute("x", limits=Limits(wall_s=0.1))
        await backend.close()


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: Response("no JSON"),
        lambda _: Response("[" * 100_000),
        lambda _: JSONResponse([1]),
        lambda _: JSONResponse({"status": "Success"}),
        lambda _: JSONResponse({"status": "SandboxError", "message": "no pod", "run_result": {}}),
        lambda _: Response("not found", status_code=404),
        finished(return_code=None),
        finished(return_code="0"),
        finished(status="Error"),
    ],
)
async def test_an_answer_that_says_nothing_of_the_program_is_no_verdict(answer: Callable[[Request], Response]):
    async with answering(answer) as (backend, asked):
        with pytest.raises(SandboxError):
            await backend.execute("x", limits=LIMITS)
        assert len(asked) == 1


async def test_floods_and_control_codes_of_a_careless_server_are_kept_out():
    limits = Limits(output_bytes=1000)
    async with answering(finished(stdout="\x1b[2J" + "x" * 5000), finished(stdout="x" * (8 << 20))) as (backend, _):
        done = await backend.execute("x", limits=limits)
        assert done.stdout.startswith("\\x1b[2J")
        assert "[... 4004 bytes omitted]" in done.stdout
        # 12 * 1000 bytes and 4 MiB
        flooded = await backend.execute("x", limits=limits)
        assert (flooded.ending, flooded.stderr) == (
            "memory",
            "It wrote more than 4,206,304 bytes.",
        )


async def test_the_request_is_that_of_the_protocol():
    async with answering(finished()) as (backend, asked):
        await backend.execute("print(1)", stdin="in", limits=Limits(wall_s=3.0, memory_bytes=64 << 20))
    assert asked == [
        {
            "code": "print(1)",
            "language": "python",
            "stdin": "in",
            "compile_timeout": 3.0,
            "run_timeout": 3.0,
            "memory_limit_MB": 64,
            "files": {},
            "fetch_files": [],
        }
    ]


@needs_bwrap
async def test_the_server_wants_its_token_and_bounds_what_is_asked(local: SandboxBackend):
    app = sandbox_app(local, limits=Limits(wall_s=0.5, memory_bytes=64 << 20), token="a-long-token-of-ours")
    async with served(app) as url, httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        call: dict[str, Any] = {"code": "while True: pass", "language": "python", "run_timeout": 1e9}
        assert (await client.post("/run_code", json=call)).status_code == 401
        client.headers["Authorization"] = "Bearer a-long-token-of-ours"
        answer = (await client.post("/run_code", json=call)).json()
        assert (answer["status"], answer["run_result"]["status"]) == ("Failed", "TimeLimitExceeded")
        call |= {"code": "x = bytearray(b'1') * (200 << 20); print('GOT')", "memory_limit_MB": 4096, "run_timeout": 20}
        assert "GOT" not in (await client.post("/run_code", json=call)).json()["run_result"]["stdout"]
        call |= {"code": "echo $((6 * 7)); cat ../../../etc/passwd x", "language": "bash", "files": {"x": "YWJj"}}
        assert (await client.post("/run_code", json=call)).json()["run_result"]["stdout"].startswith("42\n")
        call |= {"files": {"../x": "YWJj"}}
        assert (await client.post("/run_code", json=call)).json()["status"] == "Failed"
        for wrong in ({"language": "perl"}, {"run_timeout": -1}, {"files": {"x": 1}}):
            assert (await client.post("/run_code", json=call | wrong)).status_code == 422


def test_a_server_that_others_can_reach_demands_a_token():
    with pytest.raises(UsageError, match="pass a token of 16 characters"):
        serve(backend="auto", host="0.0.0.0", port=1, token="short", report=print)
