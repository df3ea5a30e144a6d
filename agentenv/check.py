"""`check_env`: the promises of an environment, Gymnasium's and ours, as checks that anybody may run."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium

from agentenv.check_promises import PROMISES
from agentenv.check_subject import Skipped, Subject
from agentenv.env import AgentEnv
from agentenv.errors import CheckFailed, UsageError, describe, did_you_mean
from agentenv.registry import constructor_options, make_bare, registration

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
        means: mean return by policy, of those that were played.
    """

    name: str
    results: tuple[CheckResult, ...]
    means: Mapping[str, float] = field(default_factory=dict)

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
    leave_out: Collection[str] = (),
    raise_on_failure: bool = True,
) -> CheckReport:
    """Check that an environment keeps Gymnasium's contract and ours.

    It is played by its oracle, by its random policy, by its cheat and by garbage.

    Args:
        env_or_id: a registered id, a class, or an instance that was not reset yet (it is copied, never played).
        num_seeds: episodes of the oracle and of the random policy; a class may ask for fewer (`check_seeds`).
        env_kwargs: constructor arguments, for an id or a class.
        leave_out: names of promises that are not checked.
        raise_on_failure: False only reports.

    Raises:
        CheckFailed: lists every promise that does not hold.
        UsageError: `env_or_id` cannot be checked.
    """
    if num_seeds < 1:
        raise UsageError(f"num_seeds is {num_seeds}; at least 1 is needed")
    unknown = [name for name in leave_out if name not in PROMISES]
    if unknown:
        raise UsageError(f'"{unknown[0]}" is no promise.{did_you_mean(unknown[0], PROMISES)}')
    subject = subject_of(env_or_id, num_seeds=num_seeds, env_kwargs=dict(env_kwargs or {}))
    why = subject.env_class.unavailable()
    if why:
        raise UsageError(f"{subject.name} cannot be checked here: {why}")
    subject.num_seeds = min(num_seeds, subject.env_class.check_seeds)
    results: list[CheckResult] = []
    for name, check in PROMISES.items():
        if name in leave_out:
            continue
        try:
            results.append(result_of(name, check(subject)))
        except Exception as error:  # whatever an environment raises is a finding
            results.append(result_of(name, error))
    report = CheckReport(name=subject.name, results=tuple(results), means=subject.means)
    if raise_on_failure:
        report.require_ok()
    return report


def subject_of(env_or_id: str | type[AgentEnv] | AgentEnv, *, num_seeds: int, env_kwargs: dict[str, Any]) -> Subject:
    """Return what `check_env` plays.

    Raises:
        UsageError: it cannot be checked.
    """
    if isinstance(env_or_id, str):
        env_or_id = registration(env_or_id).env_id

        def make(**more: Any) -> AgentEnv:
            return make_bare(env_or_id, **{**env_kwargs, **more})

        make().close()  # tells a wrong id or argument before Gymnasium does
        with gymnasium.make(env_or_id, disable_env_checker=True, **env_kwargs) as made:
            return Subject(
                name=env_or_id, make=make, num_seeds=num_seeds, spec=made.spec, splits=True, env_kwargs=env_kwargs
            )
    if isinstance(env_or_id, type) and issubclass(env_or_id, AgentEnv):
        env_class = env_or_id

        def build(**more: Any) -> AgentEnv:
            return env_class(**{**env_kwargs, **more})

        can_split = "split" in constructor_options(env_class)
        return Subject(
            name=env_class.__name__, make=build, num_seeds=num_seeds, spec=None, splits=can_split, env_kwargs=env_kwargs
        )
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
