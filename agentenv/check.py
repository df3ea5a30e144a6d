"""`check_env`: the promises of an environment, Gymnasium's and ours, as checks that anybody may run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium

from agentenv.check_promises import PROMISES, Skipped, Subject
from agentenv.env import AgentEnv
from agentenv.errors import CheckFailed, UsageError, describe
from agentenv.registry import constructor_options, make_bare

Status = Literal["ok", "FAILED", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """How one promise was kept.

    Attributes:
        name: the promise.
        status: `"ok"`, `"FAILED"`, or `"skipped"` where it does not apply.
        detail: what was measured, or what is wrong.
    """

    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All results of one subject.

    Attributes:
        name: what was checked.
        results: in the order in which they ran.
    """

    name: str
    results: tuple[CheckResult, ...]

    @property
    def is_ok(self) -> bool:
        """True when nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The promises that do not hold."""
        return tuple(result for result in self.results if result.status == "FAILED")

    @property
    def rows(self) -> tuple[tuple[str, str, str], ...]:
        """Promise, status and detail, for tables."""
        return tuple((result.name, result.status, result.detail) for result in self.results)

    def require_ok(self) -> None:
        """Raise unless every promise is kept.

        Raises:
            CheckFailed: lists every promise that does not hold.
        """
        if not self.is_ok:
            found = "\n".join(f"- {result.name}: {result.detail}" for result in self.failures)
            total = len(self.results)
            raise CheckFailed(f"{self.name} breaks {len(self.failures)} of {total} promises:\n{found}")

    def __str__(self) -> str:
        width = max((len(result.name) for result in self.results), default=0)
        lines = [f"{r.status:8}{r.name:{width}}  {r.detail}".rstrip() for r in self.results]
        return "\n".join([self.name, *lines])


def result_of(name: str, found: str | Exception) -> CheckResult:
    """Return the result of a promise from what its check returned or raised."""
    if isinstance(found, str):
        return CheckResult(name=name, status="ok", detail=found)
    if isinstance(found, Skipped):
        return CheckResult(name=name, status="skipped", detail=str(found))
    detail = str(found) if isinstance(found, CheckFailed) else describe(found)
    return CheckResult(name=name, status="FAILED", detail=detail)


def check_env(
    env_or_id: str | type[AgentEnv] | AgentEnv,
    *,
    num_seeds: int = 20,
    env_kwargs: Mapping[str, Any] | None = None,
    raise_on_failure: bool = True,
) -> CheckReport:
    """Check that an environment keeps Gymnasium's contract and ours.

    It is played through its synchronous Gymnasium interface by its oracle, by its random policy and by garbage.

    Args:
        env_or_id: a registered id, a class, or an instance that was not reset yet (it is copied, never played).
        num_seeds: episodes per policy.
        env_kwargs: constructor arguments, for an id or a class.
        raise_on_failure: False only reports.

    Raises:
        CheckFailed: lists every promise that does not hold.
        UsageError: `env_or_id` cannot be checked.
    """
    if num_seeds < 1:
        raise UsageError(f"num_seeds is {num_seeds}; at least 1 is needed")
    subject = _subject(env_or_id, num_seeds=num_seeds, env_kwargs=dict(env_kwargs or {}))
    results: list[CheckResult] = []
    for name, check in PROMISES.items():
        try:
            results.append(result_of(name, check(subject)))
        except Exception as error:  # whatever an environment raises is a finding
            results.append(result_of(name, error))
    report = CheckReport(name=subject.name, results=tuple(results))
    if raise_on_failure:
        report.require_ok()
    return report


def _subject(env_or_id: str | type[AgentEnv] | AgentEnv, *, num_seeds: int, env_kwargs: dict[str, Any]) -> Subject:
    if isinstance(env_or_id, str):

        def make(**more: Any) -> AgentEnv:
            return make_bare(env_or_id, **{**env_kwargs, **more})

        make().close()  # tells a wrong id or argument before Gymnasium does
        with gymnasium.make(env_or_id, disable_env_checker=True, **env_kwargs) as made:
            return Subject(name=env_or_id, make=make, num_seeds=num_seeds, spec=made.spec, splits=True)
    if isinstance(env_or_id, type) and issubclass(env_or_id, AgentEnv):
        env_class = env_or_id

        def build(**more: Any) -> AgentEnv:
            return env_class(**{**env_kwargs, **more})

        can_split = "split" in constructor_options(env_class)
        return Subject(name=env_class.__name__, make=build, num_seeds=num_seeds, spec=None, splits=can_split)
    if not isinstance(env_or_id, AgentEnv):
        kind = type(env_or_id).__name__
        raise UsageError(f"check_env takes an id, a class or an instance of AgentEnv, not {kind}")
    if env_kwargs:
        raise UsageError("env_kwargs go with an id or a class; this instance is made already")
    if env_or_id.conversation:
        raise UsageError(f"this {type(env_or_id).__name__} was played already; pass a fresh one, an id or the class")
    return Subject(
        name=type(env_or_id).__name__,
        make=lambda: copy.deepcopy(env_or_id),
        num_seeds=num_seeds,
        spec=None,
        splits=False,
    )
