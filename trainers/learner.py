"""Who trains, as the loop sees it: one worker in this process, or ranks elsewhere, behind the same few verbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor, distributed

from agentenv.trainers.background import in_thread
from agentenv.trainers.random_state import load_random_state, save_random_state
from agentenv.trainers.sample import Sample
from agentenv.trainers.state import copy_state, load_state, save_state, write_state
from agentenv.trainers.worker import UpdatePlan, Worker


class Learner(Protocol):
    """Trains a model; every verb returns when all ranks have done it."""

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps taken in this phase; drives the learning-rate schedule."""
        ...

    async def update(self, samples: Sequence[Sample], *, plan: UpdatePlan) -> dict[str, float]:
        """Train on a batch and return its metrics; see `Worker.update`.

        The event loop goes on meanwhile. Updates never overlap: the caller awaits one before it asks for the next. A
        caller that is cancelled leaves the weights half trained; they must not be saved then.
        """
        ...

    async def weights(self) -> Mapping[str, Tensor]:
        """Return the whole parameters by their Hugging Face name, to be read before the next update."""
        ...

    async def save(self, folder: Path) -> Callable[[], None] | None:
        """Save model, optimizer and random states into an existing folder, at once or in part later.

        Returns:
            What is left to do, from memory that no later update changes; it blocks, may run in any thread and raises as
            this does. None where everything is written.

        Raises:
            CheckpointError: the disk is full or read-only.
        """
        ...

    async def load(self, folder: Path, *, optimizer_steps: int) -> None:
        """Go on from what `save` wrote.

        Raises:
            CheckpointError: it belongs to another model.
        """
        ...

    async def close(self) -> None:
        """Free everything; idempotent."""
        ...


class LocalLearner:
    """The worker of this process.

    Args:
        worker: trains.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    @property
    def optimizer_steps(self) -> int:
        """See `Learner.optimizer_steps`."""
        return self.worker.optimizer_steps

    async def update(self, samples: Sequence[Sample], *, plan: UpdatePlan) -> dict[str, float]:
        """See `Learner.update`; in a thread."""
        return await in_thread(partial(self.worker.update, samples, plan=plan))

    async def weights(self) -> Mapping[str, Tensor]:
        """See `Learner.weights`; by reference."""
        return self.worker.weights()

    async def save(self, folder: Path) -> Callable[[], None] | None:
        """See `Learner.save`; from a copy in host memory, unless other ranks must write their shards too."""
        save_random_state(folder)
        model, optimizer = self.worker.model, self.worker.optimizer
        if distributed.is_initialized():
            save_state(folder, model=model, optimizer=optimizer)
            return None
        state = await in_thread(partial(copy_state, model=model, optimizer=optimizer))
        return partial(write_state, folder, state)

    async def load(self, folder: Path, *, optimizer_steps: int) -> None:
        """See `Learner.load`."""
        load_state(folder, model=self.worker.model, optimizer=self.worker.optimizer)
        load_random_state(folder)
        self.worker.optimizer_steps = optimizer_steps

    async def close(self) -> None:
        """Nothing is held."""
