"""Plays many episodes at once: admission, deadlines, retries, groups. The first file to read.

One asyncio task per episode, no barrier between turns. Whatever fails inside an episode ends as a trajectory with a
status; only cancellation from outside and mistakes of the caller leave the runner as exceptions.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agentenv.admission import Admission
from agentenv.agent.chat import ChatAgent
from agentenv.agent.protocol import Agent
from agentenv.agent.roster import Roster
from agentenv.config import Config
from agentenv.engine.protocol import Engine
from agentenv.env import AgentEnv, group_rewards
from agentenv.episode import Episode, EpisodeSpec, Limits, Sampling
from agentenv.errors import DeadlineExceeded, EpisodeError, Side, UsageError, describe
from agentenv.game_env import is_game_of_agents
from agentenv.offload import is_leaving, together, within
from agentenv.registry import make_bare, registration
from agentenv.renderer import Renderer
from agentenv.reward import score_group
from agentenv.tally import EpisodeTally
from agentenv.tasks import Task
from agentenv.trace import traced
from agentenv.trajectory import Group, StopReason, Trajectory

if TYPE_CHECKING:
    from agentenv.game_runner import GameRunner

_log = logging.getLogger(__name__)
_END_SESSION_S = 30.0


class RunnerConfig(Config):
    """How much is played at once, and what happens to failed episodes."""

    max_episodes: int = 512
    """Episodes in flight."""
    max_tokens: int = 1_000_000
    """Tokens that episodes in flight may hold together; set it to what the engine's cache holds."""
    max_retries: int = 1
    """How often an infrastructure failure is played again before it is masked."""
    limits: Limits = Limits()
    """Budgets of one episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """Which group to play: one task and seed, `size` times.

    Attributes:
        group_id: unique within the run.
        env_id: registered id.
        env_kwargs: constructor arguments.
        task: None lets the environment choose by seed.
        seed: of the environment, the same for every member.
        size: number of members.
        run_seed: of the run.
    """

    group_id: str
    env_id: str
    env_kwargs: Mapping[str, object] = field(default_factory=dict)
    task: Task | None = None
    seed: int = 0
    size: int = 1
    run_seed: int = 0

    def members(self) -> tuple[EpisodeSpec, ...]:
        """Return the episodes of the group."""
        return tuple(
            EpisodeSpec(
                env_id=self.env_id,
                env_kwargs=self.env_kwargs,
                task=self.task,
                seed=self.seed,
                group_id=self.group_id,
                member=member,
                run_seed=self.run_seed,
            )
            for member in range(self.size)
        )


GroupScorer = Callable[[str, Sequence[Trajectory]], Awaitable[tuple[Trajectory, ...]]]
"""Adds the group rewards of an environment, by its id, to the members of a complete group."""

_STATUS_OF_SIDE: Mapping[Side, StopReason] = {
    "env": StopReason.ENV_ERROR,
    "tool": StopReason.TOOL_ERROR,
    "sandbox": StopReason.TOOL_ERROR,
    "engine": StopReason.ENGINE_ERROR,
    "reward": StopReason.REWARD_ERROR,
}


class Runner:
    """Plays episodes and groups through one engine.

    Args:
        engine: where tokens come from; the caller owns and closes it.
        renderer: of the engine's model.
        agent: how episodes are played, unless their task's row names another agent; the caller closes it.
        config: bounds.
        sampling: how tokens are drawn.
        make_env: builds an environment for an episode; the registry's by default.
        scorer: adds the group rewards of a registered environment, here by default.

    Attributes:
        num_retries: attempts that were played again.
        running: episodes that are played now.
        tally: counts attempts that ended, where somebody wants to know; None counts nothing.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        renderer: Renderer,
        agent: Agent | None = None,
        config: RunnerConfig | None = None,
        sampling: Sampling | None = None,
        make_env: Callable[[EpisodeSpec], AgentEnv] | None = None,
        scorer: GroupScorer | None = None,
    ) -> None:
        self.engine = engine
        self.renderer = renderer
        self.roster = Roster(ChatAgent() if agent is None else agent)
        self.config = RunnerConfig() if config is None else config
        self.sampling = Sampling() if sampling is None else sampling
        self.make_env = _from_registry if make_env is None else make_env
        self.scorer = score_registered if scorer is None else scorer
        self.admission = Admission(max_episodes=self.config.max_episodes, max_tokens=self.config.max_tokens)
        self.num_retries = 0
        self.running: set[Episode] = set()
        self.tally: EpisodeTally | None = None
        self._game_runner: GameRunner | None = None

    @property
    def agent(self) -> Agent:
        """Who plays where a task's row names nobody."""
        return self.roster.default

    async def close(self) -> None:
        """Close the agents that task rows named, and the opponents; idempotent. Nothing may be playing."""
        await self.roster.close()
        if self._game_runner is not None:
            await self._game_runner.close()

    async def run(self, groups: Iterable[GroupSpec]) -> AsyncGenerator[Group, None]:
        """Play groups and yield each as it completes, in order of completion.

        Closing the generator early cancels what still runs.
        """
        pending: set[asyncio.Task[Group]] = set()
        done: set[asyncio.Task[Group]] = set()
        source = iter(groups)
        try:
            while True:
                # a few more groups than fit are kept waiting, so that the engine never idles between them
                room = self.config.max_episodes + 1 - len(pending)
                pending |= {
                    asyncio.create_task(self.run_group(spec)) for spec in itertools.islice(source, max(room, 0))
                }
                if not pending:
                    return
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: task.get_name()):
                    yield task.result()
        finally:
            for task in done:
                if not task.cancelled():
                    task.exception()  # the first failure was raised; the others must not be reported as forgotten
            await _cancel_all(pending)

    async def run_all(self, groups: Iterable[GroupSpec]) -> list[Group]:
        """Play groups and return them in the order given."""
        specs = list(groups)
        done = {group.group_id: group async for group in self.run(specs)}
        return [done[spec.group_id] for spec in specs]

    async def run_group(self, spec: GroupSpec) -> Group:
        """Play all members of a group and add its group rewards.

        A member of a game whose other seats are agents too is a whole game: it gives one trajectory for every seat that
        the policy has.
        """
        if self.make_env is _from_registry and is_game_of_agents(spec.env_id, spec.env_kwargs):
            members = await self._games().play(spec)
        elif spec.size == 1:
            members = [await self.run_episode(spec.members()[0])]
        else:
            members = await together(map(self.run_episode, spec.members()))
        return Group(group_id=spec.group_id, trajectories=await self._with_group_rewards(spec, members))

    def _games(self) -> GameRunner:
        if self._game_runner is None:
            from agentenv.game_runner import GameRunner

            self._game_runner = GameRunner(self)
        return self._game_runner

    async def run_episode(self, spec: EpisodeSpec) -> Trajectory:
        """Play one episode; infrastructure failures are retried, then returned with their status."""
        while True:
            await self.admission.enter()
            num_tokens = 0
            try:
                trajectory = await self.attempt(spec, make_env=self.make_env)
                num_tokens = trajectory.num_tokens
            finally:
                self.admission.leave(num_tokens=num_tokens)
            if self.tally is not None:
                self.tally.add(trajectory)
            if trajectory.is_scored or spec.attempt >= self.config.max_retries:
                return trajectory
            spec = replace(spec, attempt=spec.attempt + 1)
            self.num_retries += 1

    @traced("episode")
    async def attempt(self, spec: EpisodeSpec, *, make_env: Callable[[EpisodeSpec], AgentEnv]) -> Trajectory:
        """Play one attempt, without admission and retries.

        Args:
            spec: which episode.
            make_env: builds its environment, which is closed here.
        """
        try:
            env = make_env(spec)
        except UsageError:
            raise
        except Exception as error:
            return _unmade(spec, error=f"the environment could not be made: {describe(error)}")
        episode = Episode(
            spec,
            env=env,
            engine=self.engine,
            renderer=self.renderer,
            limits=self.config.limits,
            sampling=self.sampling,
        )
        status, error = StopReason.ENV_ERROR, ""
        self.running.add(episode)
        try:
            status, error = await self._play(episode)
        finally:
            self.running.discard(episode)
            close_error = await _close(env)
            await self._end_session(episode.session_id)
        if close_error and not error:
            status, error = StopReason.ENV_ERROR, close_error
        return episode.trajectory(stop_reason=status, error=error)

    async def _end_session(self, session_id: str) -> None:
        """Let the engine forget an episode. One that cannot has lost nothing but a cached prefix."""
        try:
            await within(
                self.engine.end_session(session_id), timeout_s=_END_SESSION_S, side="engine", where="end_session"
            )
        except Exception as error:
            _log.warning("the engine could not end session %s: %s", session_id, describe(error))

    async def _play(self, episode: Episode) -> tuple[StopReason, str]:
        """Play to the end and return how it ended, with the error text of an infrastructure failure."""
        timeout_s = self.config.limits.episode_timeout_s
        scope = asyncio.timeout(timeout_s)
        agent = self.agent
        try:
            async with scope:
                await episode.reset()
                agent = self.roster.agent_for(
                    episode.env.task, tools=episode.tools, when_full=episode.limits.context.when_full
                )
                await agent.play(episode)
        except TimeoutError as error:
            if scope.expired():
                return StopReason.DEADLINE, f"the episode did not end within {timeout_s:g} s"
            return StopReason.ENV_ERROR, describe(error)
        except DeadlineExceeded as error:
            return StopReason.DEADLINE if error.side == "env" else _STATUS_OF_SIDE[error.side], str(error)
        except EpisodeError as error:
            return _STATUS_OF_SIDE[error.side], str(error)
        except UsageError:
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            # a BaseException of an agent's own, such as a person's leave, ends the run as it asks
            if is_leaving(error):
                raise
            return StopReason.ENV_ERROR, f"agent {type(agent).__name__}: {describe(error)}"
        if episode.stop_reason is None:
            return StopReason.ENV_ERROR, f"agent {type(agent).__name__} returned before the episode ended"
        return episode.stop_reason, ""

    async def _with_group_rewards(self, spec: GroupSpec, members: list[Trajectory]) -> tuple[Trajectory, ...]:
        components = group_rewards(registration(spec.env_id).load()) if self.make_env is _from_registry else ()
        if not components:
            return tuple(members)
        try:
            return await self.scorer(spec.env_id, members)
        except EpisodeError as error:
            text = str(error)
            return tuple(
                replace(t, stop_reason=StopReason.REWARD_ERROR, error=text, reward_components={}) if t.is_scored else t
                for t in members
            )


def _unmade(spec: EpisodeSpec, *, error: str) -> Trajectory:
    """Return the trajectory of an episode that never had an environment."""
    return Trajectory(
        env_id=spec.env_id,
        task_id="" if spec.task is None else spec.task.task_id,
        group_id=spec.group_id,
        member=spec.member,
        seed=spec.seed,
        stop_reason=StopReason.ENV_ERROR,
        turns=(),
        sequences=(),
        reward_components={},
        messages=(),
        error=error,
        attempt=spec.attempt,
    )


async def score_registered(env_id: str, members: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
    """Add the group rewards of a registered environment; see `score_group`."""
    return await score_group(group_rewards(registration(env_id).load()), members)


def _from_registry(spec: EpisodeSpec) -> AgentEnv:
    return make_bare(spec.env_id, **spec.env_kwargs)


async def _close(env: AgentEnv) -> str:
    """Close an environment; returns what went wrong, or an empty string."""
    try:
        await env.close_async()
    except BaseException as error:
        if not isinstance(error, Exception) and is_leaving(error):
            raise
        return f"close failed: {describe(error)}"
    return ""


async def _cancel_all(tasks: set[asyncio.Task[Group]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)
