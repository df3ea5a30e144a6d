"""Chooses the back end of this process once, by running each candidate's self-test, and never steps down silently."""

from __future__ import annotations

import asyncio
import atexit
import importlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import cast

from agentenv.errors import AgentEnvError, SandboxUnavailable, UsageError, describe, did_you_mean
from agentenv.sandbox_settings import SandboxSettings, sandbox_settings
from agentenv.tools.sandbox.sandbox import Completed, Isolation, Limits, Sandbox, SandboxBackend
from agentenv.tools.sandbox.self_test import run_self_test

BACKENDS: dict[str, str] = {
    "bwrap": "agentenv.tools.sandbox.bwrap:make_backend",
    "landlock": "agentenv.tools.sandbox.landlock:make_backend",
    "none": "agentenv.tools.sandbox.unconfined:make_backend",
    "remote": "agentenv.tools.sandbox.remote:make_backend",
    "docker": "agentenv.tools.sandbox.container:make_docker",
    "podman": "agentenv.tools.sandbox.container:make_podman",
}
"""Import strings of functions that take `SandboxSettings` and return a `SandboxBackend`."""

_AUTOMATIC: tuple[tuple[str, Isolation], ...] = (("bwrap", "strong"), ("landlock", "reduced"))
_STRENGTH: dict[Isolation, int] = {"none": 0, "reduced": 1, "strong": 2}

_REMEDIES = """What you can do:
- install bubblewrap (apt-get install bubblewrap), the strongest that needs no service;
- in a container: allow user namespaces (docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined
  --cap-add SYS_ADMIN), or let another machine run the code (sandbox.backend: remote, sandbox.url: http://...);
- on Ubuntu 23.10 and later: give /usr/bin/bwrap an AppArmor profile that allows userns;
- accept a weaker border, without a process table of its own and without disk quota: sandbox.min_isolation: reduced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The back end in use.

    Attributes:
        backend: makes the sandboxes.
        settings: by which it was chosen.
        failures: candidates that were tried before it, and why each did not do.
    """

    backend: SandboxBackend
    settings: SandboxSettings
    failures: tuple[tuple[str, str], ...] = ()

    def describe(self) -> str:
        """Return one line for people and for the record of a run."""
        tried = "".join(f"; {name} failed: {why}" for name, why in self.failures)
        return f"{self.backend.name}, isolation {self.backend.isolation}{tried}"


_lock = threading.Lock()
_choices: dict[SandboxSettings, Future[Choice]] = {}


async def open_sandbox(*, limits: Limits | None = None) -> Sandbox:
    """Return a sandbox for one episode; close it when the episode ends.

    Raises:
        SandboxUnavailable: nothing isolates well enough here.
        SandboxError: the back end failed.
    """
    choice = await chosen()
    return await choice.backend.open(limits=limits or Limits())


async def execute(code: str, *, stdin: str = "", limits: Limits | None = None) -> Completed:
    """Run one Python program in a fresh sandbox that is gone afterwards.

    Raises:
        SandboxUnavailable: nothing isolates well enough here.
        SandboxError: the back end failed.
    """
    choice = await chosen()
    return await choice.backend.execute(code, stdin=stdin, limits=limits or Limits())


async def chosen(settings: SandboxSettings | None = None) -> Choice:
    """Return this process's back end, probing once; raises SandboxUnavailable when nothing does."""
    settings = settings or sandbox_settings()
    while True:
        with _lock:
            waiting = _choices.get(settings)
            is_ours = waiting is None
            if waiting is None:
                waiting = _choices[settings] = Future()
        if not is_ours:
            try:
                return await asyncio.shield(asyncio.wrap_future(waiting))
            except asyncio.CancelledError:
                if not waiting.cancelled():
                    raise
                continue  # whoever probed was cancelled: probe ourselves
        return await _settle(settings, waiting)


async def close_sandboxes() -> None:
    """Close every back end of this process; the next use starts anew."""
    with _lock:
        choices = list(_choices.values())
        _choices.clear()
    for choice in choices:
        if choice.done() and not choice.cancelled() and choice.exception() is None:
            await choice.result().backend.close()


def make_backend(settings: SandboxSettings, name: str) -> SandboxBackend:
    """Return a back end by name, untested; raises SandboxUnavailable when it cannot be made here."""
    if name not in BACKENDS:
        allowed = ", ".join(["auto", *BACKENDS])
        raise UsageError(f"sandbox.backend is {name!r}; allowed are {allowed}.{did_you_mean(name, BACKENDS)}")
    module, _, function = BACKENDS[name].partition(":")
    make = cast("Callable[[SandboxSettings], SandboxBackend]", getattr(importlib.import_module(module), function))
    return make(settings)


async def _settle(settings: SandboxSettings, waiting: Future[Choice]) -> Choice:
    try:
        choice = await _probe(settings)
    except BaseException as error:
        with _lock:
            _choices.pop(settings, None)
        if isinstance(error, Exception):
            waiting.set_exception(error)
        else:
            waiting.cancel()
        raise
    waiting.set_result(choice)
    return choice


async def _probe(settings: SandboxSettings) -> Choice:
    failures: list[tuple[str, str]] = []
    for name in _candidates(settings):
        try:
            backend = make_backend(settings, name)
        except SandboxUnavailable as error:
            failures.append((name, str(error)))
            continue
        try:
            why = await _tested(backend, settings)
        except BaseException:
            await asyncio.shield(backend.close())
            raise
        if not why:
            return Choice(backend=backend, settings=settings, failures=tuple(failures))
        await backend.close()
        failures.append((name, why))
    raise SandboxUnavailable(_unavailable(settings, failures))


async def _tested(backend: SandboxBackend, settings: SandboxSettings) -> str:
    if backend.isolation == "none":
        return ""  # asked for in two places; there is nothing that a test could show
    if _STRENGTH[backend.isolation] < _STRENGTH[settings.min_isolation]:
        return f"its isolation is {backend.isolation}; sandbox.min_isolation asks for {settings.min_isolation}"
    try:
        return await run_self_test(backend)
    except AgentEnvError as error:
        return describe(error)


def _candidates(settings: SandboxSettings) -> list[str]:
    if settings.backend != "auto":
        return [settings.backend]
    return [name for name, isolation in _AUTOMATIC if _STRENGTH[isolation] >= _STRENGTH[settings.min_isolation]]


def _unavailable(settings: SandboxSettings, failures: list[tuple[str, str]]) -> str:
    tried = "\n".join(f"- {name}: {why}" for name, why in failures)
    wanted = f"sandbox.backend: {settings.backend}, sandbox.min_isolation: {settings.min_isolation}"
    return f"No sandbox isolates well enough here ({wanted}). Tried:\n{tried}\n{_REMEDIES}"


def _close_at_exit() -> None:
    for choice in _choices.values():
        if choice.done() and not choice.cancelled() and choice.exception() is None:
            close_now = getattr(choice.result().backend, "close_now", None)
            if close_now is not None:
                close_now()


def _forget_after_fork() -> None:
    """A forked child shares our sockets but not our processes: it starts its own."""
    global _lock
    _lock = threading.Lock()
    _choices.clear()


atexit.register(_close_at_exit)
os.register_at_fork(after_in_child=_forget_after_fork)
