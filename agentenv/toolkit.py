"""`Toolkit`, tools that share a state of one episode, and `attached`, which gives an environment one per episode."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from agentenv.offload import is_async
from agentenv.tool import Tool, tools_of_class

if TYPE_CHECKING:
    from agentenv.env import ToolEnv

K = TypeVar("K", bound="Toolkit")
P = ParamSpec("P")


class Toolkit:
    """Tools with a state. Authors write `@tool` methods; an environment takes them up with `attached` or `attach`.

    The constructor is cheap and opens nothing: environments are made only to look at their tools, too. What a tool
    needs, such as a process, it opens at its first call and frees in `close`.
    """

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools, bound to this state."""
        return tuple(item.bind(self) for item in tools_of_class(type(self)))

    def joined(self, env: ToolEnv) -> None:
        """Learn of the environment, once, before its episode begins; the default does nothing."""

    def close(self) -> Awaitable[None] | None:
        """Free everything; idempotent. May be async. Runs once the episode is over."""


class attached(Generic[P, K]):  # noqa: N801 - reads as a word where it is used
    """A class attribute of an environment: a toolkit that is made anew for every episode.

    Inside the environment the attribute is the toolkit of the running episode.

    Args:
        kit: class of the toolkit, or any function that makes one.
        args: for `kit`.
        kwargs: for `kit`.
    """

    def __init__(self, kit: Callable[P, K], *args: P.args, **kwargs: P.kwargs) -> None:
        self._kit = kit
        self._args = args
        self._kwargs = kwargs
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, env: None, owner: type) -> attached[P, K]: ...

    @overload
    def __get__(self, env: ToolEnv, owner: type) -> K: ...

    def __get__(self, env: ToolEnv | None, owner: type) -> attached[P, K] | K:
        return self if env is None else cast(K, env.kits.attached[self._name])

    def make(self) -> K:
        """Return a new toolkit."""
        return self._kit(*self._args, **self._kwargs)


class Kits:
    """The toolkits of one environment: those of the running episode, and those that last.

    Args:
        cls: the environment's class; what it declares with `attached` is made at once.

    Attributes:
        attached: toolkits that the class declares, by attribute.
    """

    def __init__(self, cls: type) -> None:
        self._declared = attached_of_class(cls)
        self.attached: dict[str, Toolkit] = {name: item.make() for name, item in self._declared.items()}
        self._open: list[Toolkit] = []
        self._lasting: list[Toolkit] = []

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Tools of the attached toolkits."""
        return tuple(item for kit in self.attached.values() for item in kit.tools)

    @property
    def close_never_waits(self) -> bool:
        """True when no toolkit has an asynchronous `close`."""
        return not any(is_async(kit.close) for kit in (*self._open, *self._lasting))

    def add(self, kit: Toolkit, *, lasting: bool) -> None:
        """Keep a toolkit for this episode, or for all."""
        (self._lasting if lasting else self._open).append(kit)

    def renew(self, env: ToolEnv, tools: Mapping[str, Tool]) -> dict[str, Tool]:
        """Make the attached toolkits anew and return the tools, in the order of before, with the new ones in place."""
        self.attached = {name: item.make() for name, item in self._declared.items()}
        for kit in self.attached.values():
            kit.joined(env)
        self._open.extend(self.attached.values())
        fresh = {item.name: item for item in self.tools}
        return {name: fresh.get(name, item) for name, item in tools.items()}

    def take_open(self) -> list[Toolkit]:
        """Return the toolkits of the episode and forget them; the caller closes them."""
        kits, self._open = self._open, []
        return kits

    def take_lasting(self) -> list[Toolkit]:
        """Return the toolkits that last and forget them; the caller closes them."""
        kits, self._lasting = self._lasting, []
        return kits


@functools.lru_cache(maxsize=256)
def attached_of_class(cls: type) -> dict[str, attached[..., Any]]:
    """Return what a class declares with `attached`, by attribute, base classes first; overrides replace."""
    found: dict[str, attached[..., Any]] = {}
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            if isinstance(member, attached):
                found[name] = member
            else:
                found.pop(name, None)
    return found
