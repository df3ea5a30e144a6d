"""`component` makes a reward of an environment out of any function, and `group_component` one of a group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

from agentenv.offload import is_async
from agentenv.reward import reward
from agentenv.trajectory import Trajectory

Arguments = Callable[[Any], "tuple[object, ...]"]


def component(
    name: str, function: Callable[..., object], arguments: Arguments, **options: Any
) -> Callable[[Any], object]:
    """Return a reward method, for a class attribute of this name.

    `right = component("right", exact_match, lambda env: (env.said, env.task.answer))`

    Args:
        name: of the component; the attribute must be called the same.
        function: returns a number; may be async.
        arguments: takes the environment and returns what the function is called with.
        options: of `@reward`, e.g. `weight`.
    """

    def method(self: object) -> object:
        return function(*arguments(self))

    async def async_method(self: object) -> object:
        return await cast(Any, function(*arguments(self)))

    return _named(async_method if is_async(function) else method, name, function, options)


def group_component(
    name: str, function: Callable[[Sequence[Trajectory]], Sequence[float]], **options: Any
) -> Callable[..., object]:
    """Return a group reward, for a class attribute of this name.

    `short = group_component("short", shorter_in_group, weight=0.2)`

    Args:
        name: of the component; the attribute must be called the same.
        function: takes the scored members of a group and returns one number for each; may be async.
        options: of `@reward`, e.g. `weight`.
    """

    def score(trajectories: Sequence[Trajectory]) -> object:
        return function(trajectories)

    async def async_score(trajectories: Sequence[Trajectory]) -> object:
        return await cast(Any, function(trajectories))

    return _named(async_score if is_async(function) else score, name, function, {**options, "when": "group"})


def _named(made: Callable[..., object], name: str, function: Callable[..., object], options: dict[str, Any]) -> Any:
    made.__name__ = made.__qualname__ = name
    made.__doc__ = inspect.getdoc(function)
    return reward(**options)(made)
