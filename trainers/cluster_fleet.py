"""The rollout workers as the driver sees them: an engine per worker for a `Pool`, and a runner that plays in them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from agentenv.engine.pool import Pool
from agentenv.engine.protocol import Ack, Completion, EngineHealth, PauseMode, SamplingParams, WeightManifest
from agentenv.episode import Sampling
from agentenv.errors import ClusterError, EngineError, PeerLost
from agentenv.messages import Image
from agentenv.runner import GroupSpec, Runner
from agentenv.trainers.cluster_parcel import Shipped, packed
from agentenv.trainers.cluster_peer import START_TIMEOUT_S, VERB_TIMEOUT_S, Peer, call, first_failure
from agentenv.trajectory import Group

MAX_LOSSES = 3
"""Workers that may be lost under one group."""
CLOSE_TIMEOUT_S = 20.0
_LOOK_S = 0.2


class RemoteEngine:
    """The engine of a rollout worker. Implements `agentenv.engine.protocol.Engine`.

    Args:
        peer: the rollout worker.
        ship: lays weights into the object store and returns their reference.
    """

    def __init__(self, peer: Peer, *, ship: Callable[[WeightManifest], object]) -> None:
        self.peer = peer
        self._ship = ship

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image] = (),
    ) -> Completion:
        """See `Engine.generate`; costs a remote call, which episodes do not pay: they are played in the worker."""
        if images:
            raise EngineError("a request from the driver to a rollout worker carries no images")
        return await self._call(
            "generate", list(prompt_ids), sampling, session_id, deadline_s, timeout_s=deadline_s + 5
        )

    async def end_session(self, session_id: str) -> None:
        """See `Engine.end_session`."""
        await self._call("end_session", session_id)

    async def forget_prefixes(self) -> None:
        """See `Engine.forget_prefixes`."""
        await self._call("forget_prefixes")

    async def pause(self, mode: PauseMode = "abort") -> None:
        """See `Engine.pause`."""
        await self._call("pause", mode)

    async def resume(self) -> None:
        """See `Engine.resume`."""
        await self._call("resume")

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """See `Engine.update_weights`; the bytes go into the object store once, whatever the number of workers."""
        return await self._call("update_weights", manifest.version, self._ship(manifest), manifest.adapter)

    async def health(self) -> EngineHealth:
        """See `Engine.health`."""
        return await self._call("health")

    async def close(self) -> None:
        """Close what is in the worker, then end its process; idempotent."""
        with suppress(ClusterError, EngineError):
            await call(self.peer, "close", timeout_s=CLOSE_TIMEOUT_S)
        self.peer.kill()

    async def _call(self, verb: str, *args: object, timeout_s: float = VERB_TIMEOUT_S) -> Any:
        try:
            return await call(self.peer, verb, *args, timeout_s=timeout_s)
        except ClusterError as error:
            raise EngineError(str(error)) from error


class Shipper:
    """Lays weights into the object store, once per version.

    Args:
        put: lays a value there and returns its reference.
    """

    def __init__(self, put: Callable[[object], object]) -> None:
        self._put = put
        self._last: tuple[WeightManifest, object] | None = None

    def ship(self, manifest: WeightManifest) -> object:
        """Return the reference of a manifest's tensors."""
        if isinstance(manifest.tensors, Shipped):
            return manifest.tensors.ref
        if self._last is None or self._last[0] is not manifest:
            self._last = (manifest, self._put(packed(manifest.tensors)))
        return self._last[1]


