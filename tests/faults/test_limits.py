"""Many episodes under a bound on descriptors, or with failures: nothing runs out and nothing is left."""

import ast
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.runner import GroupSpec
from agentenv.trajectory import StopReason
from tests.faults.desk import Awaited, Inline, InThread, Told, runner_of, script, tally_of

ROOT = Path(__file__).resolve().parents[2]

SERVER = """
import asyncio, json, sys
from aiohttp import web
async def main():
    body = json.dumps({"ids": json.loads(sys.argv[1]), "version": 0}).encode()
    async def generate(request):
        await request.read()
        await asyncio.sleep(0.2)
        return web.Response(body=body, content_type="application/json")
    app = web.Application()
    app.router.add_post("/generate", generate)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
PLAYER = """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.http import JsonClient
from agentenv.engine.server_config import ServerConfig
from agentenv.renderer import Renderer
from tests.engine.http_engine_client import HttpEngine
from tests.faults.desk import Inline, Told, runner_of, tally_of
from agentenv.runner import GroupSpec
async def main():
    engine = HttpEngine(JsonClient(sys.argv[1], max_connections=4096), config=ServerConfig(name="vllm"))
    renderer = Renderer(byte_tokenizer(), family="qwen3")
    runner = runner_of(renderer, lambda which: Inline(Told()), engine=engine, max_episodes=2000)
    runner.admission.max_tokens = 10**9
    most = 0
    async def watch():
        nonlocal most
        while True:
            most = max(most, len(runner.running))
            await asyncio.sleep(0.02)
    watching = asyncio.create_task(watch())
    groups = await runner.run_all([GroupSpec(group_id=str(i), env_id="test/Harmful-v0") for i in range(2000)])
    watching.cancel()
    await engine.close()
    print(most, {r.value: n for r, n in runner.tally.num_ended.items() if n})
asyncio.run(main())
"""


@pytest.mark.faults
@pytest.mark.fault(
    "2,000 rollouts at once under 1,024 descriptors", then="every one is scored", metric="agentenv_episodes_total"
)
def test_more_rollouts_than_descriptors_wait_for_connections_and_all_are_scored(renderer):
    from agentenv.messages import Message

    ids = str(list(renderer.turn_ids(Message(role="assistant", content="done"))))
    server = subprocess.Popen([sys.executable, "-c", SERVER, ids], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        played = subprocess.run(
            [sys.executable, "-c", PLAYER, url], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
        )
    finally:
        server.kill()
        server.communicate()
    assert played.returncode == 0, played.stderr[-2000:]
    most, _, ended = played.stdout.strip().partition(" ")
    assert int(most) == 2000
    assert ended == "{'completed': 2000}"


def left_behind() -> dict[str, int]:
    """Count what this process holds."""
    children = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "processes": len(children),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
        "tasks": len(asyncio.all_tasks()),
    }


@pytest.mark.fault(
    "500 episodes, of which 10 % fail",
    then="no growth in descriptors, threads, processes, temporary files, tasks",
    metric="agentenv_episodes_total",
)
async def test_failures_leave_nothing_behind(renderer):
    places = ["setup", "step", "tool", "reward", "close"]

    def fail() -> None:
        raise OSError("every tenth")

    def make(which):
        index = int(which.group_id)
        kind = (Inline, InThread, Awaited)[index % 3]
        return kind(Told(places[index // 10 % 5], fail) if index % 10 == 9 else Told())

    engine = ScriptedEngine(script(renderer), faults=Faults())
    runner = runner_of(renderer, make, engine=engine, max_episodes=32)

    async def play(first: int, count: int) -> None:
        specs = [GroupSpec(group_id=str(i), env_id="test/Harmful-v0") for i in range(first, first + count)]
        async with asyncio.timeout(60):
            await runner.run_all(specs)

    await play(0, 200)  # threads are made when they are first needed
    before = left_behind()
    await play(200, 500)
    after = left_behind()
    after["temporary files"] = min(after["temporary files"], before["temporary files"])  # others use the folder too
    assert after["threads"] <= max(before["threads"], 64 + 8)
    assert {**after, "threads": 0} == {**before, "threads": 0}
    assert tally_of(runner).num_ended[StopReason.COMPLETED] == 630
    assert sum(tally_of(runner).num_ended.values()) == 700
    assert not runner.running
    assert engine._turns == {}  # every session was ended


def test_no_deadline_is_read_from_the_wall_clock():
    """`time.time` and `datetime.now` jump; they may stamp what is shown, and nothing else."""
    stamps = {"agentenv/metrics_log.py", "agentenv/tool.py", "agentenv/agent/endpoint.py", "trainers/timeline.py"}
    found = set()
    for folder in ("agentenv", "trainers", "envs", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and f"{ast.unparse(node.value)}.{node.attr}" in (
                    "time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow",
                ):  # fmt: skip
                    found.add(str(path.relative_to(ROOT)))
    assert {path for path in found if not path.startswith("agentenv/trainers")} <= stamps


JUMPING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <sys/time.h>
static int calls = 0;
int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(which, now);
    if (which == CLOCK_REALTIME) now->tv_sec += (calls++ % 2 ? -1 : 1) * 86400;
    return code;
}
"""
UNDER_JUMPS = """
import asyncio, sys, time
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.episode import Limits
from agentenv.metrics_log import MetricsLog, read_metrics
from agentenv.renderer import Renderer
from tests.faults.desk import Awaited, InThread, Told, bad_then_good
jumps = [time.time() for _ in range(4)]
assert max(jumps) - min(jumps) > 86400, "the clock does not jump"
renderer = Renderer(byte_tokenizer(), family="qwen3")
log = MetricsLog(sys.argv[1])
for kind, harm in ((Awaited, lambda: asyncio.sleep(60)), (InThread, lambda: time.sleep(1))):
    started = time.monotonic()
    bad, runner = asyncio.run(bad_then_good(renderer, kind, Told("step", harm)))
    assert 0.3 <= time.monotonic() - started < 5
    assert 0 <= bad.metrics["episode_s"] < 5
    log.write({name.value: count for name, count in runner.tally.num_ended.items()}, step=1)
print(bad.stop_reason.value, [line.metrics["deadline"] for line in read_metrics(sys.argv[1])])
"""


@pytest.mark.fault("wall clock jumps by days", then="next episode is scored", metric="agentenv_episodes_total")
def test_deadlines_hold_while_the_wall_clock_jumps_to_and_fro(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a clock that jumps needs a C compiler")
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(JUMPING)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True, timeout=60)
    ran = subprocess.run(
        [sys.executable, "-c", UNDER_JUMPS, str(tmp_path / "metrics.jsonl")],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ran.stdout == "deadline [1.0, 1.0]\n", ran.stderr[-2000:]
