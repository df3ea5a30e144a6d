"""Rewards: named, weighted components, per turn, at the end, or over a group; a failure is typed, never 0."""

from __future__ import annotations

import functools
import inspect
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, overload

from agentenv.errors import EpisodeError, UsageError, boundary, describe
from agentenv.offload import call_hook
from agentenv.trace import traced
from agentenv.trajectory import Trajectory

F = TypeVar("F", bound=Callable[..., object])
When = Literal["turn", "end", "group"]

DEFAULT_TIMEOUT_S = 30.0

MAX_REWARD = 1e12
"""Largest size of a weighted component: its square, as in a variance, still fits float32 on its way to the trainer."""

_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """One component of a reward.

    Attributes:
        name: under which it is recorded.
        function: returns a finite number in `[low, high]`. Turn and end components of an environment take no
            argument; a group component takes the group's trajectories and returns one number for each.
        when: after every turn, once at the end, or once the group is complete.
        weight: multiplies the value before it is recorded.
        low: smallest allowed value.
        high: largest allowed value.
        timeout_s: deadline of one call.
        inline: as for tools; None takes the environment's promise.
    """

    name: str
    function: Callable[..., object]
    when: When = "end"
    weight: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    timeout_s: float = DEFAULT_TIMEOUT_S
    inline: bool | None = None

    def bind(self, owner: object) -> Reward:
        """Return this component as a method of `owner`."""
        return replace(self, function=functools.partial(self.function, owner))

    @traced("reward")
    async def value(self, *args: object, inline_default: bool) -> float:
        """Call the function and return its checked, weighted value.

        Raises:
            EpisodeError: side `"reward"`: it raised, ran past its deadline, or gave something that is not a finite
                number in range.
        """
        inline = inline_default if self.inline is None else self.inline
        with boundary("reward", self.name):
            raw = await call_hook(
                self.function, *args, inline=inline, timeout_s=self.timeout_s, side="reward", where=self.name
            )
            return self.check(raw)

    def check(self, raw: object) -> float:
        """Return `raw` times the weight as a finite Python float.

        Raises:
            EpisodeError: says what came and what is allowed.
        """
        if not hasattr(raw, "__float__"):
            raise EpisodeError("reward", self.name, f"returned {_shown(raw)}; a finite number is needed")
        try:
            number = float(raw)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError) as error:
            raise EpisodeError("reward", self.name, f"returned {_shown(raw)}: {describe(error)}") from error
        if not math.isfinite(number) or not self.low <= number <= self.high:
            allowed = f"[{self.low:g}, {self.high:g}]"
            raise EpisodeError("reward", self.name, f"returned {number!r}; a finite number in {allowed} is needed")
        value = number * self.weight
        if not abs(value) <= MAX_REWARD:
            told = f"returned {number:g}, {value:g} with its weight; at most {MAX_REWARD:g} can be trained on"
            raise EpisodeError("reward", self.name, told)
        return value


@overload
def reward(function: F) -> F: ...


@overload
def reward(
    *,
    when: When = "end",
    weight: float = 1.0,
    low: float = -math.inf,
    high: float = math.inf,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    inline: bool | None = None,
) -> Callable[[F], F]: ...


def reward(function: Callable[..., object] | None = None, **options: Any) -> Any:
    """Mark a method of an environment, or a plain function, as a reward component named after it."""
    if function is None:
        return lambda decorated: _mark(decorated, options)
    return _mark(function, options)


def as_reward(function: Callable[..., object]) -> Reward:
    """Return the component that `@reward` made of a function.

    Raises:
        UsageError: the function is not decorated.
    """
    made = getattr(function, "__agentenv_reward__", None)
    if made is None:
        raise UsageError(f"{getattr(function, '__qualname__', function)!r} is not a reward; decorate it with @reward")
    return made