@dataclass(slots=True, eq=False)
class _Flight:
    """A group on its way to a worker."""

    number: int
    runner: int
    spec: GroupSpec
    boarded: asyncio.Future[tuple[Peer, Any]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Fleet:
    """Rollout workers by number; one that is lost gives its groups back and is replaced by the pool.

    Args:
        spawn: starts the process of a worker.
        count: number of workers.
        put: lays a value into the object store.
        model: folder that the engines load.
        version: of its weights.
    """

    def __init__(
        self,
        spawn: Callable[[int], Peer],
        *,
        count: int,
        put: Callable[[object], object],
        model: str,
        version: int,
    ) -> None:
        self._spawn, self._count, self._model, self._version = spawn, count, model, version
        self._shipper = Shipper(put)
        self._setups: list[tuple[int, Sampling]] = []
        self._peers: dict[int, Peer] = {}
        self._load: Counter[Peer] = Counter()
        self._boarding: list[_Flight] = []
        self._numbers = itertools.count()
        self.pool: Pool | None = None
        self.num_lost = 0

    async def open(self) -> Pool:
        """Start all workers and return the pool of their engines.

        Raises:
            ClusterError: one did not start; those that did are ended.
        """
        try:
            engines = await first_failure([self.start(index) for index in range(self._count)])
        except BaseException:
            for peer in self._peers.values():
                peer.kill()
            raise
        names = [engine.peer.name for engine in engines]
        self.pool = await Pool.open(engines, restart=self.start, names=names)
        return self.pool

    async def start(self, index: int) -> RemoteEngine:
        """Start a worker, also in place of a lost one."""
        peer = self._spawn(index)
        try:
            await call(peer, "open", self._model, self._version, timeout_s=START_TIMEOUT_S)
            for setup in self._setups:
                await call(peer, "add_runner", *setup)
        except BaseException:
            peer.kill()
            raise
        self._peers[index] = peer
        return RemoteEngine(peer, ship=self._shipper.ship)

    def add_runner(self, sampling: Sampling) -> int:
        """Let every worker, present and future, have one more runner; returns its number."""
        setup = (len(self._setups), sampling)
        self._setups.append(setup)
        for peer in self._peers.values():
            peer.send("add_runner", *setup)
        return setup[0]

    async def play(self, spec: GroupSpec, *, runner: int) -> Group:
        """Play a group in the worker with the fewest; where that one is lost, in another.

        Raises:
            ClusterError: no worker is left, or `MAX_LOSSES` were lost under this group.
        """
        lost: list[str] = []
        while len(lost) < MAX_LOSSES:
            await self._somebody()
            try:
                return await self._fly(_Flight(next(self._numbers), runner, spec))
            except PeerLost as error:
                lost.append(str(error))
                self.num_lost += 1
        raise ClusterError(f"group {spec.group_id}: {MAX_LOSSES} rollout workers were lost under it: {lost[-1]}")

    async def _fly(self, flight: _Flight) -> Group:
        self._boarding.append(flight)
        if len(self._boarding) == 1:
            asyncio.get_running_loop().call_soon(self._depart)
        peer: Peer | None = None
        try:
            peer, begun = await flight.boarded
            # the reference of what began it: the worker cannot be asked for a group that it does not have yet
            return await call(peer, "result", flight.number, begun, timeout_s=None)
        except PeerLost:
            self._peers = {index: other for index, other in self._peers.items() if other is not peer}
            raise
        except asyncio.CancelledError:
            if peer is not None:
                peer.send("drop", flight.number)
            raise
        finally:
            if peer is not None:
                self._load[peer] -= 1

    def _depart(self) -> None:
        """Send off what was admitted in the same moment; together, so that one worker plays exactly as one process."""
        boarding, self._boarding = self._boarding, []
        crowds: dict[Peer, list[_Flight]] = defaultdict(list)
        for flight in boarding:
            if flight.boarded.done():
                continue  # cancelled meanwhile
            if not self._peers:
                flight.boarded.set_exception(PeerLost("the last rollout worker was lost"))
                continue
            peer = min(self._peers.values(), key=lambda peer: self._load[peer])
            self._load[peer] += 1
            crowds[peer].append(flight)
        for peer, flights in crowds.items():
            begun = peer.send("begin", [(flight.number, flight.runner, flight.spec) for flight in flights])
            for flight in flights:
                flight.boarded.set_result((peer, begun))

    async def _somebody(self) -> None:
        """Wait for a worker while a lost one is replaced."""
        ends_at = time.monotonic() + START_TIMEOUT_S
        while not self._peers:
            stats = () if self.pool is None else self.pool.stats()
            if all(replica.state == "failed" for replica in stats) or time.monotonic() > ends_at:
                raise ClusterError(
                    "no rollout worker is left, and none could be started in their place; see the log for what "
                    "happened to each, then go on with --resume"
                )
            await asyncio.sleep(_LOOK_S)


class RemoteRunner(Runner):
    """Plays groups in the rollout workers of a fleet.

    Args:
        fleet: the workers.
        here: a runner of the driver, whose bounds and sampling those of the workers share.
    """

    def __init__(self, fleet: Fleet, here: Runner) -> None:
        super().__init__(
            engine=here.engine, renderer=here.renderer, agent=here.agent, config=here.config, sampling=here.sampling
        )
        self._fleet = fleet
        self._number = fleet.add_runner(here.sampling)

    async def run_group(self, spec: GroupSpec) -> Group:
        """See `Runner.run_group`."""
        group = await self._fleet.play(spec, runner=self._number)
        self.num_retries += sum(trajectory.attempt for trajectory in group.trajectories)
        if self.tally is not None:
            for trajectory in group.trajectories:
                self.tally.add(trajectory)
        return group
