"""Starts real processes that form a gloo process group, each wait with its deadline."""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def process_context() -> Any:
    """Return where processes come from: a server that has imported torch once and forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "agentenv.trainers.channel", "tests.trainers.parallel_runs"])
    return context


def run_ranks(function: Callable[..., Any], *args: Any, num_ranks: int = 2, timeout_s: float = 100.0) -> list[Any]:
    """Call a function of a module in every rank of a gloo group; returns what each returned, in order of ranks."""
    context = process_context()
    results = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_rank, args=(function, args, rank, num_ranks, port, results), daemon=True)
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    try:
        return _collect(results, num_ranks=num_ranks, timeout_s=timeout_s)
    finally:
        for process in processes:
            process.join(timeout=5)
            process.kill()


def _collect(results: Any, *, num_ranks: int, timeout_s: float) -> list[Any]:
    deadline = time.monotonic() + timeout_s
    found: dict[int, Any] = {}
    while len(found) < num_ranks:
        try:
            rank, value, error = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"only ranks {sorted(found)} of {num_ranks} answered in {timeout_s} s") from None
        assert error is None, f"rank {rank} failed:\n{error}"
        found[rank] = pickle.loads(value)
    return [found[rank] for rank in range(num_ranks)]


def _rank(function: Callable[..., Any], args: tuple, rank: int, num_ranks: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    try:
        store = TCPStore("127.0.0.1", port, num_ranks, rank == 0, timeout=timedelta(seconds=60))
        distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=num_ranks, timeout=timedelta(seconds=60)
        )
        # as bytes: tensors would be handed over in memory that goes with this process
        results.put((rank, pickle.dumps(function(*args)), None))
        distributed.barrier()
        distributed.destroy_process_group()
    except BaseException:  # what went wrong must reach the test
        results.put((rank, None, traceback.format_exc()))
        raise
