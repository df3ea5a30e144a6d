"""Names of environments: `register`, `make`, and the mirror in Gymnasium's own registry."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import gymnasium
from gymnasium.envs.registration import EnvSpec

from agentenv.env import AgentEnv
from agentenv.errors import UnknownEnvError, UsageError, did_you_mean

ENTRY_POINT_GROUP = "agentenv.envs"

_URL = re.compile(r"https?://")
_REMOTE = "agentenv.remote_env:RemoteEnv"
_ENV_ID = re.compile(r"[\w.-]+/[\w.-]+-v\d+")
_IMPORT_STRING = re.compile(r"[A-Za-z_][\w.]*:([A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """An environment's id and how to build it.

    Attributes:
        env_id: `namespace/Name-v0`.
        entry_point: import string `module:Class`, which means the same thing in every process.
        kwargs: JSON-plain constructor arguments.
        description: one line for listings.
        family: kind of task, for listings.
    """

    env_id: str
    entry_point: str
    kwargs: Mapping[str, object] = field(default_factory=dict)
    description: str = ""
    family: str = "other"

    def load(self) -> type[AgentEnv]:
        """Import the class.

        Raises:
            UsageError: the import string leads nowhere, or not to an `AgentEnv`.
        """
        module_name, _, attribute = self.entry_point.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{self.env_id}: cannot import {self.entry_point!r} ({error})") from error
        if not (isinstance(found, type) and issubclass(found, AgentEnv)):
            raise UsageError(f"{self.env_id}: {self.entry_point!r} is not a subclass of AgentEnv")
        return found


_registrations: dict[str, Registration] = {}


def register(
    env_id: str,
    entry_point: str,
    *,
    description: str = "",
    family: str = "other",
    nondeterministic: bool = False,
    **kwargs: object,
) -> None:
    """Register an environment here and with Gymnasium.

    Args:
        env_id: `namespace/Name-v0`.
        entry_point: import string `module:Class` of an `AgentEnv`; imported when first made.
        description: one line for listings.
        family: kind of task, for listings.
        nondeterministic: True where a model, a person or a live service is part of the environment.
        **kwargs: JSON-plain defaults for the constructor.

    Raises:
        UsageError: the id is taken by another entry point, or is not a valid id.
    """
    if not _ENV_ID.fullmatch(env_id):
        raise UsageError(f'"{env_id}" is not a valid id; write namespace/Name-v0')
    entry = Registration(env_id=env_id, entry_point=entry_point, kwargs=kwargs, description=description, family=family)
    known = _registrations.get(env_id)
    if known is not None and known != entry:
        raise UsageError(f"{env_id} is already registered for {known.entry_point}; choose another id or version")
    if known is None:
        _registrations[env_id] = entry
        gymnasium.register(
            id=env_id,
            entry_point=entry_point,
            nondeterministic=nondeterministic,
            kwargs=cast("dict[str, Any]", dict(kwargs)),
            vector_entry_point=f"agentenv.vector:{env_id}",
        )


def registration(env_id: str) -> Registration:
    """Look an id up; a URL is the id of the environment that is served there.

    An import string `module:Class` is registered as `local/Class-v0` when it is first seen.

    Raises:
        UnknownEnvError: with the nearest known id.
    """
    if is_url(env_id):
        return Registration(env_id=env_id, entry_point=_REMOTE, kwargs={"url": env_id}, description="Served elsewhere.")
    written = _IMPORT_STRING.fullmatch(env_id)
    if written:
        name = f"local/{written[1]}-v0"
        Registration(env_id=name, entry_point=env_id).load()
        register(name, env_id, family="local")
        env_id = name
    found = _registrations.get(env_id)
    if found is None:
        hint = did_you_mean(env_id, _registrations)
        raise UnknownEnvError(f'no environment is registered as "{env_id}".{hint} `agentenv list` shows all of them.')
    return found


def is_url(env_id: str) -> bool:
    """True for the id of an environment that `agentenv serve-env` serves."""
    return _URL.match(env_id) is not None


def registered() -> tuple[Registration, ...]:
    """Return all registrations, sorted by id."""
    return tuple(_registrations[key] for key in sorted(_registrations))


def make(env_id: str, *, wrap: object = (), **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Make an environment with Gymnasium's standard wrappers, as `gymnasium.make` does.

    Args:
        env_id: registered id, import string, or the URL of a served environment.
        wrap: wrappers of this package that go around it, the first one innermost; see `agentenv.wrapping`.
        **kwargs: for Gymnasium and the constructor.
    """
    entry = registration(env_id)
    if is_url(env_id):
        spec = EnvSpec(id="agentenv/Served-v0", entry_point=_REMOTE, kwargs=cast("dict[str, Any]", dict(entry.kwargs)))
        return _wrapped(gymnasium.make(spec, **kwargs), wrap)
    return _wrapped(gymnasium.make(entry.env_id, **kwargs), wrap)


def make_bare(env_id: str, *, wrap: object = (), **kwargs: object) -> AgentEnv:
    """Make the environment without Gymnasium's wrappers; what the runner plays.

    Args:
        env_id: registered id.
        wrap: wrappers of this package that go around it, the first one innermost; what is returned then has the same
            contract, and its attribute `unwrapped` is the environment itself.
        **kwargs: for the constructor.

    Raises:
        UsageError: an argument does not exist; the message names the near miss.
    """
    entry = registration(env_id)
    env_class = entry.load()
    # the options of a served environment are known, and checked, where it is served
    allowed = tuple(kwargs) if is_url(env_id) else (*constructor_options(env_class), "wrap")
    for name in kwargs:
        if name not in allowed:
            options = ", ".join(allowed)
            raise UsageError(f'{env_id} has no option "{name}".{did_you_mean(name, allowed)} Options: {options}.')
    try:
        made = env_class(**{**entry.kwargs, **kwargs})  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(f"{env_id} cannot be made with {kwargs}: {error}") from error
    return _wrapped(made, wrap)


def _wrapped(env: Any, wrap: object) -> Any:
    if not wrap:
        return env
    wrapped = importlib.import_module("agentenv.wrapping").wrapped  # late: most runs have no wrapper
    return wrapped(env, wrap)


@functools.lru_cache(maxsize=512)
def constructor_options(env_class: type[AgentEnv]) -> tuple[str, ...]:
    """Return the names of a class's constructor options, those that it passes on to its bases included."""
    found: dict[str, None] = {}
    for base in env_class.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        found.update((p.name, None) for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return tuple(found)


def load_plugins() -> None:
    """Register the environments that installed packages announce.

    A package announces them in its entry-point group `agentenv.envs`: the name is the id, the value the import string.
    """
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            register(entry.name, entry.value)
        except UsageError as error:  # one bad plugin must not take the others, and this package, with it
            warnings.warn(f"plugin environment {entry.name} was left out: {error}", RuntimeWarning, stacklevel=2)
