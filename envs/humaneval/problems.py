"""The problems of HumanEval (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", MIT licence)."""

from __future__ import annotations

import functools
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentenv.env import Split
from agentenv.errors import DataError
from agentenv.tasks import Task

FILE = Path(__file__).parent / "data" / "HumanEval.jsonl.gz"
TRAIN_EVERY = 4
"""Every fourth problem may be trained on, the others are the test split."""

Subset = Literal["split", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem.

    Attributes:
        task_id: `HumanEval/0` to `HumanEval/163`.
        prompt: imports, signature and docstring of the function.
        entry_point: its name.
        solution: body of the reference solution, which follows the prompt.
        test: code with a function `check(candidate)`.
    """

    task_id: str
    prompt: str
    entry_point: str
    solution: str
    test: str


@functools.cache
def all_problems() -> tuple[Problem, ...]:
    """Read the bundled problems; once per process."""
    with gzip.open(FILE, "rt", encoding="utf-8") as lines:
        return tuple(_read(json.loads(line)) for line in lines)


@functools.cache
def problems_of(split: Split, subset: Subset) -> tuple[Problem, ...]:
    """Return the problems of a split, or all of them in both splits."""
    if subset == "all":
        return all_problems()
    return tuple(
        problem for index, problem in enumerate(all_problems()) if (index % TRAIN_EVERY == 0) == (split == "train")
    )


def problem_of(task: Task) -> Problem:
    """Return the problem that a task names, or that its row holds.

    Raises:
        DataError: it is none of the 164 and the row has not the fields of one.
    """
    known = {problem.task_id: problem for problem in all_problems()}
    if task.task_id in known:
        return known[task.task_id]
    try:
        return _read({**task.data, "task_id": task.task_id, "prompt": task.text})
    except KeyError as error:
        raise DataError(
            f"task {task.task_id}: field {error} is missing; a row has prompt, entry_point, canonical_solution and test"
        ) from None


def _read(row: dict[str, object]) -> Problem:
    return Problem(
        task_id=str(row["task_id"]),
        prompt=str(row["prompt"]),
        entry_point=str(row["entry_point"]),
        solution=str(row["canonical_solution"]),
        test=str(row["test"]),
    )
