"""Rollout workers: an engine replica with the runner beside it, in a process of its own.

A group travels as a whole: one call begins all groups that were admitted together, one call per group fetches it. No
call is made per turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import torch

from agentenv.agent.registry import close_agent, make_agent
from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.open import open_engine
from agentenv.engine.protocol import (
    Ack,
    Completion,
    Engine,
    EngineHealth,
    LoraAdapter,
    PauseMode,
    SamplingParams,
    WeightManifest,
)
from agentenv.episode import Sampling
from agentenv.errors import ClusterError, EpisodeError
from agentenv.renderer import Renderer
from agentenv.runner import GroupSpec, Runner, score_registered
from agentenv.sandbox_settings import use_sandbox
from agentenv.tokenizer import wrap_tokenizer
from agentenv.trainers.cluster_parcel import Parcel
from agentenv.trainers.cluster_peer import Peer, call
from agentenv.trainers.cluster_ranks import enter
from agentenv.trainers.config import RunConfig
from agentenv.trainers.model import load_policy, load_tokenizer
from agentenv.trainers.phase import device_of
from agentenv.trainers.site import runner_bounds
from agentenv.trajectory import Group, Trajectory

REWARD_TIMEOUT_S = 600.0
"""Seconds for the group rewards of one group; a judge has its own, shorter deadlines."""
_CHECKED = 2**31  # the driver has compared the tokenizer with the model's embedding already


class RolloutWorker:
    """Plays groups next to its engine.

    Args:
        config: of the run.
        folder: the launching process's working folder.
        rewarder: scores groups in a process of its own; None scores here.
    """

    def __init__(self, config: RunConfig, *, folder: str, rewarder: Peer | None = None) -> None:
        enter(folder, threads=config.num_threads)
        use_sandbox(config.sandbox)
        self.config = config
        self._rewarder = rewarder
        self._agent = make_agent(config.agent.name, **config.agent.kwargs)
        self._engine: Engine | None = None
        self._runners: dict[int, Runner] = {}
        self._playing: dict[int, asyncio.Task[Group]] = {}

    async def open(self, model: str, version: int) -> None:
        """Open the engine on a model folder whose weights have this version."""
        self._engine = await _opened(self.config, model=model, version=version)
        self._renderer = Renderer(
            wrap_tokenizer(load_tokenizer(model, num_embeddings=_CHECKED)), family=self.config.model.renderer
        )

    async def add_runner(self, number: int, sampling: Sampling) -> None:
        """Make a runner, which `begin` names by its number."""
        self._runners[number] = Runner(
            engine=self.engine,
            renderer=self._renderer,
            agent=self._agent,
            config=runner_bounds(self.config),
            sampling=sampling,
            scorer=None if self._rewarder is None else self._score,
        )

    async def begin(self, groups: Sequence[tuple[int, int, GroupSpec]]) -> bool:
        """Start groups, in order, as (number, runner, group); the answer is what `result` takes as proof."""
        for number, runner, spec in groups:
            self._playing[number] = asyncio.create_task(self._runners[runner].run_group(spec))
        return True

    async def result(self, number: int, begun: bool) -> Group:
        """Wait for a group that began."""
        assert begun
        try:
            return await self._playing[number]
        finally:
            self._playing.pop(number, None)

    async def drop(self, number: int) -> None:
        """Cancel a group."""
        task = self._playing.pop(number, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Close engine, agents and runners."""
        for task in self._playing.values():
            task.cancel()
        await asyncio.gather(*self._playing.values(), return_exceptions=True)
        for runner in self._runners.values():
            await runner.close()
        await close_agent(self._agent)
        if self._engine is not None:
            await self._engine.close()

    # The verbs of an engine.

    @property
    def engine(self) -> Engine:
        """The engine, once it is open."""
        assert self._engine is not None, "open comes first"
        return self._engine

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, session_id: str, deadline_s: float
    ) -> Completion:
        """See `Engine.generate`; for a look from outside, episodes are played in here."""
        return await self.engine.generate(prompt_ids, sampling, session_id=session_id, deadline_s=deadline_s)

    async def end_session(self, session_id: str) -> None:
        """See `Engine.end_session`."""
        await self.engine.end_session(session_id)

    async def forget_prefixes(self) -> None:
        """See `Engine.forget_prefixes`."""
        await self.engine.forget_prefixes()

    async def pause(self, mode: PauseMode) -> None:
        """See `Engine.pause`."""
        await self.engine.pause(mode)

    async def resume(self) -> None:
        """See `Engine.resume`."""
        await self.engine.resume()

    async def update_weights(self, version: int, parcel: Parcel, adapter: LoraAdapter | None) -> Ack:
        """See `Engine.update_weights`; the parcel is read where the object store has it."""
        return await self.engine.update_weights(
            WeightManifest(version=version, tensors=parcel.tensors(), adapter=adapter)
        )

    async def health(self) -> EngineHealth:
        """See `Engine.health`."""
        return await self.engine.health()

    async def _score(self, env_id: str, members: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
        assert self._rewarder is not None
        try:
            return await call(self._rewarder, "score", env_id, list(members), timeout_s=REWARD_TIMEOUT_S)
        except ClusterError as error:
            raise EpisodeError("reward", self._rewarder.name, str(error)) from error


class RewardWorker:
    """Computes group rewards apart from the engines, whose event loops a slow grader would hold up.

    Args:
        config: of the run.
        folder: the launching process's working folder.
    """

    def __init__(self, config: RunConfig, *, folder: str) -> None:
        enter(folder, threads=config.num_threads)
        use_sandbox(config.sandbox)

    async def score(self, env_id: str, members: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
        """Add the group rewards of an environment; see `score_group`."""
        return await score_registered(env_id, members)


async def _opened(config: RunConfig, *, model: str, version: int) -> Engine:
    engine = config.engine
    if not isinstance(engine, HFEngineConfig):
        return await open_engine(engine, model=Path(model), version=version)
    device = device_of(config.model.device)
    policy = load_policy(model, dtype=getattr(torch, config.model.dtype), device=device)
    return HFEngine(policy.model.causal_lm, config=engine, version=version, keeps_model=True)
