"""One episode's sandbox: its interpreter, its commands, and that all ends with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agentenv.errors import SandboxError, ToolError
from agentenv.tools.sandbox.sandbox import Limits
from tests.tools.sandbox.test_program import num_processes_with, wait_for_processes

ROOT = Path(__file__).resolve().parents[3]

# 100 MiB in each of six children: only together they are too much
GREEDY_CHILDREN = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        x = bytearray(b'1') * (100 << 20)
        time.sleep(30)
time.sleep(30)
"""


# The interpreter.


async def test_variables_stay_and_the_value_of_the_last_expression_is_shown(sandbox):
    first = await sandbox.python("x = 20\nprint('hello')\nx + 1")
    assert (first.ending, first.output, first.value, first.error) == ("exited", "hello\n", "21", "")
    assert first.is_fresh
    second = await sandbox.python("x *= 2")
    assert (second.value, second.is_fresh) == ("", False)
    assert (await sandbox.python("x, None")).value == "(40, None)"
    assert (await sandbox.python("None")).value == ""


async def test_an_exception_is_told_and_the_interpreter_lives_on(sandbox):
    await sandbox.python("x = 1")
    cell = await sandbox.python("def f():\n    raise ValueError('bad')\nf()")
    assert cell.ending == "exited"
    assert cell.error == (
        "Traceback (most recent call last):\n"
        '  File "<cell 2>", line 3, in <module>\n'
        "    f()\n"
        '  File "<cell 2>", line 2, in f\n'
        "    raise ValueError('bad')\n"
        "ValueError: bad\n"
    )
    assert (await sandbox.python("exit(3)")).error.endswith("SystemExit: 3\n")
    assert (await sandbox.python("x")).value == "1"


@pytest.mark.parametrize(
    ("code", "ending", "told"),
    [
        ("import os; os._exit(0)", "closed", "The interpreter ended itself."),
        ("import os; os.kill(os.getpid(), 9)", "signal", "The interpreter was ended by signal 9."),
        ("import ctypes; ctypes.string_at(0)", "signal", "The interpreter was ended by signal 11."),
        ("while True: pass", "timeout", "The code was stopped after 0.5 s."),
        ("try:\n  while True: pass\nexcept BaseException: pass", "timeout", "The code was stopped after 0.5 s."),
        (
            "import os\nfor fd in range(3, 99):\n  try: os.write(fd, b'x' * 99)\n  except OSError: pass",
            "closed",
            "itself",
        ),
    ],
)
async def test_an_interpreter_that_ends_is_replaced_and_the_model_is_told(sandbox, code, ending, told):
    await sandbox.python("x = 1")
    cell = await sandbox.python(code, timeout_s=0.5)
    assert cell.ending == ending
    assert told in cell.error
    assert "variables are lost" in cell.error
    after = await sandbox.python("'x' in globals()")
    assert (after.value, after.is_fresh, after.ending) == ("False", True, "exited")


async def test_output_before_a_crash_is_kept_and_output_of_children_counts(sandbox):
    cell = await sandbox.python("import os; print('before'); os.system('echo child'); os.kill(os.getpid(), 9)")
    assert cell.output == "before\nchild\n"


async def test_memory_beyond_the_limit_replaces_the_interpreter(backend):
    sandbox = await backend.open(limits=Limits(memory_bytes=256 << 20))
    cell = await sandbox.python(GREEDY_CHILDREN)
    assert cell.ending == "memory"
    assert (await sandbox.python("1 + 1")).value == "2"
    await sandbox.close()


async def test_values_and_errors_of_any_shape_come_back_as_bounded_text(sandbox):
    long = await sandbox.python("'x' * 10_000_000")
    assert "characters omitted" in long.value
    assert len(long.value) < 70_000
    evil = "class E:\n  def __repr__(self): raise RuntimeError('no')\nE()"
    assert "RuntimeError: no" in (await sandbox.python(evil)).error
    worse = "class F(Exception):\n  def __str__(self): raise RuntimeError('no')\nraise F()"
    assert (await sandbox.python(worse)).ending == "exited"
    assert (await sandbox.python(r"'\ud800'.join('ab')")).value == r"'a\ud800b'"
    assert (await sandbox.python(r"print('\x1b[2J')")).output == "\\x1b[2J\n"


async def test_a_cell_that_prints_without_end_is_drained_until_its_deadline(sandbox):
    cell = await sandbox.python("while True: print('y' * 1000)", timeout_s=1.0)
    assert cell.ending == "timeout"
    assert "bytes omitted" in cell.output
    assert (await sandbox.python("1")).value == "1"


async def test_what_a_thread_prints_between_calls_is_shown_with_the_next_one(sandbox):
    await sandbox.python("import threading, time\nt = threading.Timer(0.05, print, ['late'])\nt.start()")
    await asyncio.sleep(0.3)
    assert (await sandbox.python("1")).output == "late\n"


async def test_closing_its_own_descriptors_costs_only_the_interpreter(sandbox):
    cell = await sandbox.python("import os; os.closerange(0, 256)", timeout_s=5)
    assert cell.ending == "closed"
    assert (await sandbox.python("2")).value == "2"


async def test_the_time_of_all_calls_together_is_bounded(backend):
    sandbox = await backend.open(limits=Limits(episode_s=0.6))
    assert (await sandbox.python("import time; time.sleep(0.4)")).ending == "exited"
    assert (await sandbox.python("import time; time.sleep(0.4)")).ending == "timeout"
    cell = await sandbox.python("1")
    assert (cell.ending, cell.value) == ("timeout", "")
    assert "used up" in cell.error
    assert (await sandbox.run(["true"])).ending == "timeout"
    await sandbox.close()


