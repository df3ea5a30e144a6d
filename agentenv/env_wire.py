"""What a served environment and its clients say to each other: steps, tasks and generators as JSON objects.

Text travels in JSON's ASCII form, so that half of a surrogate pair, which models can write, arrives as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from agentenv.env import Step
from agentenv.errors import UsageError
from agentenv.messages import Message, message_from_dict
from agentenv.tasks import Task
from agentenv.trajectory import StopReason

Body = Mapping[str, object]

PROTOCOL = 1
"""Changes where clients and servers of different versions would misunderstand each other."""

_SHOWN_TASK_FIELDS = ("agent", "tools")


def step_body(step: Step) -> dict[str, object]:
    """Return a step as a body."""
    return {
        "messages": [message.to_dict() for message in step.messages],
        "reward_components": dict(step.reward_components),
        "turn_reward_components": dict(step.turn_reward_components),
        "stop_reason": None if step.stop_reason is None else step.stop_reason.value,
        "num_malformed_calls": step.num_malformed_calls,
    }


def read_step(body: Body) -> Step:
    """Read what `step_body` wrote.

    Raises:
        KeyError, TypeError, ValueError, UsageError: it is something else.
    """
    stop = body["stop_reason"]
    return Step(
        messages=read_messages(body["messages"]),
        reward_components=_numbers(body["reward_components"]),
        turn_reward_components=_numbers(body["turn_reward_components"]),
        stop_reason=None if stop is None else StopReason(cast(str, stop)),
        num_malformed_calls=int(cast(int, body["num_malformed_calls"])),
    )


def read_messages(value: object) -> tuple[Message, ...]:
    """Read messages."""
    return tuple(message_from_dict(item) for item in cast("Sequence[Mapping[str, object]]", value))


def task_body(task: Task | None) -> dict[str, object] | None:
    """Return a task as a body, the whole of it: a client sends it to an environment."""
    if task is None:
        return None
    prompt = [message.to_dict() for message in task.prompt]
    return {"task_id": task.task_id, "prompt": prompt, "answer": task.answer, "data": dict(task.data)}


def shown_task_body(task: Task) -> dict[str, object]:
    """Return what a client needs to know of a task that the environment chose; its answer stays where it is."""
    data = {name: task.data[name] for name in _SHOWN_TASK_FIELDS if name in task.data}
    return {"task_id": task.task_id, "prompt": [], "answer": "", "data": data}


def read_task(value: object) -> Task | None:
    """Read what `task_body` wrote.

    Raises:
        UsageError: it is something else.
    """
    if value is None:
        return None
    try:
        body = cast("Mapping[str, Any]", value)
        return Task(
            task_id=str(body["task_id"]),
            prompt=read_messages(body["prompt"]),
            answer=str(body["answer"]),
            data=dict(body["data"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"field 'task' is no task ({type(error).__name__}: {error})") from None


def generator_body(rng: np.random.Generator) -> dict[str, object]:
    """Return the state of a generator as a body."""
    return {"state": cast("dict[str, object]", rng.bit_generator.state)}


def read_generator(value: object) -> np.random.Generator:
    """Read what `generator_body` wrote.

    Raises:
        UsageError: it is something else, or another kind of generator than `numpy.random.default_rng` makes.
    """
    rng = np.random.default_rng(0)
    try:
        rng.bit_generator.state = cast("Mapping[str, Any]", value)["state"]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"field 'rng' is no state of a PCG64 generator ({type(error).__name__}: {error})") from None
    return rng


def _numbers(value: object) -> dict[str, float]:
    return {str(name): float(number) for name, number in cast("Mapping[str, float]", value).items()}
