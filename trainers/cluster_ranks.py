"""Ranks: the workers of a run in processes of their own, and the learner that drives them."""

from __future__ import annotations

import asyncio
import datetime
import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, distributed

from agentenv.errors import ClusterError
from agentenv.trainers.cluster_parcel import Parcel, Shipped, packed
from agentenv.trainers.cluster_peer import (
    START_TIMEOUT_S,
    VERB_TIMEOUT_S,
    Peer,
    call_all,
    call_all_watched,
    first_failure,
)
from agentenv.trainers.config import RunConfig
from agentenv.trainers.parallel import COLLECTIVE_TIMEOUT_S, Ranks, lay_out_ranks
from agentenv.trainers.phase import Phase, device_of, phase_model, phase_worker
from agentenv.trainers.sample import Sample
from agentenv.trainers.state import load_state, save_state
from agentenv.trainers.worker import UpdatePlan, Worker


class Rank:
    """One rank in its process: joins the process group, then holds policy and worker.

    Args:
        config: of the run.
        rank: own number.
        world_size: number of ranks.
        folder: the launching process's working folder; relative paths of the configuration begin there.
    """

    def __init__(self, config: RunConfig, *, rank: int, world_size: int, folder: str) -> None:
        enter(folder, threads=config.num_threads)
        self.config, self.rank, self.world_size = config, rank, world_size
        self._worker: Worker | None = None
        self._ranks: Ranks | None = None

    def alive(self) -> bool:
        """Answer; runs beside whatever the rank computes."""
        return True

    def sees(self, path: str) -> bool:
        """True where a file that the driver wrote is there: ranks and driver share the run's folder."""
        return Path(path).is_file()

    def gpus(self) -> str:
        """Return what CUDA_VISIBLE_DEVICES says here: whoever shares the GPU needs the same."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def free_port(self) -> int:
        """Return a port of this node where a process group can meet."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return probe.getsockname()[1]

    def join(self, host: str, port: int) -> None:
        """Join the process group at an address; a single rank has one only where it shards for itself."""
        parallel = self.config.trainer.parallel
        if self.world_size == 1 and not parallel.needs_sharding:
            return
        device = torch.device(device_of(self.config.model.device))  # Ray shows a rank its own GPU alone
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{host}:{port}",
            rank=self.rank,
            world_size=self.world_size,
            timeout=datetime.timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        )
        self._ranks = lay_out_ranks(parallel, device=device)

    def open(self, phase: Phase) -> None:
        """Make the worker of a phase from the weights that it begins with; the one before it is freed first."""
        self._worker = None
        model = phase_model(phase, ranks=self._ranks)
        self._worker = phase_worker(phase, policy=model, ranks=self._ranks)

    def update(self, samples: Sequence[Sample], plan: UpdatePlan) -> tuple[dict[str, float], int]:
        """Train on a batch; returns the metrics and the optimizer steps taken so far."""
        metrics = self.worker.update(samples, plan=plan)
        return metrics, self.worker.optimizer_steps

    def weights(self) -> Parcel | None:
        """Return the whole parameters on rank 0; every rank takes part in gathering them."""
        weights = self.worker.weights()
        return packed(weights) if self.rank == 0 else None

    def save(self, folder: str) -> None:
        """Write the rank's shards; see `Learner.save`."""
        save_state(Path(folder), model=self.worker.model, optimizer=self.worker.optimizer, group=self._group)

    def load(self, folder: str, optimizer_steps: int) -> None:
        """Read the rank's shards; see `Learner.load`."""
        load_state(Path(folder), model=self.worker.model, optimizer=self.worker.optimizer, group=self._group)
        self.worker.optimizer_steps = optimizer_steps

    @property
    def _group(self) -> distributed.ProcessGroup | None:
        return None if self._ranks is None else self._ranks.control

    @property
    def worker(self) -> Worker:
        """The worker of the phase that began."""
        assert self._worker is not None, "open comes first"
        return self._worker


