"""Which tools an episode may call: an allow-list by name, and read-only as the default for what reaches outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Declared(Protocol):
    """What a tool declares about itself, as far as a policy asks."""

    @property
    def read_only(self) -> bool:
        """It changes nothing that others can see."""
        ...

    @property
    def reaches_outside(self) -> bool:
        """It talks to something beyond the episode."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPolicy:
    """Decides which tools may be called; the others are neither offered nor run.

    Attributes:
        allowed: names of the only tools that may be called; None allows all.
        may_change_outside: names of the tools that may change what lies beyond the episode. A tool that declares
            `reaches_outside` and not `read_only` is refused unless it is named here.
    """

    allowed: frozenset[str] | None = None
    may_change_outside: frozenset[str] = frozenset()

    def refusal(self, name: str, declared: Declared) -> str:
        """Return why a tool may not be called, in words for the model; empty when it may."""
        if self.allowed is not None and name not in self.allowed:
            return f'the tool "{name}" is not allowed here.'
        if declared.reaches_outside and not declared.read_only and name not in self.may_change_outside:
            return f'the tool "{name}" would change things outside of this episode, which is not allowed here.'
        return ""
