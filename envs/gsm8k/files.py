"""Where the task files of GSM8K lie, and how they are loaded."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from agentenv.envs.calculator.answer import first_number
from agentenv.errors import DataError
from agentenv.splits import Split
from agentenv.tasks import Task, load_tasks

SPLITS: tuple[Split, ...] = ("train", "test")
BUNDLED = Path(__file__).parent / "data"
"""A sample of 200 rows per split that ships with the package."""


def cache_folder() -> Path:
    """Return where prepared files are kept for this user."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "agentenv" / "gsm8k"


def find_file(path: str | None, *, split: Split) -> Path:
    """Return the file of a split.

    Looked for in this order: `path`; `$AGENTENV_DATA/gsm8k`; the user's cache; the bundled sample.

    Args:
        path: a file, used whatever the split, or a folder with `{split}.parquet`.
        split: which part.

    Raises:
        DataError: `path` was given and leads nowhere.
    """
    if path is not None:
        given = Path(path).expanduser()
        file = given / f"{split}.parquet" if given.is_dir() else given
        if not file.is_file():
            raise DataError(f"{file}: no such file; `agentenv prepare gsm8k` writes it")
        return file
    data = os.environ.get("AGENTENV_DATA")
    folders = [Path(data).expanduser() / "gsm8k"] if data else []
    candidates = [folder / f"{split}.parquet" for folder in (*folders, cache_folder())]
    return next((file for file in candidates if file.is_file()), BUNDLED / f"{split}.parquet")


def load_split(path: str | None, *, split: Split) -> tuple[Task, ...]:
    """Load and check the tasks of a split; an unchanged file is read once per process.

    Raises:
        DataError: names file, row, field and what was expected.
    """
    file = find_file(path, split=split)
    stat = file.stat()
    return _load(str(file), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=16)
def _load(file: str, mtime_ns: int, size: int) -> tuple[Task, ...]:
    tasks = load_tasks(file)
    for index, task in enumerate(tasks):
        if not task.prompt:
            raise DataError(f"{file}, row {index}: field 'prompt' is empty; expected messages")
        if first_number(task.answer) is None:
            field = "'reward_model.ground_truth'"
            raise DataError(f"{file}, row {index}: field {field} is {task.answer!r}; expected a number")
    return tasks
