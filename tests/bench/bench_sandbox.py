"""Isolated execution against an unprotected subprocess, calls into persistent interpreters, their memory, and leaks.

Needs bubblewrap; without it there is nothing to measure, and one line says so.
"""

import asyncio
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import figure

from agentenv.tools.sandbox.bwrap import BwrapBackend
from agentenv.tools.sandbox.sandbox import Limits
from agentenv.tools.sandbox.zygote_process import ZygoteProcess

LIMITS = Limits()
CLIENTS = 2
ROUNDS = 5
NUMPY = "import numpy; print(numpy.zeros(2).sum())"
EPISODES_AT_ONCE = 256
WORK = "sum(i * i for i in range(60_000))"

# the same code in an interpreter that nothing protects
BARE_INTERPRETER = """
import sys
for line in sys.stdin:
    print(eval(line), flush=True)
"""


async def seconds_of(call, *, calls: int) -> float:
    """Seconds of one call, when two clients make them."""

    async def client() -> None:
        for _ in range(calls):
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return (time.perf_counter() - started) / (calls * CLIENTS)


async def ratio_to_subprocess(backend, code: str, *, calls: int) -> float:
    """How many isolated executions take the time of one cold, unprotected subprocess; taken in turns."""

    async def bare() -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
        await process.communicate()

    async def isolated() -> None:
        completed = await backend.execute(code, limits=LIMITS)
        assert completed.is_success, completed

    await isolated()
    theirs, ours = [], []
    for _ in range(ROUNDS):
        theirs.append(await seconds_of(bare, calls=calls))
        ours.append(await seconds_of(isolated, calls=calls))
    return min(theirs) / min(ours)


async def cell_ms(backend) -> float:
    """Milliseconds of one call into a persistent interpreter."""
    sandbox = await backend.open(limits=LIMITS)
    await sandbox.python("x = 1")
    best = 1e9
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(200):
            await sandbox.python("x + 1")
        best = min(best, (time.perf_counter() - started) / 200)
    await sandbox.close()
    return best * 1000


def cold_start_ms(backend) -> float:
    """Milliseconds until a zygote in bubblewrap can run code, nothing warm."""
    best = 1e9
    for _ in range(8):
        started = time.perf_counter()
        zygote = ZygoteProcess(backend.settings(), backend.start_zygote, where="bench")
        zygote.wait_ready(timeout_s=30)
        best = min(best, time.perf_counter() - started)
        zygote.close()
    return best * 1000


def below(pid: int) -> list[int]:
    """Process ids below a process."""
    found, waiting = [], [pid]
    while waiting:
        try:
            text = Path(f"/proc/{waiting[-1]}/task/{waiting.pop()}/children").read_text()
        except OSError:
            continue
        children = [int(child) for child in text.split()]
        found += children
        waiting += children
    return found


def unique_bytes(pid: int) -> int:
    """Memory that would be free if this process ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def cpu_ns(pids) -> int:
    """Nanoseconds that processes have run."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)


async def interpreter_mb(backend) -> float:
    """Unique memory of one persistent interpreter and its init, of up to 1,000 at the same time."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    count = min(1000, available // (8 << 20), (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 4)
    sandboxes = []
    for _ in range(count):
        sandbox = await backend.open(limits=LIMITS)
        sandboxes.append(sandbox)
        await sandbox.python("x = 1")
    zygote = below(backend._zygote.process.pid)
    used = sum(unique_bytes(pid) for pid in zygote[1:])
    for sandbox in sandboxes:
        await sandbox.close()
    return used / count / 1e6


async def cpu_of_sandboxed(backend) -> float:
    """CPU seconds of many episodes that call a Python tool, ours and theirs together."""
    before = time.process_time()

    async def episode():
        sandbox = await backend.open(limits=LIMITS)
        for _ in range(4):
            assert (await sandbox.python(WORK)).ending == "exited"
        return sandbox

    sandboxes = await asyncio.gather(*(episode() for _ in range(EPISODES_AT_ONCE)))
    inside = cpu_ns(below(backend._zygote.process.pid)) / 1e9
    for sandbox in sandboxes:
        await sandbox.close()
    return inside + time.process_time() - before


async def cpu_of_bare() -> float:
    """CPU seconds of the same calls into interpreters without protection."""
    before = time.process_time()

    async def episode():
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", BARE_INTERPRETER, stdin=pipe, stdout=pipe)
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(4):
            process.stdin.write(f"{WORK}\n".encode())
            await process.stdout.readline()
        return process

    processes = await asyncio.gather(*(episode() for _ in range(EPISODES_AT_ONCE)))
    inside = cpu_ns([process.pid for process in processes]) / 1e9
    for process in processes:
        process.kill()
        await process.wait()
    return inside + time.process_time() - before


async def leaks(backend, *, episodes: int) -> tuple[int, float]:
    """Processes left after many episodes, and how much our resident memory grew in the second half, in MB."""

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    async def episode() -> None:
        sandbox = await backend.open(limits=LIMITS)
        await sandbox.python("import subprocess; subprocess.Popen(['sleep', '600']); x = 1")
        await sandbox.close()

    zygote = below(backend._zygote.process.pid)[:1]
    halves = []
    for _ in range(2):
        for _ in range(episodes // 16):
            await asyncio.gather(*(episode() for _ in range(8)))
        halves.append(resident())
    left = set(below(backend._zygote.process.pid)) - set(zygote)
    return len(left), halves[1] - halves[0]


async def measure() -> list[dict]:
    backend = BwrapBackend()
    await backend.start()
    try:
        cold = cold_start_ms(backend)
        plain = await ratio_to_subprocess(backend, "print(1)", calls=15)
        numpy = await ratio_to_subprocess(backend, NUMPY, calls=6)
        cell = await cell_ms(backend)
        memory = await interpreter_mb(backend)
        # both alternately, because machines drift
        cpu = [(await cpu_of_sandboxed(backend), await cpu_of_bare()) for _ in range(2)]
        processes, grown = await leaks(backend, episodes=int(os.environ.get("SANDBOX_EPISODES", "400")))
    finally:
        await backend.close()
    return [
        figure("sandbox_cold_start_ms", cold, unit="ms", at_most=30),
        figure("sandbox_fresh_vs_subprocess", plain, unit="x", at_least=1.2),
        figure("sandbox_fresh_numpy_vs_subprocess", numpy, unit="x", at_least=6),
        figure("sandbox_cell_ms", cell, unit="ms", at_most=0.1),
        figure("sandbox_interpreter_mb", memory, unit="MB", at_most=2),
        figure("sandbox_episodes_cpu_vs_bare", min(a for a, _ in cpu) / min(b for _, b in cpu), unit="x", at_most=1.3),
        figure("sandbox_leaked_processes", processes, unit="processes", at_most=0),
        figure("sandbox_resident_growth_mb", grown, unit="MB", at_most=2),
    ]


def figures():
    """Measure everything."""
    if shutil.which("bwrap") is None or subprocess.run(["bwrap", "--version"], capture_output=True).returncode:
        return [figure("sandbox_skipped_without_bwrap", 0, unit="")]
    return asyncio.run(measure())


if __name__ == "__main__":
    import json

    for line in figures():
        print(json.dumps(line))
