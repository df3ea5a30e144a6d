"""The vector environment behind `gymnasium.make_vec`: members step together, ended ones wait for a masked reset."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from agentenv.env import AgentEnv
from agentenv.errors import UsageError
from agentenv.offload import run_now
from agentenv.registry import make_bare
from agentenv.spaces import Action
from agentenv.step import Step, has_terminated
from agentenv.tasks import as_task


class AgentVectorEnv(VectorEnv):
    """Several copies of one environment; asynchronous tools of different members overlap.

    Autoreset is disabled: a member that ended ignores its action (reward 0, empty observation) until `reset` is
    called with `options={"reset_mask": bool[num_envs]}`. Every `info` key holds one value per member.

    Args:
        env_id: registered id.
        num_envs: number of copies.
        **kwargs: for the environment's constructor.
    """

    def __init__(self, env_id: str, *, num_envs: int = 1, **kwargs: Any) -> None:
        self.num_envs = num_envs
        self.envs: list[AgentEnv] = [make_bare(env_id, **kwargs) for _ in range(num_envs)]
        first = self.envs[0]
        self.metadata = {**first.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self.render_mode = first.render_mode
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._is_over = np.ones(num_envs, dtype=np.bool_)
        self._was_reset = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Reset all members, or those in `options["reset_mask"]`; `options["tasks"]` gives one task per member."""
        options = options or {}
        mask = np.asarray(options.get("reset_mask", np.ones(self.num_envs)), dtype=np.bool_)
        if mask.shape != (self.num_envs,):
            raise UsageError(f"reset_mask has shape {mask.shape}; expected ({self.num_envs},)")
        seeds = _seeds(seed, self.num_envs)
        tasks = options.get("tasks") or [None] * self.num_envs
        jobs: list[Callable[[], Any] | None] = [
            _reset_job(env, seeds[i], tasks[i]) if mask[i] else None for i, env in enumerate(self.envs)
        ]
        steps = run_now(_all(jobs))
        self._is_over[mask] = False
        self._was_reset |= mask
        return self._observations(steps), self._infos(steps)

    def step(
        self, actions: Sequence[Action]
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step the members that are still playing.

        Raises:
            UsageError: a member was never reset, or the number of actions is wrong.
            EpisodeError: a member failed; it must be reset.
        """
        if not self._was_reset.all():
            raise UsageError(f"members {np.flatnonzero(~self._was_reset).tolist()} were never reset; call reset first")
        if len(actions) != self.num_envs:
            raise UsageError(f"{len(actions)} actions were given for {self.num_envs} environments")
        jobs: list[Callable[[], Any] | None] = [
            None if self._is_over[i] else _step_job(env, actions[i]) for i, env in enumerate(self.envs)
        ]
        steps = run_now(_all(jobs))
        rewards = np.array([sum(s.reward_components.values(), 0.0) if s else 0.0 for s in steps], dtype=np.float64)
        stops = ["" if s is None or s.stop_reason is None else s.stop_reason.value for s in steps]
        terminated = np.array([s is not None and has_terminated(s.stop_reason) for s in steps])
        truncated = np.array([bool(stop) for stop in stops]) & ~terminated
        self._is_over |= terminated | truncated
        return self._observations(steps), rewards, terminated, truncated, self._infos(steps)

    def close_extras(self, **kwargs: Any) -> None:
        """Close every member."""
        for env in self.envs:
            env.close()

    def _observations(self, steps: Sequence[Step | None]) -> tuple[str, ...]:
        return tuple("\n".join(m.content for m in s.messages) if s else "" for s in steps)

    def _infos(self, steps: Sequence[Step | None]) -> dict[str, Any]:
        infos = [env._info(s) if s else None for env, s in zip(self.envs, steps, strict=True)]
        names = self.envs[0].component_names
        messages = np.empty(self.num_envs, dtype=object)
        for i, info in enumerate(infos):
            messages[i] = info["messages"] if info else ()
        return {
            "messages": messages,
            "stop_reason": np.array([info["stop_reason"] if info else "" for info in infos], dtype=object),
            "reward_components": {
                name: np.array([info["reward_components"][name] if info else 0.0 for info in infos]) for name in names
            },
        }


def __getattr__(name: str) -> Callable[..., AgentVectorEnv]:
    """Let a Gymnasium spec name a vector environment by id, as plain text: `agentenv.vector:namespace/Name-v0`."""
    if "/" not in name:
        raise AttributeError(name)
    return lambda **kwargs: AgentVectorEnv(name, **kwargs)


async def _all(jobs: Sequence[Callable[[], Any] | None]) -> list[Step | None]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [None if job is None else group.create_task(job()) for job in jobs]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [None if task is None else task.result() for task in tasks]


def _reset_job(env: AgentEnv, seed: int | None, task: object) -> Callable[[], Any]:
    return lambda: env.reset_async(seed=seed, task=None if task is None else as_task(task))


def _step_job(env: AgentEnv, action: Action) -> Callable[[], Any]:
    return lambda: env.step_async(env.read_action(action))


def _seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    if seed is None or isinstance(seed, (int, np.integer)):
        return [None if seed is None else int(seed) + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise UsageError(f"{len(seed)} seeds were given for {num_envs} environments")
    return list(seed)
