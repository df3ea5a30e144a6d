"""Which group is played when: a pure function of (run seed, group number), so that resuming needs the number only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentenv.runner import GroupSpec
from agentenv.seeds import derive_seed
from agentenv.tasks import Task, TaskOrder, load_tasks
from agentenv.trainers.config import EnvConfig
from agentenv.trajectory import Group


@dataclass(frozen=True, kw_only=True)
class GroupSource:
    """An endless source of training groups.

    Attributes:
        env: environment of the run.
        seed: of the run.
        group_size: members of a group.
        tasks: rows to play; empty lets the environment choose by seed.
    """

    env: EnvConfig
    seed: int
    group_size: int
    tasks: Sequence[Task] = field(default=())

    def group(self, number: int, *, attempt: int = 0) -> GroupSpec:
        """Return group `number` from 0; a retry of a whole group is sampled anew."""
        task = None
        if self.tasks:
            task = self.tasks[TaskOrder(num_tasks=len(self.tasks), seed=self.seed).at(number)]
        name = f"{number}" if attempt == 0 else f"{number}.{attempt}"
        return GroupSpec(
            group_id=name,
            env_id=self.env.id,
            env_kwargs=self.env.kwargs,
            task=task,
            seed=derive_seed(self.seed, "train", number) % 2**31,
            size=self.group_size,
            run_seed=self.seed,
        )


def group_source(env: EnvConfig, *, seed: int, group_size: int) -> GroupSource:
    """Build the source of a run.

    Raises:
        DataError: the task file is wrong; names file, row and field.
    """
    tasks = load_tasks(env.tasks) if env.tasks is not None else ()
    return GroupSource(env=env, seed=seed, group_size=group_size, tasks=tasks)


def number_of(group: Group) -> int:
    """Return the number under which a source named this group."""
    return int(group.group_id.partition(".")[0])
