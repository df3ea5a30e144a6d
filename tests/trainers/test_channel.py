"""Rank 0 and the ranks that follow it: commands, failures that name their rank, and deaths that end the run."""

import os
import signal
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from agentenv.errors import CheckpointError, RankError
from agentenv.trainers.board import Board
from agentenv.trainers.channel import Driver, Follower
from tests.trainers.processes import free_port, process_context

SILENCE_S, COLLECTIVE_S, DEADLINE_S = 4.0, 12.0, 60.0


def perform(verb, args):
    """What a rank does; a collective follows, as in every update."""
    rank = distributed.get_rank()
    if verb == "pid":
        pids = [None, None]
        distributed.all_gather_object(pids, os.getpid())
        return pids
    if verb == "full disk":
        raise CheckpointError("the disk is full")
    if verb == "fail" and rank == 1:
        raise ValueError("a shard of rank 1 is bad")
    if verb == "die" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    total = torch.tensor(args, dtype=torch.float64)
    distributed.all_reduce(total)
    return total.tolist()


def works_together(driver):
    return [driver.call("add", 1.0, 2.0), driver.call("add", 3.0)]


def meets_the_same_obstacle(driver):
    with pytest.raises(CheckpointError, match="the disk is full"):
        driver.call("full disk")
    return driver.call("add", 1.0)


def has_a_follower_that_fails(driver):
    with pytest.raises(RankError) as caught:
        driver.call("fail", 1.0)
    with pytest.raises(RankError, match="stopped working together: rank 1 failed in fail"):
        driver.call("add", 1.0)
    return str(caught.value)


def has_a_follower_that_dies_at_work(driver):
    with pytest.raises(RankError) as caught:
        driver.call("die", 1.0)
    return str(caught.value)


def has_a_follower_that_is_killed_while_it_waits(driver):
    os.kill(driver.call("pid")[1], signal.SIGKILL)
    with pytest.raises(RankError) as caught:
        driver.call("add", 1.0)
    return str(caught.value)


def has_a_follower_that_hangs(driver):
    pid = driver.call("pid")[1]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(RankError) as caught:
            driver.call("add", 1.0)
    finally:
        os.kill(pid, signal.SIGKILL)
    return str(caught.value)


def dies(driver):
    driver.call("add", 1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def stops_for_a_while(driver):
    driver.call("add", 1.0)
    os.kill(os.getpid(), signal.SIGSTOP)


def _rank(rank, port, script, results):
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=30))
    timeout = timedelta(seconds=COLLECTIVE_S)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    board, control = Board(store), distributed.group.WORLD
    if rank == 0:
        driver = Driver(board, control=control, world_size=2, perform=perform, silence_s=SILENCE_S)
        results.put(script(driver))
        driver.close()
    else:
        assert control is not None
        Follower(board, control=control, rank=1, perform=perform, silence_s=SILENCE_S).serve()


def play(script) -> tuple[Any, list[int | None]]:
    """Run a script on rank 0 with one follower; returns its result and the exit codes of both."""
    context = process_context()
    results, port = context.Queue(), free_port()
    board = TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False
    )  # held outside, as torchrun's agent does
    ranks = [context.Process(target=_rank, args=(rank, port, script, results), daemon=True) for rank in (0, 1)]
    deadline = time.monotonic() + DEADLINE_S
    for rank in ranks:
        rank.start()
    try:
        result = None if script in (dies, stops_for_a_while) else results.get(timeout=DEADLINE_S)
        waited = ranks[1:] if script is stops_for_a_while else ranks
        for rank in waited:
            rank.join(timeout=max(0.0, deadline - time.monotonic()))
        return result, [rank.exitcode for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
        del board


def test_every_rank_performs_a_command_and_goes_home_at_the_end():
    assert play(works_together) == ([[2.0, 4.0], [6.0]], [0, 0])


def test_an_error_that_all_meet_is_raised_as_it_is_and_the_ranks_go_on():
    assert play(meets_the_same_obstacle) == ([2.0], [0, 0])


def test_a_follower_that_raises_is_reported_with_its_rank_and_traceback():
    told, exit_codes = play(has_a_follower_that_fails)
    assert told.startswith("rank 1 failed in fail:\nTraceback")
    assert "ValueError: a shard of rank 1 is bad" in told
    assert exit_codes == [0, 0]


@pytest.mark.parametrize("script", [has_a_follower_that_dies_at_work, has_a_follower_that_is_killed_while_it_waits])
def test_a_killed_follower_ends_the_work_with_an_error_that_names_it(script):
    told, exit_codes = play(script)
    assert told.startswith("rank 1 "), told
    assert exit_codes == [0, -signal.SIGKILL]


def test_a_follower_that_hangs_ends_the_work_within_the_deadline():
    told, _ = play(has_a_follower_that_hangs)
    assert told.startswith("rank 1 has been silent for"), told


@pytest.mark.parametrize("script", [dies, stops_for_a_while])
def test_followers_of_a_dead_or_silent_driver_end_with_an_error(script):
    _, exit_codes = play(script)
    assert exit_codes[1] == 1
