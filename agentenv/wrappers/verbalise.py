"""Observations and actions of ordinary Gymnasium environments as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces

from agentenv.errors import UsageError

MAX_NUMBERS = 256
"""Numbers of one observation that are written out; a larger one needs a function or a text rendering."""

_HIGHLIGHTED = re.compile(r"\x1b\[(?:\d+;)*4[0-7](?:;\d+)*m(.*?)\x1b\[0m", re.DOTALL)
_CONTROL = re.compile(r"\x1b\[[0-9;]*m")


def told_value(space: gymnasium.Space[Any], value: Any, *, names: Sequence[str] = ()) -> str:
    """Return an observation as text.

    Args:
        space: that it belongs to.
        value: the observation.
        names: of the numbers of a vector, or of the parts of a tuple.
    """
    if isinstance(space, spaces.Dict):
        return "\n".join(f"{key}: {told_value(part, value[key])}" for key, part in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        parts = [told_value(part, item) for part, item in zip(space.spaces, value, strict=True)]
        return ", ".join(_named(parts, names))
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        numbers = np.asarray(value)
        if numbers.ndim == 1 or numbers.size == 1:
            return ", ".join(_named([_number(item) for item in numbers.reshape(-1)], names))
        return "\n".join(" ".join(_number(item) for item in row) for row in numbers.reshape(numbers.shape[0], -1))
    if isinstance(space, spaces.Discrete):
        return str(int(value))
    return str(value)


def require_sayable(space: gymnasium.Space[Any], *, what: str) -> None:
    """Refuse observations that are too long for text.

    Raises:
        UsageError: says how long and what to do.
    """
    size = _size(space)
    if size > MAX_NUMBERS:
        raise UsageError(
            f"an observation of {what} has {size:,} numbers ({space}); at most {MAX_NUMBERS} are told as text. Give "
            "describe='module:function', or take an environment with a text rendering (render_mode \"ansi\")"
        )


def plain_screen(screen: str) -> str:
    """Return a coloured text rendering without colours; what stood on a coloured ground is put in brackets."""
    return _CONTROL.sub("", _HIGHLIGHTED.sub(lambda found: f"[{found[1]}]", screen)).strip("\n")


def action_names(space: gymnasium.Space[Any], names: Sequence[str], *, what: str) -> tuple[str, ...]:
    """Return one name per action.

    Raises:
        UsageError: the actions are not Discrete, or there are not as many names.
    """
    if not isinstance(space, spaces.Discrete):
        raise UsageError(
            f"the actions of {what} are {space}; Discrete is needed, so that every action has a name. "
            "Discretise them with a gymnasium.ActionWrapper first"
        )
    count = int(space.n)
    if names and len(names) != count:
        raise UsageError(f"{what} has {count} actions; {len(names)} names were given: {', '.join(names)}")
    if len(set(names)) != len(names):
        raise UsageError(f"action names of {what} are not unique: {', '.join(names)}")
    return tuple(names) or tuple(f"action_{index}" for index in range(count))


def read_action(text: str, names: Sequence[str]) -> int | None:
    """Return the place of the action that a text is, by name or number; None where it is none."""
    word = text.strip().strip(".!\"'`").lower()
    lowered = [name.lower() for name in names]
    if word in lowered:
        return lowered.index(word)
    return int(word) if word.isascii() and word.isdigit() and len(word) < 6 and int(word) < len(names) else None


def _named(parts: Sequence[str], names: Sequence[str]) -> list[str]:
    return [f"{name} {part}" for name, part in zip(names, parts, strict=True)] if len(names) == len(parts) else [*parts]


def _number(value: Any) -> str:
    return f"{float(value):.4g}" if np.asarray(value).dtype.kind == "f" else str(int(value))


def _size(space: gymnasium.Space[Any]) -> int:
    if isinstance(space, spaces.Dict):
        return sum(_size(part) for part in cast(Mapping[str, Any], space.spaces).values())
    if isinstance(space, spaces.Tuple):
        return sum(_size(part) for part in space.spaces)
    return int(np.prod(space.shape)) if space.shape else 1
