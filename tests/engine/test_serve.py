"""The command that serves: says where and how, ends everything when asked, and never restarts in silence."""

import io
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentenv.engine.serve import listening_on, serve
from agentenv.engine.server_config import ServerCommand, ServerConfig
from agentenv.errors import EngineError, UsageError
from tests.engine.http_engine import make_adapter, make_model
from tests.engine.processes import processes, until

PROGRAM = "http_engine.py"

SERVE = textwrap.dedent(
    """
    import sys
    from agentenv.engine.serve import serve
    from agentenv.engine.server_config import ServerConfig
    from tests.engine.http_engine import make_adapter

    config = ServerConfig(name="vllm", python=sys.executable, replicas=int(sys.argv[2]))
    sys.exit(serve(config, model=sys.argv[1], adapter=make_adapter()))
    """
)


class Command:
    """`serve` in a process of its own, as a terminal would run it."""

    def __init__(self, model: str, *, replicas: int, cache: Path) -> None:
        self.model = model
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, model, str(replicas)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": str(cache), "COLUMNS": "200"},
        )
        self.said = ""

    def until_said(self, text: str) -> None:
        assert self.process.stdout is not None
        while text not in self.said:
            line = self.process.stdout.readline()
            assert line, f"it ended and never said {text!r}, but:\n{self.said}"
            self.said += line

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(40)
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        return code

    def servers(self) -> list[int]:
        return processes(PROGRAM, self.model)


@pytest.fixture
def model(tmp_path) -> str:
    return make_model(tmp_path / "model")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_how_to_use_and_stop_the_servers_and_stops_them_when_asked(model, tmp_path, number):
    command = Command(model, replicas=2, cache=tmp_path)
    command.until_said("Ctrl-C stops all")
    urls = re.findall(r"vllm \d serves at (http://127\.0\.0\.1:\d+)", command.said)
    assert len(urls) == 2
    assert f'engine: {{name: vllm, url: ["{urls[0]}", "{urls[1]}"]}}' in command.said
    assert len(command.servers()) == 2

    assert command.end(number) == 0

    assert "all servers are stopped" in command.said
    assert command.servers() == []


def test_a_server_that_dies_is_told_and_not_restarted_and_the_last_one_ends_the_command(model, tmp_path):
    command = Command(model, replicas=2, cache=tmp_path)
    command.until_said("Ctrl-C stops all")
    first, second = command.servers()
    os.kill(first, signal.SIGKILL)
    command.until_said("ended with code 137; 1 left")
    assert command.servers() == [second]
    os.kill(second, signal.SIGKILL)
    assert command.process.wait(40) == 1


def test_when_the_command_is_killed_its_servers_go_too(model, tmp_path):
    command = Command(model, replicas=1, cache=tmp_path)
    command.until_said("Ctrl-C stops all")
    command.end(signal.SIGKILL)
    assert until(lambda: command.servers() == [])


def quick(**values: Any) -> ServerConfig:
    return ServerConfig(name="vllm", **{"python": sys.executable, **values})


def test_a_server_that_does_not_start_ends_the_command_with_its_reason(model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (Path(model) / "broken").touch()
    screen = Console(file=io.StringIO(), width=200)
    with pytest.raises(EngineError, match="this model is broken"):
        serve(quick(replicas=2), model=model, console=screen, adapter=make_adapter())
    assert processes(PROGRAM, model) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "some-host"])
def test_an_address_that_others_reach_demands_a_key(model, host):
    with pytest.raises(UsageError, match="AGENTENV_API_KEY"):
        serve(quick(), model=model, host=host, adapter=make_adapter())


def test_servers_that_run_already_cannot_be_served(model):
    with pytest.raises(UsageError, match=r"leave engine\.url out"):
        serve(ServerConfig(name="vllm", url="http://x:1"), model=model, adapter=make_adapter())


def test_the_address_takes_the_place_of_the_one_in_the_command():
    command = ServerCommand(argv=("python", "--host", "127.0.0.1", "--port", "1"))
    assert listening_on(command, "0.0.0.0").argv == ("python", "--host", "0.0.0.0", "--port", "1")
    assert listening_on(ServerCommand(argv=("python",)), "::1").argv == ("python", "--host", "::1")
