"""The Docker and Podman back ends against a stand-in engine on a real unix socket; it runs process 1 as nobody."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentenv.errors import SandboxError, SandboxUnavailable, UsageError
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.code_tests import CallTest, run_tests
from agentenv.tools.sandbox.choice import make_backend
from agentenv.tools.sandbox.container import ContainerBackend
from agentenv.tools.sandbox.sandbox import Limits
from tests.tools.sandbox.engine_stand_in import Engine, engine_stand_in

LIMITS = Limits(wall_s=30.0)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with engine_stand_in() as engine:
        yield engine


@pytest.fixture
async def backend(engine: Engine) -> AsyncIterator[ContainerBackend]:
    backend = ContainerBackend(name="docker", socket=engine.socket, call_s=30.0)
    yield backend
    await backend.close()


async def test_a_program_runs_in_a_container_that_is_gone_afterwards(engine: Engine, backend: ContainerBackend):
    done = await backend.execute("import sys; print(input() * 2); sys.exit(3)", stdin="ab\n", limits=LIMITS)
    assert (done.ending, done.exit_code, done.stdout, done.stderr) == ("exited", 3, "abab\n", "")
    assert [call.split("/")[0] + call.split("/")[-1][:6] for call in engine.asked] == [
        "POST create",
        "POST attach",
        "POST start",
        "GET json",
        "DELETE agente",
    ]
    assert engine.containers == {}


async def test_containers_are_asked_for_with_every_lock(engine: Engine, backend: ContainerBackend):
    limits = Limits(wall_s=30.0, memory_bytes=64 << 20, processes=16, descriptors=100, work_bytes=1 << 20, work_files=9)
    await backend.execute("pass", limits=limits)
    (asked,) = engine.specifications
    assert asked["User"] == "65534:65534"
    assert asked["WorkingDir"] == "/work"
    assert asked["NetworkDisabled"] is True
    assert not asked["Tty"]
    host = asked["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Privileged"] is False
    assert host["PidsLimit"] == 16 + 8
    assert host["Memory"] == host["MemorySwap"] == 64 << 20
    assert host["Tmpfs"] == {
        "/work": "rw,exec,nosuid,nodev,size=1048576,nr_inodes=9,uid=65534,gid=65534,mode=0755",
        "/tmp": "rw,exec,nosuid,nodev,size=1048576,nr_inodes=9,mode=1777",
    }
    assert host["Ulimits"][0] == {"Name": "nofile", "Soft": 100, "Hard": 100}
    assert not {"Binds", "Mounts", "CapAdd", "Devices", "VolumesFrom", "PidMode"} & host.keys()


async def test_endings_are_told_apart(engine: Engine, backend: ContainerBackend):
    killed = await backend.execute("import os; os.kill(os.getpid(), 11)", limits=LIMITS)
    assert (killed.ending, killed.signal) == ("signal", 11)
    late = await backend.execute("print('begun', flush=True)\nwhile True: pass", limits=Limits(wall_s=1.0))
    assert (late.ending, late.stdout) == ("timeout", "begun\n")
    engine.is_out_of_memory = True
    heavy = await backend.execute("import os; os.kill(os.getpid(), 9)", limits=LIMITS)
    assert heavy.ending == "memory"
    fine = await backend.execute("print(1)", limits=LIMITS)
    assert (fine.ending, fine.exit_code) == ("exited", 0)


async def test_output_is_bounded_and_a_child_that_holds_it_does_not_delay(backend: ContainerBackend):
    code = "import os, time\nprint('x' * 500_000, flush=True)\nif os.fork() == 0: time.sleep(60)"
    done = await backend.execute(code, limits=Limits(wall_s=30.0, output_bytes=1000))
    assert done.ending == "exited"
    assert "bytes omitted]" in done.stdout
    assert len(done.stdout) < 1100
    assert done.wall_s < 20


async def test_programs_see_nothing_of_the_image_and_may_be_long(backend: ContainerBackend):
    done = await backend.execute("import os; print(sorted(os.environ))\n" + "# long\n" * 40_000, limits=LIMITS)
    assert done.stdout == "['HOME', 'LANG', 'PATH', 'TMPDIR']\n"
    # process 1 cannot be read: its memory holds the call, its descriptors the answer
    code = "import os\ntry:\n    os.listdir(f'/proc/{os.getppid()}/fd')\nexcept PermissionError:\n    print('locked')"
    assert (await backend.execute(code, limits=LIMITS)).stdout == "locked\n"


async def test_the_folder_of_an_episode_travels_with_its_commands(engine: Engine, backend: ContainerBackend):
    sandbox = await backend.open(limits=LIMITS)
    await sandbox.write_file("in.txt", b"one\x00two")
    done = await sandbox.run(["sh", "-c", "cp in.txt out.txt; cat; exit 5"], stdin="ä")
    assert (done.ending, done.exit_code, done.stdout) == ("exited", 5, "ä")
    assert await sandbox.read_file("out.txt") == b"one\x00two"
    assert [info.path for info in await sandbox.list_files()] == ["in.txt", "out.txt"]
    with pytest.raises(UsageError, match="docker has no persistent interpreter"):
        await sandbox.python("1")
    await sandbox.close()
    assert engine.containers == {}


async def test_programs_are_graded_in_containers(backend: ContainerBackend):
    tests = [CallTest(args=(2,), expected=4), CallTest(args=(3,), expected=10)]
    report = await run_tests("def f(x): return x * x", tests, entry_point="f", limits=LIMITS, backend=backend)
    assert (report.passed, report.total) == (1, 2)


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        ("POST /containers/create", 404, "POST /containers/create: status 404: .*told to answer 404"),
        ("POST attach", 409, "attach: status 409"),
        ("POST start", 500, "start: status 500"),
        ("GET json", 500, "json: status 500"),
    ],
)
async def test_what_an_engine_refuses_is_no_verdict_on_the_program(
    call: str, status: int, message: str, engine: Engine, backend: ContainerBackend
):
    engine.answers[call] = status
    with pytest.raises(SandboxError, match=message):
        await backend.execute("print(1)", limits=LIMITS)
    assert engine.containers == {}


async def test_an_engine_that_hangs_is_given_up(engine: Engine):
    backend = ContainerBackend(name="podman", socket=engine.socket, call_s=0.3)
    engine.answers["POST start"] = 0
    with pytest.raises(SandboxError, match=r"start: no answer within 0\.3 s"):
        await backend.execute("print(1)", limits=LIMITS)
    assert engine.containers == {}
    await backend.close()


async def test_a_container_that_does_not_get_ready_is_no_verdict_on_the_program(engine: Engine):
    backend = ContainerBackend(name="docker", socket=engine.socket, call_s=30.0, start_s=1.0)
    engine.first = "import time; time.sleep(60)"
    with pytest.raises(SandboxError, match="was not ready within 1 s"):
        await backend.execute("print(1)", limits=LIMITS)
    engine.first = "import sys; sys.exit('no such thing')"
    with pytest.raises(SandboxError, match="ended at once: no such thing"):
        await backend.execute("print(1)", limits=LIMITS)
    assert engine.containers == {}
    await backend.close()


async def test_a_program_that_ends_its_container_has_failed(engine: Engine, backend: ContainerBackend):
    engine.first = "import sys; print('ready', flush=True); sys.stdin.buffer.readline()"
    done = await backend.execute("print(1)", limits=LIMITS)
    assert (done.ending, done.signal, done.stdout) == ("signal", 9, "")
    assert done.stderr == "The container ended before the program did."
    engine.first = "import sys; print('ready', flush=True); sys.stdin.buffer.readline(); print('{\"code\": []}')"
    assert (await backend.execute("print(1)", limits=LIMITS)).ending == "signal"
    engine.is_out_of_memory = True
    assert (await backend.execute("print(1)", limits=LIMITS)).ending == "memory"


async def test_a_caller_that_gives_up_leaves_no_container(engine: Engine, backend: ContainerBackend):
    task = asyncio.ensure_future(backend.execute("import time; time.sleep(60)", limits=LIMITS))
    async with asyncio.timeout(30):
        await engine.has_started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.containers == {}


async def test_engines_are_found_by_their_sockets(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AGENTENV_SANDBOX_IMAGE", "ours:1")
    for name in ("docker", "podman"):
        backend = make_backend(SandboxSettings(backend=name, url=f"unix://{engine.socket}"), name)
        assert (backend.name, backend.isolation) == (name, "strong")
        assert (await backend.execute("print(1)", limits=LIMITS)).stdout == "1\n"
        await backend.close()
    assert [asked["Image"] for asked in engine.specifications] == ["ours:1", "ours:1"]
    with pytest.raises(SandboxUnavailable, match=r"there is no socket of docker at .*nowhere"):
        make_backend(SandboxSettings(backend="docker", url=str(tmp_path / "nowhere")), "docker")
