"""Runs a whole configuration on a Ray cluster: the driver is a task on its head node, the terminal shows its lines.

`cluster_ray.py` holds what the driver does with Ray; no other file imports it.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import ray
import transformers
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agentenv.errors import ClusterError, UsageError, describe
from agentenv.memory import relax_garbage_collection
from agentenv.progress import PlainProgress
from agentenv.trainers.cluster_layout import check_fits
from agentenv.trainers.cluster_ranks import enter
from agentenv.trainers.cluster_ray import failure, node_resources, passed_variables
from agentenv.trainers.cluster_site import layout_of
from agentenv.trainers.config import ClusterConfig, RunConfig
from agentenv.trainers.pipeline import RunResult, run_pipeline
from agentenv.trainers.run_report import write_run_report

SAVE_TIMEOUT_S = 600.0
"""Seconds that the driver may take to save after Ctrl-C."""
_HEAD = "node:__internal_head__"  # the resource by which Ray marks its head node
_SMALLEST_STORE, _LARGEST_STORE = 100 * 2**20, 16 * 2**30


def train_on_cluster(config: RunConfig, *, resume: bool) -> tuple[RunResult, Path]:
    """Run a configuration whose cluster section names a cluster, to its end.

    Ctrl-C lets the driver save a checkpoint; a second one does not wait for it.

    Returns:
        The result, and the report's path on the driver's node.

    Raises:
        UsageError: no cluster answers, or it is too small; nothing was started.
        ClusterError: a part of the run failed or was lost.
        KeyboardInterrupt: after Ctrl-C.
    """
    assert isinstance(config.cluster, ClusterConfig)
    with connected(config.cluster.address):
        check_fits(layout_of(config), node_resources())
        head = next(node["NodeID"] for node in ray.nodes() if _HEAD in node["Resources"])
        task: Any = ray.remote(cast(Any, drive))  # ray's types know no keyword-only parameters
        driver = task.options(
            num_cpus=0,
            max_retries=0,
            runtime_env={"env_vars": passed_variables()},
            scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=False),
        )
        return _awaited(driver.remote(config, resume=resume, folder=os.getcwd()))


def drive(config: RunConfig, *, resume: bool, folder: str) -> tuple[RunResult, Path] | None:
    """Be the driver; returns None where Ctrl-C ended the run.

    Args:
        config: of the run.
        resume: go on in its folder.
        folder: the launching process's working folder, which relative paths begin in.
    """
    enter(folder, threads=config.num_threads)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    transformers.utils.logging.disable_progress_bar()
    relax_garbage_collection()
    try:
        result = run_pipeline(config, resume=resume, display=PlainProgress(sys.stdout))
    except KeyboardInterrupt:
        return None
    return result, write_run_report(result, config)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a cluster; a connection that exists is used and left as it is.

    Raises:
        UsageError: none answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # progress lines look alike, and each is wanted
    try:
        if address == "local":
            ray.init(address=address, include_dashboard=False, object_store_memory=_store_bytes())
        else:
            ray.init(address=address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster answers at cluster.address {address!r} ({describe(error)}). Start one with `ray start "
            "--head`, or take address=local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _awaited(task: ray.ObjectRef) -> tuple[RunResult, Path]:
    try:
        done = ray.get(task)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopping; the driver saves a checkpoint (Ctrl-C again does not wait for it)\n")
        # not recursive: the ranks are needed for the checkpoint
        ray.cancel(task, force=False, recursive=False)
        done = _result(task, timeout_s=SAVE_TIMEOUT_S)
        if done is not None:
            return done  # it had ended in the same moment
        raise
    except RayTaskError as error:
        raise failure(error, who="the driver", verb="the run") from None
    except RayError as error:
        raise ClusterError(f"the driver was lost: {describe(error)}. Go on with --resume") from None
    if done is None:
        raise KeyboardInterrupt
    return done


def _result(task: ray.ObjectRef, *, timeout_s: float) -> tuple[RunResult, Path] | None:
    try:
        return ray.get(task, timeout=timeout_s)
    except RayError as error:
        sys.stderr.write(f"the driver did not end in order: {describe(error)}\n")
        return None


def _store_bytes() -> int:
    """Return the size of our own cluster's object store: most of /dev/shm, which containers keep small."""
    free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else _SMALLEST_STORE
    return min(_LARGEST_STORE, max(_SMALLEST_STORE, int(0.6 * free)))
