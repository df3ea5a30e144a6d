"""Episodes that are played through a wrapper, in a store of trajectories that reports and viewers read."""

from __future__ import annotations

import atexit
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from agentenv.errors import UsageError
from agentenv.messages import Message
from agentenv.spaces import Action
from agentenv.step import Step
from agentenv.store import TrajectoryStore
from agentenv.tasks import Task
from agentenv.trajectory import StopReason, TokenSequence, Trajectory, Turn
from agentenv.wrappers.agent_wrapper import SILENCE, AgentWrapper

_NO_TOKENS = TokenSequence(
    token_ids=np.zeros(0, np.int32), logprobs=np.zeros(0, np.float32), is_sampled=np.zeros(0, np.bool_)
)


class RecordToStore(AgentWrapper):
    """Stores every episode that ended: its messages, what each turn earned, and how it stopped.

    It knows text, not tokens: what an engine sampled is stored by the runner's own record, and can be trained on. All
    wrappers of a process that name the same folder share one store; another process needs a folder of its own.
    Episodes are written `episodes_per_file` at a time, and the rest when the last of these environments is closed.

    Args:
        env: what is wrapped.
        folder: of the store; its parents must exist.
        phase: under which the episodes are stored.
        step: training step under which they are stored.
        episodes_per_file: how many are kept in memory before they are written.
    """

    def __init__(
        self,
        env: gymnasium.Env[str, Action],
        *,
        folder: str,
        phase: str = "recorded",
        step: int = 0,
        episodes_per_file: int = 64,
    ) -> None:
        if episodes_per_file < 1:
            raise UsageError(f"episodes_per_file is {episodes_per_file}; at least 1 is needed")
        if not Path(folder).expanduser().absolute().parent.is_dir():
            raise UsageError(f"folder {folder!r}: {Path(folder).expanduser().absolute().parent} does not exist")
        super().__init__(env, folder=folder, phase=phase, step=step, episodes_per_file=episodes_per_file)
        self._shelf = _shelf_for(Path(folder).expanduser().absolute(), phase=phase, step=step)
        self._episodes_per_file = episodes_per_file
        self._seed = 0
        self._messages: list[Message] = []
        self._turns: list[Turn] = []
        self._shelf.enter(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; its seed is stored."""
        self._seed = -1 if seed is None else seed
        return super().reset(seed=seed, options=options)

    async def reset_async(self, *, seed: int | None = None, task: Task | None = None) -> Step:
        """Start an episode; its seed is stored."""
        self._seed = -1 if seed is None else seed
        return await super().reset_async(seed=seed, task=task)

    def opening(self, step: Step) -> Step:
        """Begin a record."""
        self._messages, self._turns = list(step.messages), []
        return step

    def after(self, turn: Message, step: Step) -> Step:
        """Record the turn, and keep the episode once it ended."""
        if turn is not SILENCE:
            self._messages.append(turn)
            self._turns.append(_turn(turn, step))
        self._messages.extend(step.messages)
        if step.stop_reason is not None:
            self._shelf.put(self._trajectory(step), limit=self._episodes_per_file)
        return step

    def close(self) -> None:
        """Write what is left if this is the last environment of its store."""
        super().close()
        self._shelf.leave(self)

    async def close_async(self) -> None:
        """Write what is left if this is the last environment of its store."""
        await super().close_async()
        self._shelf.leave(self)

    def _trajectory(self, step: Step) -> Trajectory:
        turn_names = step.turn_reward_components
        spec = self.unwrapped.spec
        return Trajectory(
            env_id=type(self.unwrapped).__name__ if spec is None else spec.id,
            task_id=self.task.task_id,
            group_id=str(self._seed),
            member=0,
            seed=self._seed,
            stop_reason=step.stop_reason or StopReason.COMPLETED,
            turns=tuple(self._turns),
            sequences=(_NO_TOKENS,),
            reward_components={k: v for k, v in step.reward_components.items() if k not in turn_names},
            messages=tuple(self._messages),
        )


@dataclass(kw_only=True)
class _Shelf:
    """The store of one folder, phase and step in this process, and the episodes that are not written yet."""

    store: TrajectoryStore
    lock: threading.Lock
    phase: str
    step: int
    waiting: list[Trajectory] = field(default_factory=list)
    users: set[int] = field(default_factory=set)

    def enter(self, wrapper: object) -> None:
        with self.lock:
            self.users.add(id(wrapper))

    def leave(self, wrapper: object) -> None:
        with self.lock:
            self.users.discard(id(wrapper))
            if not self.users:
                self._write()

    def put(self, trajectory: Trajectory, *, limit: int) -> None:
        with self.lock:
            self.waiting.append(trajectory)
            if len(self.waiting) >= limit:
                self._write()

    def flush(self) -> None:
        with self.lock:
            self._write()

    def _write(self) -> None:
        if self.waiting:
            self.store.append(self.waiting, step=self.step, phase=self.phase)
            self.waiting = []


_shelves: dict[tuple[Path, str, int], _Shelf] = {}
_stores: dict[Path, tuple[TrajectoryStore, threading.Lock]] = {}
_shelves_lock = threading.Lock()


def _shelf_for(folder: Path, *, phase: str, step: int) -> _Shelf:
    with _shelves_lock:
        key = (folder, phase, step)
        if key not in _shelves:
            store, lock = _stores.setdefault(folder, (TrajectoryStore(folder), threading.Lock()))
            _shelves[key] = _Shelf(store=store, lock=lock, phase=phase, step=step)
            atexit.register(_shelves[key].flush)
        return _shelves[key]


def _turn(turn: Message, step: Step) -> Turn:
    return Turn(
        sequence=0,
        start=0,
        end=0,
        finish_reason="stop",
        num_tool_calls=len(turn.tool_calls),
        num_malformed_calls=step.num_malformed_calls,
        reward_components=dict(step.turn_reward_components),
    )
