"""Programs in a fresh sandbox: what they print, how they end, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from agentenv.errors import ToolError
from agentenv.tools.sandbox.sandbox import Limits

LIMITS = Limits()


def num_processes_with(mark: str) -> int:
    """Processes of this machine whose command line holds a text."""
    found = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                found += mark.encode() in (folder / "cmdline").read_bytes()
            except OSError:
                continue
    return found


def wait_for_processes(mark: str, *, are_there: bool, timeout_s: float = 5.0) -> None:
    """Fail when processes with this mark do not come, or do not go, in that time."""
    deadline = time.monotonic() + timeout_s
    while (num_processes_with(mark) > 0) != are_there and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (num_processes_with(mark) > 0) == are_there


async def test_a_program_is_given_its_input_and_tells_its_output_and_exit_code(backend):
    code = "import sys; print(sys.stdin.read().upper()); print('no', file=sys.stderr); sys.exit(3)"
    completed = await backend.execute(code, stdin="hä", limits=LIMITS)
    assert (completed.ending, completed.exit_code, completed.signal) == ("exited", 3, None)
    assert (completed.stdout, completed.stderr) == ("HÄ\n", "no\n")
    assert not completed.is_success


async def test_an_exception_ends_a_program_with_its_own_traceback_and_nothing_of_ours(backend):
    completed = await backend.execute("def f():\n    return 1 / 0\nf()\n", limits=LIMITS)
    assert completed.exit_code == 1
    assert completed.stderr == (
        "Traceback (most recent call last):\n"
        '  File "main.py", line 3, in <module>\n'
        "    f()\n"
        '  File "main.py", line 2, in f\n'
        "    return 1 / 0\n"
        "           ~~^~~\n"
        "ZeroDivisionError: division by zero\n"
    )


async def test_a_program_runs_as_main_with_what_python_usually_offers(backend):
    code = (
        "import atexit, threading\n"
        "atexit.register(print, 'exit hook')\n"
        "threading.Timer(0.05, print, ['thread']).start()\n"
        "print(__name__)\n"
        "if __name__ == '__main__': exit()\n"
    )
    completed = await backend.execute(code, limits=LIMITS)
    assert (completed.exit_code, completed.stdout) == (0, "__main__\nthread\nexit hook\n")


async def test_its_own_kill_is_a_signal_and_no_timeout(backend):
    completed = await backend.execute("import os; os.kill(os.getpid(), 9)", limits=LIMITS)
    assert (completed.ending, completed.exit_code, completed.signal) == ("signal", None, 9)


async def test_a_request_to_end_is_a_signal_too(backend):
    completed = await backend.execute("import os; os.kill(os.getpid(), 15)", limits=LIMITS)
    assert (completed.ending, completed.signal) == ("signal", 15)


async def test_code_is_never_root_even_where_nothing_isolates_it(backend):
    completed = await backend.execute("import os; print(os.geteuid() == 0 or os.getuid() == 0)", limits=LIMITS)
    assert completed.stdout == "False\n"


async def test_a_crash_of_the_interpreter_is_a_signal(backend):
    completed = await backend.execute("import ctypes; ctypes.string_at(0)", limits=LIMITS)
    assert (completed.ending, completed.signal) == ("signal", 11)


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True:\n  try:\n    while True: pass\n  except: pass",
        "import atexit, time; atexit.register(time.sleep, 60)",
        "10 ** 10 ** 9",
    ],
)
async def test_a_program_past_its_deadline_is_ended_and_the_next_one_runs(backend, code):
    started = time.monotonic()
    completed = await backend.execute(code, limits=Limits(wall_s=0.5))
    assert completed.ending == "timeout"
    assert time.monotonic() - started < 8
    assert (await backend.execute("print(1)", limits=LIMITS)).stdout == "1\n"


async def test_a_single_allocation_beyond_the_limit_is_refused_by_python_itself(backend):
    completed = await backend.execute("x = bytearray(2 << 30)", limits=LIMITS)
    assert completed.exit_code == 1
    assert "MemoryError" in completed.stderr


async def test_children_that_share_the_memory_limit_are_ended_when_they_pass_it_together(backend):
    code = (
        "import os, time\n"
        "for _ in range(6):\n"
        "    if os.fork() == 0:\n"
        "        x = bytearray(b'1') * (100 << 20)\n"
        "        time.sleep(30)\n"
        "time.sleep(30)\n"
    )
    completed = await backend.execute(code, limits=Limits(memory_bytes=256 << 20))
    assert completed.ending == "memory"


async def test_what_is_within_the_limits_works(backend):
    code = "import subprocess; x = bytes(300 << 20); print(len(x) >> 20, subprocess.check_output(['echo', 'hi']))"
    assert (await backend.execute(code, limits=LIMITS)).stdout == "300 b'hi\\n'\n"


async def test_a_flood_of_output_is_drained_and_kept_at_both_ends(backend):
    code = "import sys\nfor i in range(300_000): print(f'line {i:06}')"
    completed = await backend.execute(code, limits=Limits(output_bytes=1000))
    # 300,000 lines of 12 bytes, of which 1,000 bytes are kept
    assert "\n[... 3599000 bytes omitted]\n" in completed.stdout
    assert completed.stdout.startswith("line 000000\n")
    assert completed.stdout.endswith("line 299999\n")
    assert len(completed.stdout) < 1100


async def test_bytes_that_are_no_text_and_control_codes_are_shown_as_escapes(backend):
    code = r"import os; os.write(1, b'\xff\x1b[31mred\x00\r\n')"
    completed = await backend.execute(code, limits=LIMITS)
    assert completed.stdout == "\N{REPLACEMENT CHARACTER}\\x1b[31mred\\x00\n"


async def test_a_daemon_that_holds_the_output_neither_delays_the_end_nor_outlives_it(backend):
    mark = f"1{os.getpid()}.25"
    code = (
        "import os, subprocess\n"
        f"subprocess.Popen(['sh', '-c', 'setsid sleep {mark} & setsid sleep {mark} &'])\n"
        "import time; time.sleep(0.3)\nprint('done')"
    )
    started = time.monotonic()
    completed = await backend.execute(code, limits=LIMITS)
    assert completed.stdout == "done\n"
    assert time.monotonic() - started < 8
    assert num_processes_with(mark) == 0


async def test_a_program_that_is_no_python_fails_as_python_says_it(backend):
    completed = await backend.execute("def (", limits=LIMITS)
    assert completed.exit_code == 1
    assert "SyntaxError" in completed.stderr


async def test_a_program_longer_than_a_message_is_refused(backend):
    with pytest.raises(ToolError, match="too long"):
        await backend.execute("#" * (2 << 20), limits=LIMITS)


async def test_input_of_any_length_arrives_also_when_nobody_reads_it(backend):
    text = "x" * 3_000_000
    read = await backend.execute("import sys; print(len(sys.stdin.read()))", stdin=text, limits=LIMITS)
    assert read.stdout == "3000000\n"
    assert (await backend.execute("print('unread')", stdin=text, limits=LIMITS)).stdout == "unread\n"


async def test_two_programs_draw_different_random_numbers_and_share_no_files(backend):
    code = "import os, random; print(random.random(), os.path.exists('mine')); open('mine', 'w').close()"
    first, second = [(await backend.execute(code, limits=LIMITS)).stdout.split() for _ in range(2)]
    assert first[0] != second[0]
    assert first[1] == second[1] == "False"


async def test_a_cancelled_program_leaves_nothing_alive(backend):
    for delay_s in (0.0, 0.005, 0.05, 0.3):
        mark = f"2{os.getpid()}.{int(delay_s * 1000)}9"
        code = f"import subprocess; subprocess.run(['sleep', '{mark}'])"
        task = asyncio.create_task(backend.execute(code, limits=LIMITS))
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_for_processes, mark, are_there=False)
    assert (await backend.execute("print(1)", limits=LIMITS)).stdout == "1\n"


async def test_many_programs_at_once_wait_for_their_turn(backend):
    all_done = await asyncio.gather(*(backend.execute(f"print({i})", limits=LIMITS) for i in range(20)))
    assert [completed.stdout for completed in all_done] == [f"{i}\n" for i in range(20)]


async def test_programs_leave_no_descriptors_behind(backend):
    await backend.execute("print(1)", limits=LIMITS)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await backend.execute("print(1)", stdin="x", limits=LIMITS)
    assert len(os.listdir("/proc/self/fd")) <= before
