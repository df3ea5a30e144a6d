"""torch's profiler over chosen updates, and what the GPU's memory is used for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from agentenv.errors import describe

_log = logging.getLogger(__name__)

_SNAPSHOT_EVENTS = 100_000


@contextlib.contextmanager
def profiled(folder: Path, *, step: int, is_chosen: bool) -> Iterator[None]:
    """Profile this block as update `step`.

    Writes `step-N.json`, a Chrome trace of every operator, and on a GPU also `step-N.pickle`, a
    snapshot of the allocator for https://docs.pytorch.org/memory_viz. A failure to write is told and nothing more.

    Args:
        folder: where the files go; made if it is missing.
        step: of the run, from 1.
        is_chosen: False does nothing.
    """
    if not is_chosen:
        yield
        return
    has_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu else [])]
    if has_gpu:
        torch.cuda.memory._record_memory_history(max_entries=_SNAPSHOT_EVENTS)
    taken = profile(activities=activities, record_shapes=True)
    try:
        with taken:
            yield
    finally:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if has_gpu:
                torch.cuda.memory._dump_snapshot(str(folder / f"step-{step}.pickle"))
                torch.cuda.memory._record_memory_history(enabled=None)
            taken.export_chrome_trace(str(folder / f"step-{step}.json"))
        except (OSError, RuntimeError) as error:
            _log.warning("the profile of step %d could not be written: %s", step, describe(error))
