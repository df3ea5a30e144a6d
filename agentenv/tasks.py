"""Where tasks come from: rows of parquet or JSONL files, in a seeded order that can be resumed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from agentenv.errors import DataError, UsageError
from agentenv.messages import Message, as_messages
from agentenv.rows import read_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One thing to do.

    Attributes:
        task_id: unique within its source.
        prompt: the opening messages; empty where the environment writes its own.
        answer: the ground truth, for rewards only; never shown to the agent.
        data: the rest of the row. The agent loop reads `agent` (who plays: see `agent_choice`) and `tools` (what may be
            called: see `tool_choice`); the rest belongs to the environment.
    """

    task_id: str
    prompt: tuple[Message, ...] = ()
    answer: str = ""
    data: Mapping[str, object] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Contents of the prompt messages, joined by newlines."""
        return "\n".join(message.content for message in self.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentChoice:
    """The agent that a task row asks for.

    Attributes:
        name: a shipped agent, or an import string `module:Class`.
        kwargs: its constructor arguments.
    """

    name: str
    kwargs: Mapping[str, object] = field(default_factory=dict)


def agent_choice(task: Task) -> AgentChoice | None:
    """Return the agent that the task's row names, or None.

    Raises:
        DataError: the field `agent` is neither a name nor `{name, kwargs}`.
    """
    return _read_agent(task.data.get("agent"), where=f"task {task.task_id}")


def tool_choice(task: Task) -> tuple[str, ...] | None:
    """Return the names of the tools that the task's row allows, or None where it does not say.

    The field `tools` is a list of names, or of schemas in the shape of chat interfaces. An empty list allows none.

    Raises:
        DataError: the field is something else.
    """
    return _read_tools(task.data.get("tools"), where=f"task {task.task_id}")


def task_from_row(row: Mapping[str, object], *, where: str = "task row") -> Task:
    """Read a row with the widely used columns `prompt`, `reward_model.ground_truth`, `extra_info`.

    Args:
        row: column -> value; columns beside these go to `Task.data`.
        where: file and row number, for errors.

    Raises:
        DataError: names the field and what was expected.
    """
    if "prompt" not in row:
        raise DataError(f"{where}: field 'prompt' is missing; found {', '.join(map(str, row)) or 'no field'}")
    try:
        prompt = as_messages(cast("str | Sequence[object]", row["prompt"]))
    except UsageError as error:
        raise DataError(f"{where}: field 'prompt': {error}") from None
    reward_model = row.get("reward_model") or {}
    if not isinstance(reward_model, Mapping):
        kind = type(reward_model).__name__
        raise DataError(f"{where}: field 'reward_model' is {kind}; expected a struct {{style, ground_truth}}")
    extra = row.get("extra_info") or {}
    if not isinstance(extra, Mapping):
        raise DataError(f"{where}: field 'extra_info' is {type(extra).__name__}; expected a struct")
    answer = reward_model.get("ground_truth", row.get("answer", ""))
    task_id = row.get("task_id", extra.get("index", row.get("id")))
    data = {key: value for key, value in row.items() if key not in ("prompt", "reward_model")}
    _read_agent(data.get("agent"), where=where)
    _read_tools(data.get("tools"), where=where)
    return Task(
        task_id=str(task_id) if task_id is not None else where,
        prompt=prompt,
        answer="" if answer is None else str(answer),
        data=data,
    )


def as_task(value: object) -> Task:
    """Return `options["task"]` as a task: a `Task`, or a row."""
    if isinstance(value, Task):
        return value
    if isinstance(value, Mapping):
        return task_from_row(cast(Mapping[str, object], value))
    raise UsageError(f'options["task"] is {type(value).__name__}; expected a Task or a row with a "prompt"')


def load_tasks(path: str | Path) -> tuple[Task, ...]:
    """Load all tasks of a `.parquet` or `.jsonl` file; a file that did not change is read once per process.

    Raises:
        DataError: names file, row, field and what was expected.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    stat = file.stat()
    return _load(str(file), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=32)
def _load(path: str, mtime_ns: int, size: int) -> tuple[Task, ...]:
    return tuple(task_from_row(row, where=where) for where, row in read_rows(path, column="prompt"))


def _read_agent(value: object, *, where: str) -> AgentChoice | None:
    """Read the field `agent`. A null is what parquet has in a row without it, so in `kwargs` it is left out too."""
    if value is None:
        return None
    if isinstance(value, str) and value:
        return AgentChoice(name=value)
    if isinstance(value, Mapping):
        fields = cast(Mapping[str, object], value)
        name, kwargs = fields.get("name"), fields.get("kwargs") or {}
        if isinstance(name, str) and name and isinstance(kwargs, Mapping) and set(fields) <= {"name", "kwargs"}:
            given = cast(Mapping[str, object], kwargs)
            return AgentChoice(name=name, kwargs={key: item for key, item in given.items() if item is not None})
    raise DataError(f"{where}: field 'agent' is {_shortened(value)}; expected a name, or {{name, kwargs}}")


def _read_tools(value: object, *, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [_tool_name(item) for item in value] if isinstance(value, (list, tuple)) else [""]
    if not all(names):
        expected = "a list of tool names, or of {type: function, function: {name, ...}}"
        raise DataError(f"{where}: field 'tools' is {_shortened(value)}; expected {expected}")
    return tuple(dict.fromkeys(names))


def _tool_name(item: object) -> str:
    """Return the name that an item of `tools` gives, or an empty text."""
    body = cast(Mapping[str, object], item).get("function", item) if isinstance(item, Mapping) else item
    name = cast(Mapping[str, object], body).get("name") if isinstance(body, Mapping) else body
    return name if isinstance(name, str) else ""


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOrder:
    """A seeded endless order over `num_tasks` tasks: every epoch is a fresh permutation.

    The order is a pure function of (seed, position), so resuming needs the position only.

    Attributes:
        num_tasks: size of the source.
        seed: of the run.
        shuffle: False walks the source in its own order.
    """

    num_tasks: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.num_tasks < 1:
            raise UsageError("there are no tasks to order")

    def at(self, position: int) -> int:
        """Return the index of the task at `position` of the endless order."""
        epoch, offset = divmod(position, self.num_tasks)
        return int(_permutation(self.num_tasks, self.seed, epoch)[offset]) if self.shuffle else offset


@functools.lru_cache(maxsize=8)
def _permutation(num_tasks: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_tasks)
