"""Engine, runner, learner and store that only take time: what the real scheduler and training loop do with them.

Time is the event loop's. Lengths of episodes are log-normal and a function of the group, so that every run plays the
same episodes, whatever its staleness.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.protocol import Ack, PauseMode, WeightManifest
from agentenv.engine.scripted import ScriptedEngine
from agentenv.engine.weights import weights_checksum
from agentenv.renderer import Renderer
from agentenv.runner import GroupSpec, Runner
from agentenv.seeds import derive_seed
from agentenv.store import TrajectoryStore
from agentenv.trainers.sample import Sample
from agentenv.trainers.worker import UpdatePlan
from agentenv.trajectory import Group, StopReason, TokenSequence, Trajectory, Turn, VersionSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How long things take.

    Attributes:
        median_tokens: of an episode.
        sigma: of the logarithm of its length.
        max_tokens: where an episode is cut.
        decode_s: one decoding step of an engine with a single running episode.
        batch_knee: episodes at which a step takes twice that; it grows linearly.
        slots: episodes that the engine decodes at once.
        update_s: one update of the trainer.
        sync_s: new weights into the engine, which stands still meanwhile.
    """

    median_tokens: float = 4096
    sigma: float = 1.0
    max_tokens: float = 32768
    decode_s: float = 0.010
    batch_knee: float = 256
    slots: int = 1024
    update_s: float = 120.0
    sync_s: float = 2.0

    def step_s(self, num_running: int) -> float:
        """Return the seconds in which each of the running episodes gets one token."""
        return self.decode_s * (1 + num_running / self.batch_knee)


class SimulatedEngine(ScriptedEngine):
    """Decodes numbers of tokens, all running episodes at the same rate; stands still while it is paused."""

    def __init__(self, workload: Workload) -> None:
        super().__init__([()])
        self.workload = workload
        self._room = asyncio.Semaphore(workload.slots)
        self._ends: list[tuple[float, int, asyncio.Future[None]]] = []  # heap: token count at which an episode ends
        self._order = itertools.count()
        self._decoded = 0.0  # tokens that an episode would have which runs since the start
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_paused = False

    async def decode(self, num_tokens: float) -> None:
        """Return when an episode that starts now has so many tokens."""
        async with self._room:
            self._catch_up()
            end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._ends, (self._decoded + num_tokens, next(self._order), end))
            self._wait_for_next()
            await end

    async def pause(self, mode: PauseMode = "abort") -> None:
        """Stand still."""
        self._catch_up()
        self._is_paused = True
        self._wait_for_next()

    async def resume(self) -> None:
        """Go on with every running episode."""
        self._catch_up()
        self._is_paused = False
        self._wait_for_next()

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Take the version after the time that weights take."""
        await asyncio.sleep(self.workload.sync_s)
        self.version = manifest.version
        return Ack(version=self.version, checksum=weights_checksum({}))

    def _catch_up(self) -> None:
        """Count the tokens since the last change."""
        now = asyncio.get_running_loop().time()
        if self._ends and not self._is_paused:
            self._decoded += (now - self._since) / self.workload.step_s(len(self._ends))
        self._since = now

    def _wait_for_next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ends and not self._is_paused:
            left_s = max(self._ends[0][0] - self._decoded, 0.0) * self.workload.step_s(len(self._ends))
            self._timer = asyncio.get_running_loop().call_later(left_s, self._end_episodes)

    def _end_episodes(self) -> None:
        self._catch_up()
        while self._ends and self._ends[0][0] <= self._decoded + 1e-3:  # a thousandth of a token: rounding
            _, _, end = heapq.heappop(self._ends)
            if not end.done():
                end.set_result(None)
        self._wait_for_next()


class SimulatedRunner(Runner):
    """Plays groups by decoding their lengths."""

    def __init__(self, engine: SimulatedEngine) -> None:
        super().__init__(engine=engine, renderer=Renderer(byte_tokenizer(), family="qwen3"))
        self.decoder = engine

    async def run_group(self, spec: GroupSpec) -> Group:
        """Return a group whose rewards are coins, after the time that its longest episode took."""
        workload = self.decoder.workload
        rng = np.random.default_rng(derive_seed(spec.seed, "simulated"))
        lengths = workload.median_tokens * np.exp(workload.sigma * rng.standard_normal(spec.size))
        rewards = rng.integers(0, 2, spec.size)
        version = self.decoder.version
        await asyncio.gather(*(self.decoder.decode(min(length, workload.max_tokens)) for length in lengths.tolist()))
        members = (_episode(spec, member, reward, version=version) for member, reward in enumerate(rewards.tolist()))
        return Group(group_id=spec.group_id, trajectories=tuple(members))


class SimulatedLearner:
    """Takes the time of an update. Implements `agentenv.trainers.learner.Learner`."""

    optimizer_steps = 0

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    async def update(self, samples: Sequence[Sample], *, plan: UpdatePlan) -> dict[str, float]:
        """Wait."""
        await asyncio.sleep(self.workload.update_s)
        return {"tokens": float(sum(map(len, samples)))}

    async def weights(self) -> Mapping[str, Tensor]:
        """Return none."""
        return {}

    async def save(self, folder: Path) -> Callable[[], None] | None:
        """Write nothing: there is no state."""

    async def load(self, folder: Path, *, optimizer_steps: int) -> None:
        """Read nothing."""

    async def close(self) -> None:
        """Nothing is held."""


class CountingStore(TrajectoryStore):
    """Keeps the numbers of the groups instead of the trajectories."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))
        self.trained: list[int] = []

    def append(self, trajectories: Iterable[Trajectory], *, step: int, phase: str) -> Path | None:
        """Note which groups a step trains on."""
        self.trained.extend(dict.fromkeys(int(trajectory.group_id) for trajectory in trajectories))
        return None


def _episode(spec: GroupSpec, member: int, reward: float, *, version: int) -> Trajectory:
    """Return the smallest episode that can be trained on: one sampled token."""
    one = np.ones(1)
    turn = Turn(
        sequence=0,
        start=0,
        end=1,
        finish_reason="stop",
        weight_versions=(VersionSpan(version=version, start=0, end=1),),
    )
    tokens = TokenSequence(
        token_ids=one.astype(np.int32), logprobs=-one.astype(np.float32), is_sampled=one.astype(np.bool_)
    )
    return Trajectory(
        env_id=spec.env_id,
        task_id="",
        group_id=spec.group_id,
        member=member,
        seed=spec.seed,
        stop_reason=StopReason.COMPLETED,
        turns=(turn,),
        sequences=(tokens,),
        reward_components={"coin": float(reward)},
        messages=(),
    )
