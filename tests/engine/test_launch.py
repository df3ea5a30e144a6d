"""Servers start, serve, and end with us; a start that fails says why and leaves nothing behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agentenv.engine.launch import Launch, ServerProcess, Startup, start_server
from agentenv.engine.ports import answers
from agentenv.engine.server_config import ServerCommand
from agentenv.errors import EngineError, UsageError
from tests.engine.processes import command_line, is_alive, processes, until

PROGRAM = Path(__file__).with_name("fake_server.py")


def fake(mode: str = "plain", *, host: str = "127.0.0.1", **env: str) -> Callable[[int], ServerCommand]:
    def command(port: int) -> ServerCommand:
        return ServerCommand(argv=(sys.executable, str(PROGRAM), mode, host, str(port)), env=env)

    return command


def launch(folder: Path, mode: str = "plain", *, port: int = 0, timeout_s: float = 60.0, **env: str) -> Launch:
    return Launch(
        name="fake 0",
        command=fake(mode, **env),
        log_path=folder / "fake.log",
        port=port,
        timeout_s=timeout_s,
        api_key=env.get("FAKE_KEY", ""),
    )


async def test_a_server_serves_when_it_is_returned_and_is_gone_when_it_was_stopped(tmp_path):
    told: list[Startup] = []
    server = await start_server(launch(tmp_path), told=told.append)

    assert await answers(server.url + "/health", deadline_s=5) == 200
    assert server.is_running
    assert server.exit_code is None
    assert (told[-1].is_ready, told[-1].url, told[-1].line) == (True, server.url, "ready")

    await asyncio.gather(server.stop(), server.stop())
    assert not server.is_running
    assert server.exit_code == 128 + signal.SIGTERM
    assert await answers(server.url + "/health", deadline_s=5) is None
    assert not server.log_path.exists()  # nobody needs the log of a server that did its work
    await server.stop()


async def test_a_worker_that_left_the_session_of_its_server_is_ended_too(tmp_path):
    server = await start_server(launch(tmp_path, "ghost"))
    worker = int(server.log_tail()[1].split()[1])
    assert is_alive(worker)

    await server.stop()

    assert not is_alive(worker)


async def test_a_server_that_ignores_the_request_to_end_is_killed(tmp_path):
    server = await start_server(replace(launch(tmp_path, "stubborn"), grace_s=0.3))
    await server.stop()
    assert server.exit_code == 128 + signal.SIGKILL


async def test_a_killed_server_is_noticed_and_its_log_is_kept(tmp_path):
    server = await start_server(launch(tmp_path))
    (pid,) = [pid for pid in processes(str(PROGRAM)) if str(server.port) in command_line(pid)]
    os.kill(pid, signal.SIGKILL)

    async with asyncio.timeout(20):
        assert await server.wait() == 128 + signal.SIGKILL

    assert not server.is_running
    await server.stop()
    assert server.log_path.exists()


async def test_the_api_key_is_sent_and_never_shown(tmp_path):
    server = await start_server(launch(tmp_path, FAKE_KEY="k-123456"))
    await server.stop()

    with pytest.raises(EngineError) as caught:
        await start_server(launch(tmp_path, "say:my key is k-123456", FAKE_KEY="k-123456"))
    assert "my key is [secret]" in str(caught.value)
    assert "k-123456" not in str(caught.value)
    assert (tmp_path / "fake.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("line", "kind", "remedy"),
    [
        ("something odd", EngineError, "something odd"),
        ("ModuleNotFoundError: No module named 'vllm'", UsageError, "agentenv engines install"),
        ("/usr/bin/python3: No module named sglang", UsageError, "agentenv engines install"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", EngineError, "lower engine.cache_tokens"),
        ("OSError: /x does not appear to have a file named config.json", UsageError, "name a folder with config.json"),
        ("server.py: error: unrecognized arguments: --frobnicate", UsageError, "check engine.options"),
        ("ValueError: User-specified max_model_len (9) is greater than the derived", UsageError, "engine.max_length"),
        ("RuntimeError: Failed to infer device type", UsageError, "set engine.device to cpu"),
    ],
)
async def test_a_server_that_ends_early_says_its_last_words_and_what_to_do(tmp_path, line, kind, remedy):
    with pytest.raises(kind) as caught:
        await start_server(launch(tmp_path, f"say:{line}"))
    assert type(caught.value) is kind
    assert "fake 0 ended with code 1" in str(caught.value)
    assert line in str(caught.value)
    assert remedy in str(caught.value)
    assert str(tmp_path / "fake.log") in str(caught.value)


async def test_a_warning_far_above_is_not_taken_for_the_cause(tmp_path):
    text = "WARNING: failed with ModuleNotFoundError(\"No module named 'vllm._C'\")\nEOFError: something else"
    with pytest.raises(EngineError) as caught:
        await start_server(launch(tmp_path, f"say:{text}"))
    assert "Likely cause" not in str(caught.value)


async def test_the_line_that_tells_the_cause_is_shown_also_from_far_above(tmp_path):
    text = "\n".join(["MemoryError: no room for the cache", *(f"line {i}" for i in range(50))])
    with pytest.raises(EngineError, match=r"lower engine\.cache_tokens") as caught:
        await start_server(launch(tmp_path, f"say:{text}"))
    assert "MemoryError: no room for the cache" in str(caught.value)
    assert "line 49" in str(caught.value)
    assert "line 12" not in str(caught.value)


async def test_a_program_that_does_not_exist_is_a_mistake_of_the_set_up(tmp_path):
    missing = Launch(
        name="fake 0", command=lambda port: ServerCommand(argv=("/no/such/python",)), log_path=tmp_path / "log"
    )
    with pytest.raises(UsageError, match=r"set engine\.python"):
        await start_server(missing)


async def test_a_server_that_never_serves_is_ended_at_the_deadline_and_its_log_is_kept(tmp_path):
    with pytest.raises(EngineError, match=r"did not serve within 1 s"):
        await start_server(launch(tmp_path, "never", timeout_s=1.0))
    assert "mode never" in (tmp_path / "fake.log").read_text()
    assert not processes(str(PROGRAM), "never")


async def test_cancelling_a_start_ends_the_server(tmp_path):
    task = asyncio.create_task(start_server(launch(tmp_path, "never")))
    assert await asyncio.to_thread(until, lambda: bool(processes(str(PROGRAM), "never")))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not processes(str(PROGRAM), "never")


async def test_a_chosen_port_that_is_taken_is_named_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} of 127\.0\.0\.1 is taken"):
            await start_server(launch(tmp_path, port=port))
    assert not (tmp_path / "fake.log").exists()


async def test_a_free_port_that_somebody_takes_in_between_is_replaced_by_another(tmp_path):
    marker = tmp_path / "port"
    server = await start_server(launch(tmp_path, f"rival:{marker}"))
    assert server.port != int(marker.read_text())
    assert await answers(server.url + "/health", deadline_s=5) == 200
    await server.stop()


async def test_an_answer_from_somebody_else_on_the_port_is_not_taken_for_our_server(tmp_path):
    other = await start_server(launch(tmp_path / "other"))
    # our server sleeps and never listens, while another one answers on its port
    pretender = Launch(name="fake 1", command=fake("never"), log_path=tmp_path / "log", timeout_s=1.5)
    process = ServerProcess(pretender, port=other.port)
    assert await answers(process.url + "/health", deadline_s=5) == 200
    with pytest.raises(EngineError, match="did not serve"):
        await process._wait_until_alive(None)
    await asyncio.gather(process.stop(), other.stop())


async def test_an_address_that_is_not_ours_is_refused(tmp_path):
    elsewhere = Launch(name="fake 0", command=fake(), log_path=tmp_path / "log", host="192.0.2.1")
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        await start_server(elsewhere)


def test_when_the_program_that_started_a_server_is_killed_the_server_goes_with_it(tmp_path):
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from agentenv.engine.launch import start_server
        from tests.engine.test_launch import launch

        async def main():
            server = await start_server(launch(Path(sys.argv[1]), "ghost"))
            print(server.port, server.log_tail()[1].split()[1], flush=True)
            await server.wait()

        asyncio.run(main())
        """
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    port, worker = owner.stdout.readline().split()
    assert is_alive(int(worker))
    owner.kill()
    owner.wait()

    assert until(lambda: not is_alive(int(worker)))
    assert until(lambda: not processes(str(PROGRAM), port))
