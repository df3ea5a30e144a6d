"""Where the parts of a run live: worker, engine and runner in this process, or wherever another `Site` puts them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from agentenv.agent.protocol import Agent
from agentenv.engine.protocol import Engine
from agentenv.episode import Sampling
from agentenv.errors import UsageError
from agentenv.renderer import Renderer
from agentenv.runner import Runner, RunnerConfig
from agentenv.sandbox_settings import use_sandbox
from agentenv.trainers.config import RunConfig
from agentenv.trainers.model import Policy
from agentenv.trainers.phase import device_of
from agentenv.trainers.ranks import Team
from agentenv.trainers.serving import serve_policy


class Site(Protocol):
    """Makes the parts of a run; who asks for a part closes it, and the site last."""

    @property
    def team(self) -> Team:
        """Who trains; the site's own is closed with it."""
        ...

    @property
    def device(self) -> str:
        """Where the driver's copy of the policy is."""
        ...

    async def engine(
        self, policy: Policy, *, version: int, folder: Path, start: Path, told: Callable[[str], None]
    ) -> Engine:
        """Return an engine that serves the policy; see `serve_policy`."""
        ...

    def runner(self, engine: Engine, renderer: Renderer, *, agent: Agent, sampling: Sampling) -> Runner:
        """Return what plays episodes through the engine."""
        ...

    async def close(self) -> None:
        """End everything; idempotent."""
        ...


class LocalSite:
    """Everything in this process.

    Args:
        config: of the run.
        team: who trains.
    """

    def __init__(self, config: RunConfig, *, team: Team) -> None:
        self.config = config
        self.team = team
        self.device = device_of(config.model.device)
        use_sandbox(config.sandbox)

    async def engine(
        self, policy: Policy, *, version: int, folder: Path, start: Path, told: Callable[[str], None]
    ) -> Engine:
        """See `Site.engine`."""
        return await serve_policy(policy, self.config.engine, version=version, folder=folder, start=start, told=told)

    def runner(self, engine: Engine, renderer: Renderer, *, agent: Agent, sampling: Sampling) -> Runner:
        """See `Site.runner`."""
        return Runner(
            engine=engine, renderer=renderer, agent=agent, config=runner_bounds(self.config), sampling=sampling
        )

    async def close(self) -> None:
        """Nothing is held."""


async def open_site(config: RunConfig, *, folder: Path, team: Team) -> Site:
    """Return the site that the configuration asks for.

    Args:
        config: of the run.
        folder: of the run.
        team: who trains where the run is not on a cluster.

    Raises:
        UsageError: Ray is not installed, or the cluster has no room.
        ClusterError: a part did not start.
    """
    if is_inline(config):
        return LocalSite(config, team=team)
    return await ray_module("cluster_site").open_ray_site(config, folder=folder)


def is_inline(config: RunConfig) -> bool:
    """True where everything runs in this process."""
    return config.cluster is None or config.cluster == "inline"


def ray_module(name: str) -> Any:
    """Import one of the modules that need Ray, which nothing else does.

    Raises:
        UsageError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "the configuration has a section cluster, but Ray is not installed: pip install 'agentenv[ray]', or "
            "take cluster=inline"
        )
    return importlib.import_module(f"agentenv.trainers.{name}")


def runner_bounds(config: RunConfig) -> RunnerConfig:
    """Return the runner's bounds; the engine would refuse a prompt that is longer than it reads."""
    limits = config.runner.limits
    room = min(limits.max_context_tokens, config.engine.max_length)
    return config.runner.model_copy(update={"limits": limits.model_copy(update={"max_context_tokens": room})})
