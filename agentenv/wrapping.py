"""The option `wrap`: wrappers of an environment by name, as configurations and the command line write them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium

from agentenv.errors import UsageError, did_you_mean
from agentenv.import_string import load_callable

WRAPPERS: Mapping[str, str] = {
    "action_masking": "agentenv.wrappers.action_masking:ActionMasking",
    "format_penalty": "agentenv.wrappers.format_penalty:FormatPenalty",
    "history_window": "agentenv.wrappers.history_window:HistoryWindow",
    "record_to_store": "agentenv.wrappers.record_to_store:RecordToStore",
    "reward_shaping": "agentenv.wrappers.reward_shaping:RewardShaping",
    "token_budget": "agentenv.wrappers.token_budget:TokenBudget",
}
"""Shipped wrappers: name to import string."""


def wrapped(env: Any, wrap: object) -> Any:
    """Put wrappers around an environment, the first one innermost.

    Args:
        env: an `AgentEnv`, or what Gymnasium made of one.
        wrap: a name, or a list of names and of `{name, kwargs}`; a name is a key of `WRAPPERS` or an import string
            `module:Class`.

    Raises:
        UsageError: there is no such wrapper, an argument is wrong, or what came is no wrapper.
    """
    items = [wrap] if isinstance(wrap, (str, Mapping)) else wrap
    if not isinstance(items, Sequence):
        raise UsageError(f"option wrap is {type(wrap).__name__}; expected a list of names or of {{name, kwargs}}")
    for item in items:
        name, kwargs = _read(item)
        env = _make(name, env, kwargs)
    return env


def _read(item: object) -> tuple[str, dict[str, object]]:
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping):
        fields = cast(Mapping[str, object], item)
        name, kwargs = fields.get("name"), fields.get("kwargs", {})
        if isinstance(name, str) and isinstance(kwargs, Mapping) and set(fields) <= {"name", "kwargs"}:
            return name, {str(key): value for key, value in kwargs.items()}
    raise UsageError(f"option wrap holds {item!r}; expected a name, or {{name: ..., kwargs: {{...}}}}")


def _make(name: str, env: Any, kwargs: dict[str, object]) -> Any:
    if ":" not in name and name not in WRAPPERS:
        allowed = ", ".join(WRAPPERS)
        raise UsageError(
            f"there is no wrapper {name!r}.{did_you_mean(name, WRAPPERS)} Allowed: {allowed}, or an import string "
            "module:Class"
        )
    wrapper = load_callable(WRAPPERS.get(name, name), what="wrapper")
    if not (isinstance(wrapper, type) and issubclass(wrapper, gymnasium.Wrapper)):
        raise UsageError(f"wrapper {name} is {getattr(wrapper, '__name__', wrapper)!r}, which is no gymnasium.Wrapper")
    parameters = list(inspect.signature(wrapper).parameters.values())[1:]
    allowed = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for given in kwargs:
        if given not in allowed and not takes_any:
            options = ", ".join(allowed) or "none"
            raise UsageError(
                f"wrapper {name} has no option {given!r}.{did_you_mean(given, allowed)} Options: {options}"
            )
    missing = [p.name for p in parameters if p.default is p.empty and p.name in allowed and p.name not in kwargs]
    if missing:
        raise UsageError(f"wrapper {name} needs {', '.join(missing)}")
    return wrapper(env, **kwargs)
