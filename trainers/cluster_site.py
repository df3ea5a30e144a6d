"""A run spread over a cluster: ranks, rollout workers and reward workers as actors, driven from here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from agentenv.agent.protocol import Agent
from agentenv.engine.hf import HFEngineConfig
from agentenv.engine.protocol import Engine
from agentenv.engine.weights import load_weights
from agentenv.env import group_rewards
from agentenv.episode import Sampling
from agentenv.registry import registration
from agentenv.renderer import Renderer
from agentenv.runner import Runner
from agentenv.trainers.cluster_fleet import Fleet, RemoteRunner
from agentenv.trainers.cluster_layout import Layout, check_fits, make_layout
from agentenv.trainers.cluster_peer import Peer, call_all
from agentenv.trainers.cluster_ranks import Rank, RankLearner, check_shared, form_group
from agentenv.trainers.cluster_ray import Placement, RayPeer, node_resources, reserve
from agentenv.trainers.cluster_rollouts import RewardWorker, RolloutWorker
from agentenv.trainers.config import ClusterConfig, RunConfig
from agentenv.trainers.learner import Learner
from agentenv.trainers.model import Policy, save_policy
from agentenv.trainers.phase import Phase
from agentenv.trainers.serving import serve_policy
from agentenv.trainers.site import LocalSite


class RayTeam:
    """The ranks. Implements `agentenv.trainers.ranks.Team`.

    Args:
        ranks: that have met.
        put: lays a value into the object store.
    """

    def __init__(self, ranks: Sequence[Peer], *, put: Callable[[object], object]) -> None:
        self._ranks, self._put = ranks, put

    async def learner(self, phase: Phase, *, policy: Policy) -> Learner:
        """See `Team.learner`; every rank loads the phase's model and keeps its shard."""
        await call_all(self._ranks, "open", phase)
        return RankLearner(self._ranks, put=self._put)

    async def refresh(self, policy: Policy, *, learner: Learner) -> None:
        """See `Team.refresh`."""
        load_weights(policy.model.causal_lm, await learner.weights())

    def close(self) -> None:
        """The site ends the ranks."""


class RaySite:
    """The parts of a run on a Ray cluster. Implements `agentenv.trainers.site.Site`; make it with `open_ray_site`.

    Args:
        config: of the run.
        layout: where the parts go.
        placement: what is reserved for them.
    """

    device = "cpu"

    def __init__(self, config: RunConfig, *, layout: Layout, placement: Placement) -> None:
        self.config = config
        self._layout, self._placement = layout, placement
        self._folder = os.getcwd()
        self._fleet: Fleet | None = None
        self._is_closed = False
        self._ranks = [self._spawn_rank(rank, node) for rank, node in enumerate(layout.rank_nodes)]
        self._gpus: list[str] = []
        self.team = RayTeam(self._ranks, put=placement.put)

    async def check(self, folder: Path) -> None:
        """Wait until the ranks have met, and see that they share the run's folder.

        Raises:
            ClusterError: one did not start, or does not see the folder.
        """
        await check_shared(self._ranks, folder=folder)
        await form_group(self._ranks)
        self._gpus = await call_all(self._ranks, "gpus")

    async def engine(
        self, policy: Policy, *, version: int, folder: Path, start: Path, told: Callable[[str], None]
    ) -> Engine:
        """See `Site.engine`: a pool over the rollout workers, or over servers that already run."""
        if not self._layout.rollout_nodes:
            return await serve_policy(
                policy, self.config.engine, version=version, folder=folder, start=start, told=told
            )
        save_policy(policy, folder)
        rewarders = self._spawn_rewarders()
        self._fleet = Fleet(
            lambda index: self._spawn_rollouts(index, rewarders=rewarders),
            count=len(self._layout.rollout_nodes),
            put=self._placement.put,
            model=str(folder),
            version=version,
        )
        return await self._fleet.open()

    def runner(self, engine: Engine, renderer: Renderer, *, agent: Agent, sampling: Sampling) -> Runner:
        """See `Site.runner`; it plays in the rollout workers."""
        here = LocalSite(self.config, team=self.team).runner(engine, renderer, agent=agent, sampling=sampling)
        return here if self._fleet is None else RemoteRunner(self._fleet, here)

    async def close(self) -> None:
        """End all actors and give the reservation back; idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._placement.free()

    def _spawn_rank(self, rank: int, node: int) -> RayPeer:
        return self._placement.spawn(
            Rank,
            self.config,
            rank=rank,
            world_size=len(self._layout.rank_nodes),
            folder=self._folder,
            role=f"rank {rank}",
            node=node,
            num_cpus=1.0,
            num_gpus=1.0 if self._layout.gpus_per_node else 0.0,
        )

    def _spawn_rollouts(self, index: int, *, rewarders: dict[int, Peer]) -> Peer:
        """Start a rollout worker; one that shares a GPU reserves nothing, and is shown the GPU of its rank."""
        layout, node = self._layout, self._layout.rollout_nodes[index]
        is_alone = not layout.shares_gpus
        env = {}
        if layout.shares_gpus and layout.gpus_per_node:
            env = {"CUDA_VISIBLE_DEVICES": self._gpus[index], "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        return self._placement.spawn(
            RolloutWorker,
            self.config,
            folder=self._folder,
            rewarder=rewarders.get(node),
            role=f"rollout worker {index}",
            node=node,
            num_cpus=1.0 if is_alone else 0.0,
            num_gpus=1.0 if is_alone and layout.gpus_per_node else 0.0,
            env=env,
        )

    def _spawn_rewarders(self) -> dict[int, Peer]:
        """Start a reward worker on every node that samples, where the environment has group rewards."""
        if not any(group_rewards(registration(part.id).load()) for part in self.config.env.parts):
            return {}
        return {
            node: self._placement.spawn(
                RewardWorker,
                self.config,
                folder=self._folder,
                role=f"reward worker {node}",
                node=node,
                num_cpus=0.0,
                is_stateless=True,
            )
            for node in sorted(set(self._layout.rollout_nodes))
        }


async def open_ray_site(config: RunConfig, *, folder: Path) -> RaySite:
    """Reserve the part of the cluster that the run asks for, and start the ranks in it.

    Args:
        config: of the run.
        folder: of the run; every node must see it.

    Raises:
        PlacementError: the cluster has no room.
        ClusterError: a rank did not start.
    """
    layout = layout_of(config)
    check_fits(layout, node_resources())
    placement = await reserve(layout)
    try:
        site = RaySite(config, layout=layout, placement=placement)
        await site.check(folder)
    except BaseException:
        placement.free()
        raise
    return site


def layout_of(config: RunConfig) -> Layout:
    """Return where the parts of a run go.

    Raises:
        PlacementError: its placement makes no sense.
    """
    assert isinstance(config.cluster, ClusterConfig)
    has_rollouts = isinstance(config.engine, HFEngineConfig) or not config.engine.urls
    return make_layout(config.cluster, has_rollouts=has_rollouts)
