"""Every exception of the project on one page, and `boundary`, which names the side that failed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

Side = Literal["env", "tool", "sandbox", "engine", "reward"]

_DESCRIBED_CHARS = 8000


class AgentEnvError(Exception):
    """Root of everything that this package raises on purpose."""


class UsageError(AgentEnvError, ValueError):
    """The caller asked for something that cannot be: says what came, what is allowed, what to do."""


class ConfigError(UsageError):
    """A configuration file or override is wrong; the message names file, line or key."""


class UnknownEnvError(UsageError):
    """No environment is registered under this id."""


class DataError(UsageError):
    """A data file is wrong; the message names file, row, field and what was expected."""


class ToolSchemaError(UsageError):
    """A tool's signature or docstring cannot be turned into a schema."""


class ModelError(UsageError):
    """A model folder cannot be used: tokenizer, chat template or vocabulary is missing or disagrees."""


class RunFolderError(UsageError):
    """A run folder exists, is locked, or cannot be written."""


class PlacementError(UsageError):
    """A run asks for more machines or devices than there are."""


class SandboxUnavailable(UsageError):
    """No back end isolates well enough here: says what was found, what failed, why, and the choices."""


class ToolError(AgentEnvError):
    """Raised by a tool to tell the *model* that its call was refused; becomes an error observation."""


class GraphError(AgentEnvError):
    """A graph that plays as an agent failed, or did what no environment can follow; names the node where known."""


class EpisodeEnded(AgentEnvError):
    """Raised inside an agent's own program: the episode is over, so what it still wants is not done."""


class RankError(AgentEnvError):
    """A process that trains failed or fell silent; names its rank and carries its traceback where there is one."""


class EngineError(AgentEnvError):
    """An inference engine failed or answered something that must not be trained on."""


class EngineClosed(EngineError):
    """The engine was closed while a request was waiting or running."""


class RolloutsFailed(AgentEnvError):
    """Group after group failed without a scored episode; going on would never end."""


class TrainingDiverged(AgentEnvError):
    """Update after update had a loss or gradient that is not finite; the weights are those before the first of them."""


class ClusterError(AgentEnvError):
    """A part of a run on a cluster failed or was lost; names its role, its node, and what it said last."""


class PeerLost(ClusterError):
    """The process of a part is gone, or its node is."""


class CheckFailed(AgentEnvError):
    """A promise of the environment, tool or engine contract does not hold."""


class StoreError(AgentEnvError):
    """Trajectories or metrics could not be stored or read; nothing already stored is lost."""


class CheckpointError(AgentEnvError):
    """A checkpoint is missing, torn or belongs to another model."""


class EpisodeError(AgentEnvError):
    """A failure inside an episode, tagged with the side that caused it.

    Attributes:
        side: which side failed.
        where: the callable or component, e.g. `"GuessNumber.guess"`.
    """

    def __init__(self, side: Side, where: str, message: str) -> None:
        super().__init__(f"{side} failure in {where}: {message}")
        self.side: Side = side
        self.where = where


class SandboxError(EpisodeError):
    """A sandbox broke by itself, not by what ran in it: an infrastructure failure, which is no reward."""

    def __init__(self, where: str, detail: str) -> None:
        super().__init__("sandbox", where, detail)


class DeadlineExceeded(EpisodeError):
    """A wait of ours ran past its named deadline."""


def describe(error: BaseException) -> str:
    """Return `Type: message`, also for exceptions whose `str()` raises; of a long message the beginning."""
    try:
        text = str(error)
    except BaseException:  # a foreign exception may have a broken __str__
        text = "<message unavailable: str() raised>"
    if len(text) > _DESCRIBED_CHARS:
        text = f"{text[:_DESCRIBED_CHARS]}... ({len(text):,} characters)"
    name = type(error).__name__
    return f"{name}: {text}" if text else name


class boundary:  # noqa: N801 - reads as a verb where it is used
    """Wrap a call into foreign code; whatever it raises becomes an `EpisodeError` of that side.

    `ToolError` of a tool passes through (it speaks to the model), as do errors that already name a side and everything
    that is not an `Exception` (cancellation, keyboard interrupt). A class, because a generator costs four times as much
    on a path that is taken several times a turn.
    """

    __slots__ = ("side", "where")

    def __init__(self, side: Side, where: str) -> None:
        self.side: Side = side
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or isinstance(error, EpisodeError) or not isinstance(error, Exception):
            return
        if self.side == "tool" and isinstance(error, ToolError):
            return
        raise EpisodeError(self.side, self.where, describe(error)) from error


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return `' Did you mean "x"?'` for a near miss, else an empty string."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f' Did you mean "{close[0]}"?' if close else ""
