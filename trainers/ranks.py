"""Who trains a run: this process alone, or the ranks that torchrun started, of which rank 0 drives the run."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed
from torch.distributed import HashStore, PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from agentenv.engine.weights import load_weights
from agentenv.errors import UsageError
from agentenv.trainers.board import Board
from agentenv.trainers.channel import SILENCE_S, Driver, Follower
from agentenv.trainers.config import RunConfig
from agentenv.trainers.learner import Learner, LocalLearner
from agentenv.trainers.model import Policy
from agentenv.trainers.packing import TokenBudgetWarning
from agentenv.trainers.parallel import COLLECTIVE_TIMEOUT_S, Ranks, lay_out_ranks, spread
from agentenv.trainers.phase import Phase, device_of, equip, phase_model, phase_worker
from agentenv.trainers.random_state import load_random_state, save_random_state
from agentenv.trainers.sample import Sample
from agentenv.trainers.state import load_state, save_state
from agentenv.trainers.worker import UpdatePlan, Worker

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Team(Protocol):
    """Makes the learner of each phase; the pipeline's own copy of the policy follows when it asks."""

    async def learner(self, phase: Phase, *, policy: Policy) -> Learner:
        """Return what trains a phase; a learner of an earlier phase is used no more."""
        ...

    async def refresh(self, policy: Policy, *, learner: Learner) -> None:
        """Put the learner's weights into the pipeline's copy of the policy."""
        ...

    def close(self) -> None:
        """Send everybody home; idempotent."""
        ...


class LocalTeam:
    """This process alone: the pipeline's policy is the one that is trained."""

    def __init__(self) -> None:
        self._prepared: Policy | None = None

    async def learner(self, phase: Phase, *, policy: Policy) -> Learner:
        """See `Team.learner`."""
        equip(policy.model, phase)
        if self._prepared is not policy:
            spread(policy.model, config=phase.config.trainer.parallel, ranks=None)
            self._prepared = policy
        return LocalLearner(phase_worker(phase, policy=policy.model))

    async def refresh(self, policy: Policy, *, learner: Learner) -> None:
        """Nothing to do: they are the same tensors."""

    def close(self) -> None:
        """Nothing is held."""


class RankTeam:
    """Rank 0 of several; the others perform what it performs.

    Args:
        driver: the channel to them.
        post: of this rank.
    """

    def __init__(self, driver: Driver, *, post: Post) -> None:
        self._driver = driver
        self._post = post

    async def learner(self, phase: Phase, *, policy: Policy) -> Learner:
        """See `Team.learner`; every rank loads the phase's model and keeps its shard."""
        self._driver.call("open", phase)
        return RankedLearner(self._driver, post=self._post)

    async def refresh(self, policy: Policy, *, learner: Learner) -> None:
        """See `Team.refresh`."""
        load_weights(policy.model.causal_lm, await learner.weights())

    def close(self) -> None:
        """See `Team.close`."""
        self._driver.close()
        if distributed.is_initialized():
            distributed.destroy_process_group()