async def test_a_cancelled_cell_does_not_run_on(sandbox):
    for delay_s in (0.0, 0.005, 0.1):
        mark = f"3{os.getpid()}.{int(delay_s * 1000)}9"
        task = asyncio.create_task(sandbox.python(f"import subprocess; subprocess.run(['sleep', '{mark}'])"))
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_for_processes, mark, are_there=False)
        assert (await sandbox.python("7")).value == "7"


# Commands.


async def test_a_command_shares_the_folder_with_the_interpreter_but_not_its_end(sandbox):
    await sandbox.python("x = 1; open('note', 'w').write('hi')")
    completed = await sandbox.run(["sh", "-c", "cat note -; echo oops >&2; exit 4"], stdin=" there")
    assert (completed.exit_code, completed.stdout, completed.stderr) == (4, "hi there", "oops\n")
    assert (await sandbox.run(["sh", "-c", "kill -9 $$"])).signal == 9
    assert (await sandbox.python("x")).value == "1"


async def test_a_command_that_does_not_exist_fails_as_in_a_shell(sandbox):
    completed = await sandbox.run(["no-such-program"])
    assert (completed.exit_code, completed.stderr) == (127, "no-such-program: no such program\n")
    for command in ([], ["a\0b"]):
        with pytest.raises(ToolError, match="a command is"):
            await sandbox.run(command)


async def test_what_a_command_leaves_in_the_background_ends_with_it(sandbox):
    mark = f"4{os.getpid()}.25"
    completed = await sandbox.run(["sh", "-c", f"(setsid sleep {mark} &) ; setsid sleep {mark} & sleep 0.2; echo done"])
    assert completed.stdout == "done\n"
    assert num_processes_with(mark) == 0


async def test_a_folder_that_code_locks_is_its_own_problem_and_no_failure_of_the_sandbox(sandbox):
    await sandbox.run(["sh", "-c", "chmod 0 ."])
    assert (await sandbox.python("1 + 1")).value == "2"
    assert (await sandbox.run(["echo", "on"])).stdout == "on\n"
    with pytest.raises(ToolError):
        await sandbox.write_file("x", b"1")


async def test_a_command_past_its_deadline_is_ended_and_the_interpreter_lives(sandbox):
    await sandbox.python("x = 1")
    assert (await sandbox.run(["sleep", "60"], timeout_s=0.3)).ending == "timeout"
    assert (await sandbox.python("x")).value == "1"


# The end.


async def test_close_ends_everything_whenever_it_comes_and_may_be_repeated(backend):
    mark = f"5{os.getpid()}.25"
    sandbox = await backend.open(limits=Limits())
    await sandbox.python(f"import subprocess; p = subprocess.Popen(['setsid', 'sleep', '{mark}'])")
    await asyncio.to_thread(wait_for_processes, mark, are_there=True)
    running = asyncio.create_task(sandbox.run(["sleep", mark]))
    await asyncio.sleep(0.1)
    await sandbox.close()
    await sandbox.close()
    assert num_processes_with(mark) == 0
    with pytest.raises(SandboxError):
        await running
    for call in (sandbox.python("1"), sandbox.run(["true"]), sandbox.read_file("x"), sandbox.snapshot()):
        with pytest.raises(SandboxError, match="closed"):
            await call


def num_held() -> dict[str, int]:
    """Descriptors, threads, children, mounts and temporary folders of this process."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    folders = [name for parent in Path("/tmp").glob("agentenv-sandbox-*") for name in parent.iterdir()]
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": len(children),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "folders": len(folders),
    }


async def test_many_episodes_leave_nothing_behind(backend):
    async def episode() -> None:
        sandbox = await backend.open(limits=Limits())
        try:
            await sandbox.python("import subprocess; subprocess.Popen(['sleep', '60']); open('f', 'w').close()")
            await sandbox.run(["true"])
        finally:
            await sandbox.close()

    await episode()
    before = num_held()
    for _ in range(15):
        await asyncio.gather(episode(), episode())
    after = num_held()
    assert all(after[what] <= before[what] for what in after), (before, after)


async def test_a_sandbox_is_refused_on_another_event_loop(backend):
    sandbox = await backend.open(limits=Limits())
    with pytest.raises(SandboxError, match="event loop"):
        await asyncio.to_thread(lambda: asyncio.run(sandbox.read_file("x")))
    await sandbox.close()


def test_nothing_outlives_a_killed_parent(backend):
    mark = f"6{os.getpid()}.25"
    program = f"""
import asyncio, os
os.environ["AGENTENV_ALLOW_UNSANDBOXED"] = "1"
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.sandbox.choice import make_backend
from agentenv.tools.sandbox.sandbox import Limits
async def main():
    backend = make_backend(SandboxSettings(backend={backend.name!r}), {backend.name!r})
    sandbox = await backend.open(limits=Limits())
    await sandbox.python("import subprocess; subprocess.Popen(['setsid', 'sleep', '{mark}'])")
    task = asyncio.create_task(sandbox.run(["sleep", "{mark}"]))
    other = asyncio.create_task(backend.execute("import os; os.execvp('sleep', ['sleep', '{mark}'])", limits=Limits()))
    await asyncio.sleep(0.5)
    print("ready", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        assert num_processes_with(mark) >= 3
        parent.send_signal(signal.SIGKILL)
    wait_for_processes(mark, are_there=False)
