"""Replicas behind one engine: sessions stick, load is spread, the dead are replaced and given the current weights."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import TypeVar

from agentenv.engine.orders import Orders, agreed
from agentenv.engine.places import Places
from agentenv.engine.pool_config import PoolConfig, ReplicaStats
from agentenv.engine.protocol import Ack, Completion, Engine, EngineHealth, PauseMode, SamplingParams, WeightManifest
from agentenv.engine.replica import Replica, ReplicaLost
from agentenv.engine.restart_budget import RestartBudget
from agentenv.engine.routing import Routing
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError, EpisodeError, describe
from agentenv.messages import Image
from agentenv.offload import within

T = TypeVar("T")

_log = logging.getLogger(__name__)

Restart = Callable[[int], Awaitable[Engine]]
"""Makes a new engine for a replica by its index, with the weights of its folder or later ones; the former is closed."""


class Pool:
    """Serves one model through several engines. Implements `agentenv.engine.protocol.Engine`; make it with `Pool.open`.

    A request that was in a replica when that one died is asked again elsewhere, once, with the same seed. What all
    replicas were told (weights, pauses) a new one is told before it serves. The pool owns its engines and closes them.

    Args:
        replicas: the engines, all with the same weights.
        version: of those weights.
        config: deadlines and budgets.
        restart: makes a new engine in place of a dead one; None never replaces. With it, the pool keeps a copy of the
            weights in host memory (see `KeptWeights`).
        names: of the replicas, for people.

    Attributes:
        num_reissued: requests that were asked a second time.
    """

    def __init__(
        self,
        replicas: Sequence[Engine],
        *,
        version: int,
        config: PoolConfig | None = None,
        restart: Restart | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.config = config = PoolConfig() if config is None else config
        self.num_reissued = 0
        labels = names or [f"replica {index}" for index in range(len(replicas))]
        self._replicas = [
            Replica(
                index,
                name=label,
                engine=engine,
                concurrency=config.concurrency,
                budget=RestartBudget(max_restarts=config.max_restarts, window_s=config.restart_window_s),
            )
            for index, (engine, label) in enumerate(zip(replicas, labels, strict=True))
        ]
        self._restart = restart
        self._orders = Orders(version=version, keeps_weights=restart is not None)
        self._routing = Routing(len(replicas), limit=config.concurrency.start_tokens)
        self._places = Places(self._routing)
        self._expected_output = 256.0
        # one verb at a time, a replica that rejoins included: it must not miss what the others are told
        self._verbs = asyncio.Lock()
        self._num_verbs = 0
        self._is_decided = asyncio.Event()  # cleared while no replica serves but one may come back
        self._is_decided.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @classmethod
    async def open(
        cls,
        replicas: Sequence[Engine],
        *,
        config: PoolConfig | None = None,
        restart: Restart | None = None,
        names: Sequence[str] = (),
    ) -> Pool:
        """Look at all replicas and begin to watch them. Whatever fails, the replicas are closed.

        Raises:
            EngineError: there is none, one does not answer or is not ready, or they hold different weights.
        """
        timeout_s = (PoolConfig() if config is None else config).probe_timeout_s
        try:
            if not replicas:
                raise EngineError("a pool of no replica cannot serve")
            looks = [within(engine.health(), timeout_s=timeout_s, side="engine", where="health") for engine in replicas]
            healths = await asyncio.gather(*looks)
            versions = [health.version for health in healths]
            if len(set(versions)) > 1 or not all(health.is_ready for health in healths):
                raise EngineError(
                    f"the replicas hold weights of versions {versions}, ready: {[h.is_ready for h in healths]}; all "
                    "must be ready and hold the same version: restart those that do not"
                )
            pool = cls(replicas, version=versions[0], config=config, restart=restart, names=names)
        except BaseException:
            await asyncio.gather(*(engine.close() for engine in replicas), return_exceptions=True)
            raise
        pool._spawn(pool._watch(), name="watch the pool")
        return pool

    # Requests.

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image] = (),
    ) -> Completion:
        """Sample a continuation on the session's replica; see `Engine.generate`.

        Raises:
            EngineError: the request failed on a replica that works, two replicas were lost with it, or none is left.
            EngineClosed: the pool was closed.
            DeadlineExceeded: after `deadline_s` seconds, waiting for room and a second attempt included.
        """
        ends_at = time.monotonic() + deadline_s
        tokens = len(prompt_ids) + int(min(sampling.max_tokens, self._expected_output))
        lost: list[ReplicaLost] = []
        while len(lost) < 2:
            self._refuse_if_unusable()
            index = await self._places.take(session_id, tokens=tokens, deadline_s=ends_at - time.monotonic())
            try:
                completion = await self._ask(
                    self._replicas[index],
                    prompt_ids,
                    sampling,
                    session_id=session_id,
                    deadline_s=ends_at - time.monotonic(),
                    images=images,
                )
            except ReplicaLost as error:
                self.num_reissued += not lost
                lost.append(error)
            else:
                self._expected_output += 0.02 * (len(completion.token_ids) - self._expected_output)
                return completion
            finally:
                self._places.release(index, tokens=tokens)
        raise EngineError(f"two replicas were lost with this request: {lost[0]}; then {lost[1]}")

    async def end_session(self, session_id: str) -> None:
        """Let the session's replica forget it; unknown sessions are ignored, and so is a replica that is gone."""
        home = self._places.forget(session_id)
        if home is not None:
            replica = self._replicas[home]
            with contextlib.suppress(EngineError, EpisodeError):
                await self._bounded(
                    replica.engine.end_session(session_id), "end session", self.config.control_timeout_s
                )

    async def _ask(
        self,
        replica: Replica,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        session_id: str,
        deadline_s: float,
        images: Sequence[Image],
    ) -> Completion:
        """Ask a replica; raises ReplicaLost where not the request but the replica is to blame."""
        engine, version = replica.engine, self._orders.version
        try:
            completion = await replica.generate(
                prompt_ids, sampling, session_id=session_id, deadline_s=deadline_s, images=images
            )
        except EngineError as error:
            if self._is_closed:
                raise EngineClosed("the pool was closed while this request was in it") from error
            if isinstance(error, ReplicaLost):
                raise
            if replica.engine is engine and replica.state == "live":
                await self._probe(replica, is_urgent=True)
            if replica.engine is not engine or replica.state != "live":
                raise ReplicaLost(f"{replica.story} ({describe(error)})") from error
            raise
        spans = completion.weight_versions
        if spans and spans[-1].version < version:
            self._take_out(replica, f"sampled with weights of version {spans[-1].version} when {version} was served")
            raise ReplicaLost(replica.story)
        return completion

    def _refuse_if_unusable(self) -> None:
        if self._is_closed:
            raise EngineClosed("the pool was closed; open a new one")
        if all(replica.state == "failed" for replica in self._replicas):
            raise self._nobody_left()

    def _nobody_left(self) -> EngineError:
        return EngineError("no replica is left. " + ". ".join(replica.story for replica in self._replicas))

    # Verbs: each reaches all live replicas, and a replica that fails one is taken out. One that is cancelled half-way
    # leaves all of them in an unknown state, so that all are replaced.

    async def forget_prefixes(self) -> None:
        """Drop the cached prefixes of all replicas.

        Raises:
            EngineError: no replica did it.
        """
        async with self._verb():
            await self._on_all("forget prefixes", lambda engine: engine.forget_prefixes())

    async def pause(self, mode: PauseMode = "abort") -> None:
        """Stop generating on all replicas; those that rejoin before `resume` are paused too.

        Raises:
            EngineError: no replica did it.
        """
        async with self._verb():
            await self._on_all("pause", lambda engine: engine.pause(mode))
            self._orders.is_paused = True

    async def resume(self) -> None:
        """Go on after `pause`.

        Raises:
            EngineError: no replica did it.
        """
        async with self._verb():
            self._orders.is_paused = False
            await self._on_all("resume", lambda engine: engine.resume())

    async def update_weights(self, manifest: WeightManifest) -> Ack:
        """Give new weights to all replicas. Afterwards each one serves them, or does not serve.

        A replica that fails is taken out and replaced. If all fail, those that still serve the former weights go on
        with them.

        Raises:
            EngineError: no replica took the weights, or they acknowledged different ones.
        """
        if manifest.version <= self._orders.version:
            raise EngineError(
                f"weights of version {manifest.version} came, but version {self._orders.version} is served; versions "
                "must grow"
            )
        async with self._verb():
            live = self._live()
            answers = await self._ask_all(
                live, "update weights", lambda engine: engine.update_weights(manifest), self.config.update_timeout_s
            )
            acks = {index: answer for index, answer in answers.items() if isinstance(answer, Ack)}
            best, wrong = agreed(acks, version=manifest.version)
            wrong |= {index: describe(answer) for index, answer in answers.items() if isinstance(answer, Exception)}
            if best is None:
                await self._go_on_with_former_weights(live, wrong)
                raise EngineError(f"no replica took version {manifest.version}: {_told(self._replicas, wrong)}")
            await self._orders.accept(manifest, best)
            for index, why in wrong.items():
                self._take_out(self._replicas[index], f"update to version {manifest.version}: {why}")
            return best

    async def health(self) -> EngineHealth:
        """Say whether any replica serves, and how much all of them do together."""
        healths = [replica.health for replica in self._live() if replica.health is not None]
        return EngineHealth(
            is_ready=not self._is_closed and self._routing.num_live > 0,
            version=self._orders.version,
            num_running=sum(self._routing.requests_in_flight(replica.index) for replica in self._replicas),
            num_waiting=self._routing.num_waiting,
            cache_use=max((health.cache_use for health in healths), default=0.0),
        )

    async def close(self) -> None:
        """Close all replicas; idempotent. Requests that wait or run fail with `EngineClosed`."""
        if self._is_closed:
            return
        self._is_closed = True
        self._is_decided.set()
        self._places.fail_waiting(EngineClosed("the pool was closed while this request waited"))
        for replica in self._replicas:
            replica.recall()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._ask_all(self._replicas, "close", lambda engine: engine.close(), self.config.control_timeout_s)

    def stats(self) -> tuple[ReplicaStats, ...]:
        """Return a snapshot of every replica."""
        return tuple(
            ReplicaStats(
                name=replica.name,
                state=replica.state,
                tokens_in_flight=self._routing.tokens_in_flight(replica.index),
                requests_in_flight=self._routing.requests_in_flight(replica.index),
                tokens_limit=replica.limit.tokens,
                num_restarts=replica.num_restarts,
                cache_use=0.0 if replica.health is None else replica.health.cache_use,
            )
            for replica in self._replicas
        )

    @contextlib.asynccontextmanager
    async def _verb(self) -> AsyncGenerator[None, None]:
        """Hold the lock of the verbs while at least one replica is live; wait for one that is being replaced."""
        while True:
            await self._bounded(self._is_decided.wait(), "wait for a replica", self.config.restart_timeout_s)
            async with self._verbs:
                self._refuse_if_unusable()
                if not self._routing.num_live:
                    continue
                self._num_verbs += 1
                try:
                    yield
                except asyncio.CancelledError:
                    for replica in self._live():
                        self._take_out(replica, "a verb was cancelled half-way")
                    raise
                return

    def _live(self) -> list[Replica]:
        return [replica for replica in self._replicas if replica.state == "live"]

    async def _bounded(self, awaitable: Awaitable[T], verb: str, timeout_s: float) -> T:
        return await within(awaitable, timeout_s=timeout_s, side="engine", where=verb)

    async def _ask_all(
        self, replicas: Sequence[Replica], verb: str, call: Callable[[Engine], Awaitable[T]], timeout_s: float
    ) -> dict[int, T | Exception]:
        """Call a verb on replicas at once; returns what each answered or raised, by index."""

        async def ask(replica: Replica) -> T | Exception:
            try:
                return await self._bounded(call(replica.engine), verb, timeout_s)
            except Exception as error:  # a foreign engine may raise anything; the replica is then out
                return error

        answers = await asyncio.gather(*(ask(replica) for replica in replicas))
        return {replica.index: answer for replica, answer in zip(replicas, answers, strict=True)}

    async def _on_all(self, verb: str, call: Callable[[Engine], Awaitable[None]]) -> None:
        answers = await self._ask_all(self._live(), verb, call, self.config.control_timeout_s)
        failed = {index: describe(answer) for index, answer in answers.items() if answer is not None}
        for index, why in failed.items():
            self._take_out(self._replicas[index], f"{verb}: {why}")
        if len(failed) == len(answers):
            raise EngineError(f"no replica could {verb}: {_told(self._replicas, failed)}. {self._nobody_left()}")

    async def _go_on_with_former_weights(self, replicas: Sequence[Replica], failures: dict[int, str]) -> None:
        """After an update that all refused: take out those that are not as they were before."""
        looks = await self._ask_all(replicas, "health", lambda engine: engine.health(), self.config.probe_timeout_s)
        for index, look in looks.items():
            if isinstance(look, Exception) or not look.is_ready or look.version != self._orders.version:
                self._take_out(self._replicas[index], f"a failed update: {failures[index]}")

    # Looking at replicas, taking them out, replacing them.

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.config.probe_interval_s)
            await asyncio.gather(*(self._probe(replica) for replica in self._live()))

    async def _probe(self, replica: Replica, *, is_urgent: bool = False) -> None:
        """Look at a replica; requests that fail in the same moment share one look.

        Args:
            replica: a live one.
            is_urgent: a request has just failed there, so that one look without an answer is enough.
        """
        if replica.probe is None:
            replica.probe = self._spawn(self._look(replica), name=f"probe {replica.name}")
        await asyncio.shield(replica.probe)
        if is_urgent and replica.state == "live" and replica.num_failed_probes:
            self._take_out(replica, "after a failed request it did not say that it is ready")

    async def _look(self, replica: Replica) -> None:
        engine, num_verbs = replica.engine, self._num_verbs
        try:
            try:
                health = await self._bounded(engine.health(), "health", self.config.probe_timeout_s)
                problem, may_recover = "it says that it is not ready", True
            except Exception as error:
                health, problem, may_recover = None, describe(error), isinstance(error, DeadlineExceeded)
            if replica.engine is not engine or replica.state != "live":
                return
            # an engine that is being told something may not answer, or answer for either version
            is_told = self._verbs.locked() or num_verbs != self._num_verbs
            if health is not None and health.is_ready:
                self._take_note(replica, health, is_told=is_told)
            elif not (is_told and may_recover):
                replica.num_failed_probes += 1
                if not may_recover or replica.num_failed_probes >= self.config.max_failed_probes:
                    self._take_out(replica, problem)
        finally:
            replica.probe = None

    def _take_note(self, replica: Replica, health: EngineHealth, *, is_told: bool) -> None:
        replica.num_failed_probes = 0
        if not is_told:
            try:
                self._orders.check(health)
            except EngineError as error:
                self._take_out(replica, str(error))
                return
        replica.health = health
        limit = replica.limit.observe(health, tokens_in_flight=self._routing.tokens_in_flight(replica.index))
        self._places.set_limit(replica.index, limit=limit)

    def _take_out(self, replica: Replica, why: str) -> None:
        """Give a replica up: call its requests back, and have it replaced."""
        if replica.state != "live":
            return
        replica.note(why)
        replica.state = "replacing"
        self._places.take_out(replica.index)
        self._note_who_is_left()
        num_requests = replica.recall()
        _log.warning("%s was taken out with %d requests in it: %s", replica.name, num_requests, why)
        if self._is_closed:
            return
        self._spawn(self._replace(replica), name=f"replace {replica.name}")

    async def _replace(self, replica: Replica) -> None:
        """Close a replica's engine and put a new one in its place, as often as the budget allows."""
        attempt = 0
        while True:
            try:
                await self._bounded(replica.engine.close(), "close", self.config.control_timeout_s)
            except Exception as error:
                _log.warning("%s could not be closed: %s", replica.name, describe(error))
            if self._restart is None or not replica.budget.take(now_s=time.monotonic()):
                replica.note("nothing replaces it" if self._restart is None else f"its budget is {replica.budget}")
                return self._give_up(replica)
            if attempt:
                await asyncio.sleep(self.config.restart_pause_s * 2 ** (attempt - 1))
            attempt += 1
            try:
                await self._bring_up(replica, self._restart)
            except Exception as error:
                replica.note(f"replacement failed: {describe(error)}")
            else:
                return None

    async def _bring_up(self, replica: Replica, restart: Restart) -> None:
        replica.engine = await self._bounded(restart(replica.index), "restart", self.config.restart_timeout_s)
        async with self._verbs:
            self._num_verbs += 1
            catching_up = self._orders.catch_up(replica.engine)
            await self._bounded(catching_up, "catch up", self.config.update_timeout_s)
            replica.state = "live"
        replica.num_restarts += 1
        replica.num_failed_probes = 0
        replica.health = None
        replica.limit.restart()
        _log.warning("%s was replaced and serves version %d", replica.name, self._orders.version)
        self._places.set_limit(replica.index, limit=replica.limit.tokens)
        self._places.put_back(replica.index)
        self._note_who_is_left()

    def _give_up(self, replica: Replica) -> None:
        replica.state = "failed"
        _log.error("%s is gone for good; %s", replica.name, replica.story)
        self._note_who_is_left()

    def _note_who_is_left(self) -> None:
        if self._routing.num_live:
            self._is_decided.set()
        elif all(replica.state == "failed" for replica in self._replicas):
            self._is_decided.set()
            self._places.fail_waiting(self._nobody_left())
        else:
            self._is_decided.clear()

    def _spawn(self, coroutine: Coroutine[None, None, None], *, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _told(replicas: Sequence[Replica], failures: dict[int, str]) -> str:
    return "; ".join(f"{replicas[index].name}: {why}" for index, why in sorted(failures.items()))
