"""One back end of each kind that works on this machine, and a sandbox of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from agentenv.errors import SandboxUnavailable
from agentenv.sandbox_settings import SandboxSettings
from agentenv.tools.sandbox.choice import make_backend
from agentenv.tools.sandbox.forked_sandbox import ForkedSandbox
from agentenv.tools.sandbox.forking_backend import ForkingBackend
from agentenv.tools.sandbox.sandbox import Limits
from agentenv.tools.sandbox.self_test import run_self_test
from agentenv.tools.sandbox.unconfined import ALLOWED_BY


def made(name: str) -> ForkingBackend:
    """A back end that passed its self-test; skips where there is none."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(ALLOWED_BY, "1")
        try:
            backend = make_backend(SandboxSettings(backend=name), name)
        except SandboxUnavailable as error:
            pytest.skip(str(error))
    assert isinstance(backend, ForkingBackend)
    why = "" if name == "none" else asyncio.run(run_self_test(backend))
    if why:
        backend.close_now()
        pytest.skip(f"{name} does not work here: {why}")
    return backend


@pytest.fixture(scope="session", params=["bwrap", "landlock", "none"])
def backend(request: pytest.FixtureRequest) -> Iterator[ForkingBackend]:
    """Every local back end."""
    backend = made(request.param)
    yield backend
    backend.close_now()


@pytest.fixture(scope="session")
def strong() -> Iterator[ForkingBackend]:
    """The strong one."""
    backend = made("bwrap")
    yield backend
    backend.close_now()


@pytest.fixture
async def sandbox(backend: ForkingBackend) -> AsyncIterator[ForkedSandbox]:
    """A sandbox of every local back end."""
    sandbox = await backend.open(limits=Limits())
    yield sandbox
    await sandbox.close()


@pytest.fixture
async def strong_sandbox(strong: ForkingBackend) -> AsyncIterator[ForkedSandbox]:
    """A sandbox of the strong back end."""
    sandbox = await strong.open(limits=Limits(wall_s=60.0))  # other tests run beside this one
    yield sandbox
    await sandbox.close()