class RankLearner:
    """Trains through ranks elsewhere. Implements `agentenv.trainers.learner.Learner`.

    Args:
        ranks: one per rank, in order, each with its worker.
        put: lays a value where every rank can read it, once, and returns the reference.
    """

    def __init__(self, ranks: Sequence[Peer], *, put: Callable[[object], object]) -> None:
        self._ranks = ranks
        self._put = put
        self._optimizer_steps = 0

    @property
    def optimizer_steps(self) -> int:
        """See `Learner.optimizer_steps`."""
        return self._optimizer_steps

    async def update(self, samples: Sequence[Sample], *, plan: UpdatePlan) -> dict[str, float]:
        """See `Learner.update`.

        Raises:
            ClusterError: a rank failed, hangs or is lost, or the ranks no longer hold the same weights.
        """
        work = asyncio.ensure_future(self._update(list(samples), plan))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # the ranks go on to the end of the step: what is saved next must count it
            await asyncio.gather(work, return_exceptions=True)
            raise

    async def _update(self, samples: list[Sample], plan: UpdatePlan) -> dict[str, float]:
        answers = await call_all_watched(self._ranks, "update", self._put(samples), plan)
        metrics, self._optimizer_steps = answers[0]
        _check_agreement([answer[0] for answer in answers], ranks=self._ranks)
        return metrics

    async def weights(self) -> Mapping[str, Tensor]:
        """See `Learner.weights`; they stay where they are in the object store, and are read in place."""
        refs = [rank.send("weights") for rank in self._ranks]
        waits = [
            rank.receive(ref, verb="weights", timeout_s=VERB_TIMEOUT_S)
            for rank, ref in zip(self._ranks, refs, strict=True)
        ]
        parcels = await first_failure(waits)
        return Shipped(parcels[0].tensors(), ref=refs[0])

    async def save(self, folder: Path) -> None:
        """See `Learner.save`; the folder must be one that all nodes share."""
        await call_all(self._ranks, "save", str(folder))

    async def load(self, folder: Path, *, optimizer_steps: int) -> None:
        """See `Learner.load`."""
        await call_all(self._ranks, "load", str(folder), optimizer_steps)
        self._optimizer_steps = optimizer_steps

    async def close(self) -> None:
        """The ranks go on to the next phase; who started them ends them."""


async def form_group(ranks: Sequence[Peer]) -> None:
    """Let ranks meet at rank 0's address.

    Raises:
        ClusterError: one did not come within `START_TIMEOUT_S`, or they do not fit `trainer.parallel`.
    """
    (port,) = await call_all(ranks[:1], "free_port", timeout_s=START_TIMEOUT_S)
    await call_all(ranks, "join", ranks[0].host, port, timeout_s=START_TIMEOUT_S)


async def check_shared(ranks: Sequence[Peer], *, folder: Path) -> None:
    """Refuse a run folder that some rank cannot see: its checkpoints would lie in pieces.

    Raises:
        ClusterError: names the ranks.
    """
    token = folder / ".shared-by-all-nodes"
    token.write_text("")
    try:
        seen = await call_all(ranks, "sees", str(token), timeout_s=START_TIMEOUT_S)
    finally:
        token.unlink()
    blind = [rank.name for rank, sees in zip(ranks, seen, strict=True) if not sees]
    if blind:
        raise ClusterError(
            f"{', '.join(blind)} cannot see the run's folder {folder}; every rank writes its part of a "
            "checkpoint there: set output_dir to a folder that all nodes share (NFS, Lustre, a mounted bucket)"
        )


def enter(folder: str, *, threads: int | None) -> None:
    """Make a fresh process like the launching one: working folder and torch's threads.

    Raises:
        ClusterError: the folder is not on this node.
    """
    if not Path(folder).is_dir():
        raise ClusterError(
            f"the folder {folder} is not on node {socket.gethostname()}; start the run in a folder that all nodes share"
        )
    os.chdir(folder)
    if threads is not None:
        torch.set_num_threads(threads)


def _check_agreement(metrics: Sequence[Mapping[str, float]], *, ranks: Sequence[Peer]) -> None:
    """Refuse ranks that took different steps: every rank sees the norm of the same whole gradient."""
    norms = [values.get("grad_norm", 0.0) for values in metrics]
    wrong = [
        f"{rank.name} has {norm!r}"
        for rank, norm in zip(ranks, norms, strict=True)
        if not (math.isclose(norm, norms[0], rel_tol=1e-4) or (math.isnan(norm) and math.isnan(norms[0])))
    ]
    if wrong:
        raise ClusterError(
            f"the ranks took different steps: {ranks[0].name} has gradient norm {norms[0]!r}, {'; '.join(wrong)}. "
            "Restart from the newest checkpoint with --resume"
        )
