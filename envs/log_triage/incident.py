"""A seeded incident: services that call each other, one of which breaks, and what all of them log."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, NamedTuple, get_args

from agentenv.splits import Split, draw_for

Cause = Literal["bad_deploy", "disk_full", "expired_certificate", "memory_leak", "config_change", "lost_database"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
Level = Literal["INFO", "WARN", "ERROR"]

SERVICES = (
    "gateway", "orders", "basket", "billing", "stock", "search", "mailer", "accounts", "ratings", "shipping", "prices",
    "images", "reports", "coupons",
)  # fmt: skip
LAST_MINUTE = 179

_EARLY: Mapping[str, tuple[tuple[str, str], ...]] = {
    "bad_deploy": (("INFO", "started version {version}"),),
    "disk_full": (("WARN", "volume data at 97 percent"),),
    "expired_certificate": (("WARN", "certificate not renewed, retrying later"),),
    "memory_leak": (("WARN", "heap at 94 percent after collection"),),
    "config_change": (("INFO", "configuration {version} loaded"),),
    "lost_database": (("WARN", "replica lag grows"),),
}
_SYMPTOMS: Mapping[str, tuple[str, ...]] = {
    "bad_deploy": (
        "TypeError in handler since {version}: field missing",
        "unhandled exception in {version}, request dropped",
    ),
    "disk_full": ("write failed: no space left on device", "cannot rotate log: no space left"),
    "expired_certificate": ("TLS handshake failed: certificate has expired", "peer rejected our certificate"),
    "memory_leak": ("worker killed: out of memory", "allocation failed, heap exhausted"),
    "config_change": (
        "unknown key in configuration {version}, feature is off",
        "invalid pool size in configuration {version}",
    ),
    "lost_database": ("connection to primary refused", "no database node accepts writes"),
}
_NOISE: tuple[tuple[str, str], ...] = (
    ("INFO", "request served in {n} ms"),
    ("INFO", "cache refreshed, {n} entries"),
    ("INFO", "health check ok"),
    ("WARN", "slow query, {n} ms"),
    ("WARN", "retrying after {n} ms"),
    ("INFO", "job {n} finished"),
)
_HARMLESS: tuple[str, ...] = (
    "client closed the connection",
    "rejected malformed request from a scanner",
    "rate limit reached for one key",
    "login refused, wrong password",
)


class Line(NamedTuple):
    """A line of a log; minutes count from the start of the window. A tuple, because every episode makes hundreds."""

    minute: int
    service: str
    level: str
    text: str

    def __str__(self) -> str:
        return f"{clock(self.minute)} {self.service} {self.level} {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A deploy or a change of configuration."""

    minute: int
    service: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What happened, and everything that can be looked at.

    Attributes:
        calls: service -> services that it calls.
        lines: of all services, by time.
        changes: deploys and configurations, by time.
        service: which one broke.
        cause: why.
        minute: of its first error that belongs to the incident.
    """

    calls: Mapping[str, tuple[str, ...]]
    lines: tuple[Line, ...]
    changes: tuple[Change, ...]
    service: str
    cause: Cause
    minute: int

    @property
    def title(self) -> str:
        """What tells incidents apart."""
        return f"{self.service} {self.cause} {self.minute} {dict(self.calls)}"


def clock(minute: int) -> str:
    """Return a minute of the window as a time of day."""
    return f"{9 + minute // 60:02d}:{minute % 60:02d}"


def draw_incident(rnd: random.Random, *, split: Split, difficulty: int) -> Incident:
    """Draw an incident of a split.

    Args:
        rnd: source of all chance.
        split: decided by service, cause, minute and call graph.
        difficulty: 1 to 5; more services, more noise, and from 2 on changes and errors that mislead.
    """
    num_services = 3 + 2 * difficulty
    core = draw_for(split, lambda: _core(rnd, num_services), content=lambda found: found.title)
    version = f"v{rnd.randrange(2, 9)}.{rnd.randrange(30)}"
    lines = _noise(rnd, core, per_service=6 + 3 * difficulty, with_errors=difficulty >= 2)
    lines += _symptoms(rnd, core, version)
    lines += _spread(rnd, core)
    if difficulty >= 4:
        lines += _earlier_trouble(rnd, core)
    lines.sort(key=itemgetter(0))  # by minute
    changes = _changes(rnd, core, version, num_misleading=difficulty)
    return Incident(
        calls=core.calls,
        lines=tuple(lines),
        changes=tuple(changes),
        service=core.service,
        cause=core.cause,
        minute=core.minute,
    )


def callers_of(calls: Mapping[str, tuple[str, ...]], service: str) -> list[str]:
    """Return everything that calls a service, directly or through others."""
    found: list[str] = []
    waiting = [service]
    while waiting:
        target = waiting.pop()
        new = [name for name, called in calls.items() if target in called and name not in found]
        found += new
        waiting += new
    return found


def _core(rnd: random.Random, num_services: int) -> Incident:
    names = rnd.sample(SERVICES, num_services)
    # a service only calls those behind it, so nothing calls in circles
    calls = {
        name: tuple(sorted(rnd.sample(names[i + 1 :], min(len(names) - i - 1, rnd.randrange(1, 3)))))
        for i, name in enumerate(names)
    }
    # two others must depend on it, so that errors spread; the last name always qualifies
    reached = [name for name in names if len(callers_of(calls, name)) >= 2]
    return Incident(
        calls=calls,
        lines=(),
        changes=(),
        service=rnd.choice(reached),
        cause=rnd.choice(CAUSES),
        minute=rnd.randrange(60, 140),
    )


def _noise(rnd: random.Random, core: Incident, *, per_service: int, with_errors: bool) -> list[Line]:
    lines: list[Line] = []
    for name in core.calls:
        for _ in range(per_service):
            level, text = _NOISE[int(rnd.random() * len(_NOISE))]
            lines.append(Line(int(rnd.random() * LAST_MINUTE), name, level, text.format(n=int(rnd.random() * 900))))
        if with_errors:
            lines.append(
                Line(minute=rnd.randrange(LAST_MINUTE), service=name, level="ERROR", text=rnd.choice(_HARMLESS))
            )
    return lines


def _symptoms(rnd: random.Random, core: Incident, version: str) -> list[Line]:
    texts = [text.format(version=version) for text in _SYMPTOMS[core.cause]]
    early = [(level, text.format(version=version)) for level, text in _EARLY[core.cause]]
    lines = [Line(minute=core.minute - 2, service=core.service, level=level, text=text) for level, text in early]
    minutes = [core.minute, *sorted(rnd.randrange(core.minute + 1, LAST_MINUTE) for _ in range(6))]
    return lines + [
        Line(minute=minute, service=core.service, level="ERROR", text=texts[index % len(texts)])
        for index, minute in enumerate(minutes)
    ]


def _spread(rnd: random.Random, core: Incident) -> list[Line]:
    """Errors of those who call the broken service, directly or not, each naming the one it called."""
    lines: list[Line] = []
    broken = {core.service, *callers_of(core.calls, core.service)}
    for name in sorted(broken - {core.service}):
        targets = [target for target in core.calls[name] if target in broken]
        for _ in range(rnd.randrange(3, 11)):
            minute = rnd.randrange(core.minute + 1, LAST_MINUTE)
            text = f"call to {rnd.choice(targets)} failed: {rnd.choice(['timeout', 'status 503', 'connection reset'])}"
            lines.append(Line(minute=minute, service=name, level="ERROR", text=text))
    return lines


def _earlier_trouble(rnd: random.Random, core: Incident) -> list[Line]:
    """A symptom of another cause, in another service, that healed long before: it is not the incident."""
    others = [name for name in core.calls if name != core.service]
    cause = rnd.choice([cause for cause in CAUSES if cause != core.cause])
    name, minute = rnd.choice(others), rnd.randrange(5, 40)
    text = _SYMPTOMS[cause][0].format(version="v1.9")
    return [
        Line(minute=minute, service=name, level="ERROR", text=text),
        Line(minute=minute + 3, service=name, level="INFO", text="recovered, all checks pass"),
    ]


def _changes(rnd: random.Random, core: Incident, version: str, *, num_misleading: int) -> list[Change]:
    others = [name for name in core.calls if name != core.service]
    changes = [
        Change(
            minute=rnd.randrange(core.minute - 20, core.minute),
            service=rnd.choice(others),
            what=f"{rnd.choice(['deploy', 'configuration'])} v{rnd.randrange(2, 9)}.{rnd.randrange(30)}",
        )
        for _ in range(num_misleading)
    ]
    if core.cause in ("bad_deploy", "config_change"):
        kind = "deploy" if core.cause == "bad_deploy" else "configuration"
        changes.append(Change(minute=core.minute - 2, service=core.service, what=f"{kind} {version}"))
    return sorted(changes, key=lambda change: change.minute)
