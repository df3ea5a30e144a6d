"""Which group is played when: a pure function of (run seed, group number), and of the level where one is followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentenv.errors import UsageError
from agentenv.registry import constructor_options, is_url, registration
from agentenv.runner import GroupSpec
from agentenv.seeds import derive_seed
from agentenv.tasks import Task, TaskOrder, load_tasks
from agentenv.trainers.config import EnvConfig, EnvPart
from agentenv.trainers.curriculum import Course, Curriculum
from agentenv.trainers.mixture import Mixture
from agentenv.trajectory import Group


@dataclass(frozen=True, kw_only=True)
class GroupSource:
    """An endless source of training groups.

    Attributes:
        env: environments of the run.
        seed: of the run.
        group_size: members of a group.
        tasks: rows to play, for each environment; empty lets it choose by seed.
        curriculum: levels that follow a target.
    """

    env: EnvConfig
    seed: int
    group_size: int
    tasks: Sequence[Sequence[Task]] = field(default=())
    curriculum: Curriculum = field(default_factory=lambda: Curriculum({}, seed=0))

    @property
    def mixture(self) -> Mixture:
        """Which environment a group is played in."""
        return Mixture(weights=tuple(part.weight for part in self.env.parts), seed=self.seed)

    def group(self, number: int, *, attempt: int = 0) -> GroupSpec:
        """Return group `number` from 0; a retry of a whole group is sampled anew."""
        index = self.mixture.at(number)
        part, tasks = self.env.parts[index], self.tasks[index] if self.tasks else ()
        task = None
        if tasks:
            task = tasks[TaskOrder(num_tasks=len(tasks), seed=self.seed).at(self.mixture.position(number))]
        difficulty = self.curriculum.difficulty(number, part=index)
        name = f"{number}" if attempt == 0 else f"{number}.{attempt}"
        return GroupSpec(
            group_id=name,
            env_id=part.id,
            env_kwargs=part.kwargs if difficulty is None else {**part.kwargs, "difficulty": difficulty},
            task=task,
            seed=derive_seed(self.seed, "train", number) % 2**31,
            size=self.group_size,
            run_seed=self.seed,
        )

    def observe(self, groups: Sequence[Group], *, success_reward: float) -> None:
        """Let the levels follow what a step was taken from."""
        outcomes: list[tuple[int, int, float]] = []
        for group in groups:
            solved = [t.reward >= success_reward - 1e-9 for t in group.scored]
            number = number_of(group)
            outcomes.append((number, self.mixture.at(number), sum(solved) / max(len(solved), 1)))
        self.curriculum.observe(outcomes)

    def metrics(self) -> dict[str, float]:
        """Return the levels by environment."""
        return {f"curriculum/{self.env.parts[part].id}": level for part, level in self.curriculum.levels.items()}


def group_source(env: EnvConfig, *, seed: int, group_size: int) -> GroupSource:
    """Build the source of a run.

    Raises:
        DataError: the task file is wrong; names file, row and field.
        UsageError: an environment has no difficulty that could follow a target.
    """
    tasks = [load_tasks(part.tasks) if part.tasks is not None else () for part in env.parts]
    courses = {
        index: _course(part, target=part.target_success)
        for index, part in enumerate(env.parts)
        if part.target_success is not None
    }
    curriculum = Curriculum(courses, seed=seed)
    return GroupSource(env=env, seed=seed, group_size=group_size, tasks=tasks, curriculum=curriculum)


def number_of(group: Group) -> int:
    """Return the number under which a source named this group."""
    return int(group.group_id.partition(".")[0])


def _course(part: EnvPart, *, target: float) -> Course:
    env_class = registration(part.id).load()
    if not is_url(part.id) and "difficulty" not in constructor_options(env_class):
        raise UsageError(f"{part.id} has no option difficulty, so nothing can follow target_success {target:g}")
    low, high = env_class.difficulties
    start = part.kwargs.get("difficulty", low)
    if isinstance(start, bool) or not isinstance(start, (int, float)):
        raise UsageError(f"{part.id}: difficulty is {start!r}; a number is needed where it follows a target")
    return Course(target=target, start=float(start), low=low, high=high)