@functools.lru_cache(maxsize=256)
def rewards_of_class(cls: type) -> tuple[Reward, ...]:
    """Return the reward components that a class declares, base classes first; overrides replace."""
    found: dict[str, Reward] = {}
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            function = member.__func__ if isinstance(member, staticmethod) else member
            made = getattr(function, "__agentenv_reward__", None)
            if made is not None:
                found[name] = made
            else:
                found.pop(name, None)
    return tuple(found.values())


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """The components that score an episode.

    Attributes:
        components: in order; names are unique.
        inline_default: the environment's promise for components that make none.
    """

    components: tuple[Reward, ...]
    inline_default: bool = False

    def __post_init__(self) -> None:
        names = [component.name for component in self.components]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise UsageError(f"reward components share the name {sorted(twice)}; rename one")

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all components."""
        return tuple(c.name for c in self.components)

    @functools.cached_property
    def turn(self) -> tuple[Reward, ...]:
        """Components that score every turn."""
        return tuple(c for c in self.components if c.when == "turn")

    @functools.cached_property
    def end(self) -> tuple[Reward, ...]:
        """Components that score the finished episode."""
        return tuple(c for c in self.components if c.when == "end")

    async def score_turn(self) -> dict[str, float]:
        """Score one turn; weighted values by name."""
        return {c.name: await c.value(inline_default=self.inline_default) for c in self.turn}

    async def score_end(self) -> dict[str, float]:
        """Score the finished episode; weighted values by name."""
        return {c.name: await c.value(inline_default=self.inline_default) for c in self.end}


async def score_group(components: Sequence[Reward], trajectories: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
    """Add the group components to the scored members of a complete group.

    Args:
        components: components whose `when` is `"group"`.
        trajectories: all members; unscored ones (infrastructure failures) pass through untouched and unseen.

    Raises:
        EpisodeError: side `"reward"`: a component failed or gave the wrong number of values.
    """
    scored = [t for t in trajectories if t.is_scored]
    added: list[dict[str, float]] = [{} for _ in scored]
    for component in components if scored else ():
        for index, value in enumerate(await _group_values(component, scored)):
            added[index][component.name] = component.check(value)
    extra: Mapping[int, Mapping[str, float]] = {id(t): values for t, values in zip(scored, added, strict=True)}
    return tuple(
        replace(t, reward_components={**t.reward_components, **extra[id(t)]}) if id(t) in extra else t
        for t in trajectories
    )


def best_of_group(trajectories: Sequence[Trajectory]) -> list[float]:
    """Return 1 for the members whose return is the group's best and above its median, else 0."""
    returns = [t.reward for t in trajectories]
    best, middle = max(returns), statistics.median(returns)
    return [float(value == best and value > middle) for value in returns]


@traced("group reward")
async def _group_values(component: Reward, scored: Sequence[Trajectory]) -> Sequence[object]:
    with boundary("reward", component.name):
        values = await call_hook(
            component.function,
            tuple(scored),
            inline=bool(component.inline),
            timeout_s=component.timeout_s,
            side="reward",
            where=component.name,
        )
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(scored):
            raise EpisodeError(
                "reward", component.name, f"must return a list of {len(scored)} numbers, returned {_shown(values)}"
            )
        return values


def _shown(raw: object) -> str:
    try:
        text = repr(raw)
    except Exception as error:  # of a foreign class
        text = f"<{type(raw).__name__}, whose repr raised {type(error).__name__}>"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _mark(function: F, options: Mapping[str, Any]) -> F:
    made = Reward(name=function.__name__, function=function, **options)
    if made.when not in ("turn", "end", "group"):
        raise UsageError(f'reward {made.name}: when="{made.when}"; allowed are "turn", "end" and "group"')
    if made.when == "group" and next(iter(inspect.signature(function).parameters), "") == "self":
        raise UsageError(
            f"reward {made.name} scores whole groups, so no single environment can be its self; "
            "make it a @staticmethod that takes the trajectories"
        )
    function.__agentenv_reward__ = made  # type: ignore[attr-defined]
    return function
