"""Nothing that a warden started outlives its owner, whoever is killed in which way."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentenv.engine import warden
from tests.engine.processes import is_alive, until

# a process that starts another one in a session of its own; both refuse to go when asked
STUBBORN_FAMILY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1] + "/grandchild", "w").write(str(os.getpid()))
        time.sleep(300)
    os._exit(0)  # the grandchild loses its parent at once
os.wait()
open(sys.argv[1] + "/child", "w").write(str(os.getpid()))
time.sleep(300)
"""

# an owner that starts a warden over the family and then waits for its own end
OWNER = """
import os, subprocess, sys, time
command = [sys.executable, "-I", "-S", sys.argv[1], "--owner", str(os.getpid()), "--grace", "0.3", "--",
           sys.executable, "-c", sys.argv[3], sys.argv[2]]
process = subprocess.Popen(command, stdin=subprocess.PIPE)
open(sys.argv[2] + "/warden", "w").write(str(process.pid))
time.sleep(300)
"""


class Family:
    """An owner, the two processes of its warden, and what the warden started."""

    def __init__(self, folder: Path) -> None:
        arguments = [sys.executable, "-c", OWNER, warden.__file__, str(folder), STUBBORN_FAMILY]
        self.owner = subprocess.Popen(arguments)
        assert until(lambda: all(self._read(folder / name) for name in ("warden", "child", "grandchild")))
        self.warden, self.child, self.grandchild = (
            int((folder / name).read_text()) for name in ("warden", "child", "grandchild")
        )
        self.inner = int(Path(f"/proc/{self.child}/stat").read_bytes().rpartition(b")")[2].split()[1])

    @staticmethod
    def _read(path: Path) -> str:
        return path.read_text() if path.exists() else ""

    def below_the_owner(self) -> list[int]:
        return [pid for pid in (self.warden, self.inner, self.child, self.grandchild) if is_alive(pid)]


@pytest.fixture
def family(tmp_path) -> Iterator[Family]:
    family = Family(tmp_path)
    yield family
    for pid in family.below_the_owner():
        os.kill(pid, signal.SIGKILL)
    family.owner.kill()
    family.owner.wait()


def test_the_family_is_what_the_tests_below_take_it_for(family):
    assert len({family.warden, family.inner, family.child, family.grandchild}) == 4
    assert family.below_the_owner() == [family.warden, family.inner, family.child, family.grandchild]
    sessions = [os.getsid(pid) for pid in (family.warden, family.inner, family.child, family.grandchild)]
    assert len(set(sessions)) == 4


def test_when_the_owner_is_killed_nobody_below_it_survives(family):
    family.owner.kill()
    assert until(lambda: family.below_the_owner() == []), family.below_the_owner()


@pytest.mark.parametrize("part", ["warden", "inner"])
def test_when_one_half_of_the_warden_is_killed_the_other_ends_the_rest(family, part):
    os.kill(getattr(family, part), signal.SIGKILL)
    assert until(lambda: family.below_the_owner() == []), family.below_the_owner()
    assert is_alive(family.owner.pid)


def test_when_both_halves_are_killed_the_kernel_kills_the_command(family):
    os.kill(family.warden, signal.SIGSTOP)  # so that it does not end the command before it is killed itself
    os.kill(family.inner, signal.SIGKILL)
    os.kill(family.warden, signal.SIGKILL)
    assert until(lambda: not is_alive(family.child))


def test_a_signal_to_the_warden_ends_everything(family):
    os.kill(family.warden, signal.SIGTERM)
    assert until(lambda: family.below_the_owner() == []), family.below_the_owner()


def start(*command: str, grace_s: float = 0.2, owner: int | None = None) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-I", "-S", warden.__file__]
    arguments += ["--owner", str(os.getpid() if owner is None else owner), "--grace", str(grace_s), "--", *command]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_exit_code_of_the_command_comes_through():
    assert start("sh", "-c", "exit 5").wait(20) == 5
    assert start("sh", "-c", "kill -9 $$").wait(20) == 128 + 9
    missing = start("/no/such/program")
    assert missing.wait(20) == 127
    assert missing.stderr is not None
    assert b"cannot start /no/such/program" in missing.stderr.read()


def test_a_command_that_ends_by_itself_leaves_nobody_behind(tmp_path):
    process = start("sh", "-c", f"setsid sleep 300 & echo $! > {tmp_path}/pid; exit 0")
    assert process.wait(20) == 0
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_closing_the_pipe_lets_the_command_end_in_its_own_way(tmp_path):
    program = f"trap 'echo bye > {tmp_path}/said; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    process = start("sh", "-c", program, grace_s=10)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdin.close()
    assert process.wait(20) == 3
    assert (tmp_path / "said").read_text() == "bye\n"


def test_an_owner_that_is_gone_before_the_warden_looks_counts_as_gone():
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert start("sleep", "300", owner=gone.pid).wait(20) == 128 + signal.SIGTERM


def test_the_command_reads_nothing_and_gets_default_signals():
    process = start("sh", "-c", "cat; grep SigIgn /proc/self/status")
    assert process.stdout is not None
    assert process.wait(20) == 0
    ignored = int(process.stdout.read().split()[1], 16)
    assert ignored & (1 << (signal.SIGPIPE - 1)) == 0