class Post:
    """What every rank does with a command: the verbs of a learner on its own worker.

    Args:
        ranks: where this process stands.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        """The worker of the phase."""
        assert self._worker is not None, "open comes first"
        return self._worker

    def perform(self, verb: str, args: tuple[Any, ...]) -> Any:
        """Do what rank 0 says."""
        return getattr(self, verb)(*args)

    def open(self, phase: Phase) -> None:
        """Make the worker of a phase; the one before it is freed first."""
        self._worker = None
        model = phase_model(phase, ranks=self.ranks, is_trained=True)
        self._worker = phase_worker(phase, policy=model, ranks=self.ranks)

    def update(self, samples: Sequence[Sample], plan: UpdatePlan) -> dict[str, float]:
        """See `Worker.update`."""
        return self.worker.update(samples, plan=plan)

    def weights(self) -> Mapping[str, Tensor]:
        """See `Worker.weights`."""
        return self.worker.weights()

    def save(self, folder: str) -> None:
        """See `save_state`."""
        save_random_state(Path(folder))
        save_state(Path(folder), model=self.worker.model, optimizer=self.worker.optimizer, group=self.ranks.control)

    def load(self, folder: str, optimizer_steps: int) -> None:
        """See `load_state`."""
        load_state(Path(folder), model=self.worker.model, optimizer=self.worker.optimizer, group=self.ranks.control)
        load_random_state(Path(folder))
        self.worker.optimizer_steps = optimizer_steps


class RankedLearner:
    """All ranks as one learner, used on rank 0.

    Args:
        driver: the channel to the other ranks.
        post: of this rank.
    """

    def __init__(self, driver: Driver, *, post: Post) -> None:
        self._driver = driver
        self._post = post

    @property
    def optimizer_steps(self) -> int:
        """See `Learner.optimizer_steps`."""
        return self._post.worker.optimizer_steps

    async def update(self, samples: Sequence[Sample], *, plan: UpdatePlan) -> dict[str, float]:
        """See `Learner.update`."""
        return self._driver.call("update", samples, plan)

    async def weights(self) -> Mapping[str, Tensor]:
        """See `Learner.weights`; gathered in host memory."""
        return self._driver.call("weights")

    async def save(self, folder: Path) -> None:
        """See `Learner.save`; every rank writes its shards, so the folder must be one that all of them see."""
        self._driver.call("save", _everywhere(folder))

    async def load(self, folder: Path, *, optimizer_steps: int) -> None:
        """See `Learner.load`."""
        self._driver.call("load", _everywhere(folder), optimizer_steps)

    async def close(self) -> None:
        """The team is closed by whoever opened it."""


def open_team(
    config: RunConfig, *, silence_s: float = SILENCE_S, timeout_s: float = COLLECTIVE_TIMEOUT_S
) -> Team | Follower:
    """Return the team that this process leads, or on ranks above 0 the follower that serves rank 0.

    torchrun's environment variables make this process a rank. Without them a process trains alone; it is the only rank
    of a group where the configuration asks for what only sharding gives.

    Args:
        config: of the run.
        silence_s: a rank without a sign of life for so long is gone.
        timeout_s: how long ranks wait for each other inside an update.

    Raises:
        UsageError: the processes do not fit the configuration.
    """
    parallel = config.trainer.parallel
    if is_rank():
        store, rank, world_size = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    elif parallel.needs_sharding:
        store, rank, world_size = HashStore(), 0, 1
    elif parallel.replicas * parallel.sequence > 1:
        raise UsageError(
            f"trainer.parallel.replicas is {parallel.replicas} and sequence {parallel.sequence}, but this is one "
            f"process; start the run with torchrun --nproc-per-node {parallel.replicas * parallel.sequence} or more"
        )
    else:
        return LocalTeam()
    device = _device(config)
    # keys of an earlier attempt of torchrun's agent must not speak to this one
    store = PrefixStore(f"agentenv/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("groups", store),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    ranks = lay_out_ranks(parallel, device=device, timeout_s=timeout_s)
    post = Post(ranks)
    board = Board(store)
    if rank == 0:
        driver = Driver(board, control=ranks.control, world_size=world_size, perform=post.perform, silence_s=silence_s)
        return RankTeam(driver, post=post)
    return Follower(board, control=ranks.control, rank=rank, perform=post.perform, silence_s=silence_s)


def follow(follower: Follower, *, config: RunConfig) -> None:
    """Serve rank 0 until it is done.

    Signals to stop are left to rank 0, which still needs this rank to write its last checkpoint.

    Raises:
        RankError: rank 0 is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore", TokenBudgetWarning)  # rank 0 says it
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    try:
        follower.serve()
    finally:
        distributed.destroy_process_group()


def is_rank() -> bool:
    """True where torchrun, or somebody who sets its variables, started this process."""
    return all(name in os.environ for name in _TORCHRUN)


def _everywhere(folder: Path) -> str:
    """Return a path that means the same in a rank with another working directory."""
    return os.path.abspath(folder)


def _device(config: RunConfig) -> torch.device:
    """Return this rank's device; with CUDA the one that its local rank names."""
    if device_of(config.model.device) != "cuda":
        return torch.device(device_of(config.model.device))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
