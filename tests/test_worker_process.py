"""Processes whose calls can be killed."""

import os
import signal
import sys
import threading
import time

import pytest

from agentenv.errors import UsageError
from agentenv.worker_process import WorkerDied, WorkerFailed, WorkerPool, WorkerTimeout


def work(value):
    """Do what a test asks for; runs in the process of its own."""
    if value == "hang":
        while True:
            pass
    if value == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if value == "die":
        os._exit(3)
    if value == "memory":
        return len(bytearray(1 << 40))
    if value == "print":
        sys.stdout.write("x" * 1_000_000)
        os.write(1, b"forged")
    if value == "exit":
        raise ValueError("no such thing")
    if value == "set":
        return {1, 2}
    return [value, os.getpid(), sorted(os.environ)]


@pytest.fixture
def pool():
    made = WorkerPool("tests.test_worker_process:work", max_workers=2)
    yield made
    made.close()


def test_a_process_is_used_again_and_sees_nothing_of_our_environment(pool, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "x")
    first, pid, names = pool.call("a", timeout_s=30)
    assert first == "a"
    assert pool.call("b", timeout_s=30)[1] == pid != os.getpid()
    assert "SECRET_KEY" not in names


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("hang", WorkerTimeout),
        ("stop", WorkerTimeout),
        ("die", WorkerDied),
        ("memory", WorkerFailed),
        ("exit", WorkerFailed),
        ("set", WorkerFailed),
    ],
)
def test_what_goes_wrong_in_a_call_is_told_and_the_next_call_works(pool, value, error):
    with pytest.raises(error):
        pool.call(value, timeout_s=0.5)
    assert pool.call("next", timeout_s=30)[0] == "next"


def test_what_the_function_prints_is_no_answer(pool):
    assert pool.call("print", timeout_s=30)[0] == "print"


def test_no_more_processes_run_than_allowed_and_the_wait_has_a_deadline(pool):
    pool.call("warm", timeout_s=30)

    def hang():
        with pytest.raises(WorkerTimeout):
            pool.call("hang", timeout_s=3)

    hanging = [threading.Thread(target=hang) for _ in "ab"]
    for thread in hanging:
        thread.start()
    time.sleep(1.5)
    with pytest.raises(WorkerTimeout, match="no process was free"):
        pool.call("late", timeout_s=0.2)
    for thread in hanging:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in hanging)


def test_a_killed_process_is_gone(pool):
    _, pid, _ = pool.call("a", timeout_s=30)
    with pytest.raises(WorkerTimeout):
        pool.call("hang", timeout_s=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_target_that_cannot_be_imported_is_named():
    with pytest.raises(UsageError, match=r"tests\.nowhere:work cannot be used"):
        WorkerPool("tests.nowhere:work").call(1, timeout_s=1)
    with pytest.raises(UsageError, match="max_workers is 0"):
        WorkerPool("tests.nowhere:work", max_workers=0)
