"""Learner and fleet over peers of this process: what is sent, what is refused, and what happens when one is lost."""

import asyncio
from pathlib import Path

import pytest
import torch

from agentenv.engine.protocol import EngineHealth, WeightManifest
from agentenv.episode import Sampling
from agentenv.errors import ClusterError, PeerLost
from agentenv.runner import GroupSpec
from agentenv.trainers.cluster_fleet import Fleet, Shipper
from agentenv.trainers.cluster_parcel import Shipped, packed
from agentenv.trainers.cluster_peer import call_all
from agentenv.trainers.cluster_ranks import RankLearner, check_shared
from agentenv.trainers.worker import UpdatePlan
from agentenv.trajectory import Group
from tests.trainers.peers import InlinePeer

PLAN = UpdatePlan(token_budget=64, num_steps=1, seed=0, version=0)


class FakeRank:
    def __init__(self, *, norm: float = 1.0, sees: bool = True, error: Exception | None = None) -> None:
        self.norm, self.is_sighted, self.error = norm, sees, error

    def alive(self) -> bool:
        return True

    def sees(self, path: str) -> bool:
        return self.is_sighted and Path(path).is_file()

    async def update(self, samples: object, plan: UpdatePlan) -> tuple[dict[str, float], int]:
        if self.error is not None:
            raise self.error
        return {"grad_norm": self.norm}, 3


class FakeRollouts:
    """Plays a group when it is let."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.batches: list[list[str]] = []
        self.runners: list[int] = []
        self.dropped: list[int] = []

    async def open(self, model: str, version: int) -> None:
        self.version = version

    async def add_runner(self, number: int, sampling: Sampling) -> None:
        self.runners.append(number)

    async def begin(self, groups: list[tuple[int, int, GroupSpec]]) -> bool:
        self.batches.append([spec.group_id for _, _, spec in groups])
        return True

    async def result(self, number: int, begun: bool) -> Group:
        await self.may_end.wait()
        return Group(group_id=str(number), trajectories=())

    async def drop(self, number: int) -> None:
        self.dropped.append(number)

    async def health(self) -> EngineHealth:
        return EngineHealth(is_ready=True, version=self.version, num_running=0, num_waiting=0)

    async def close(self) -> None:
        pass


def ranks(*targets: FakeRank) -> list[InlinePeer]:
    return [InlinePeer(target, name=f"rank {index}") for index, target in enumerate(targets)]


def learner(peers: list[InlinePeer]) -> RankLearner:
    return RankLearner(peers, put=lambda value: value)


class Crowd:
    """A fleet of workers that are let go by hand."""

    def __init__(self, count: int) -> None:
        self.workers: list[FakeRollouts] = []
        self.peers: list[InlinePeer] = []
        self.fleet = Fleet(self._spawn, count=count, put=lambda value: value, model="folder", version=0)

    def _spawn(self, index: int) -> InlinePeer:
        self.workers.append(FakeRollouts())
        self.peers.append(InlinePeer(self.workers[-1], name=f"rollout worker {index}"))
        return self.peers[-1]


async def until(holds, *, timeout_s: float = 20.0) -> None:
    for _ in range(int(timeout_s / 0.01)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"it did not hold within {timeout_s:g} s")


async def test_an_update_returns_what_the_ranks_agree_on():
    trained = learner(ranks(FakeRank(), FakeRank()))

    assert await trained.update([], plan=PLAN) == {"grad_norm": 1.0}
    assert trained.optimizer_steps == 3


async def test_ranks_that_took_different_steps_are_refused_by_name():
    with pytest.raises(ClusterError, match=r"different steps: rank 0 has gradient norm 1\.0, rank 1 has 1\.5"):
        await learner(ranks(FakeRank(norm=1.0), FakeRank(norm=1.5))).update([], plan=PLAN)


async def test_a_lost_rank_is_the_cause_however_many_others_fail_with_it():
    peers = ranks(FakeRank(error=ClusterError("connection reset by peer")), FakeRank())
    peers[1].kill()

    with pytest.raises(PeerLost, match="rank 1 was lost during update"):
        await learner(peers).update([], plan=PLAN)


async def test_a_rank_that_does_not_see_the_run_folder_is_named(tmp_path):
    await check_shared(ranks(FakeRank(), FakeRank()), folder=tmp_path)

    with pytest.raises(ClusterError, match="rank 1 cannot see the run's folder"):
        await check_shared(ranks(FakeRank(), FakeRank(sees=False)), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_failure_ends_the_wait_for_all_others():
    class Stuck(FakeRank):
        async def update(self, samples: object, plan: UpdatePlan) -> tuple[dict[str, float], int]:
            await asyncio.sleep(3600)
            raise AssertionError

    peers = ranks(Stuck(), FakeRank(error=ClusterError("rank 1 failed in update: out of memory")))
    async with asyncio.timeout(10):
        with pytest.raises(ClusterError, match="out of memory"):
            await call_all(peers, "update", [], PLAN)


async def test_groups_admitted_together_travel_in_one_call_per_worker_and_spread_evenly():
    crowd = Crowd(2)
    pool = await crowd.fleet.open()
    runner = crowd.fleet.add_runner(Sampling())
    specs = [GroupSpec(group_id=name, env_id="env") for name in "abcd"]

    playing = [asyncio.create_task(crowd.fleet.play(spec, runner=runner)) for spec in specs]
    await until(lambda: all(worker.batches for worker in crowd.workers))
    for worker in crowd.workers:
        worker.may_end.set()
    await asyncio.gather(*playing)

    assert [worker.batches for worker in crowd.workers] == [[["a", "c"]], [["b", "d"]]]
    assert [peer.calls.count("result") for peer in crowd.peers] == [2, 2]
    assert [peer.calls.count("generate") for peer in crowd.peers] == [0, 0]
    await pool.close()


async def test_groups_of_a_lost_worker_are_played_in_another_and_it_is_replaced():
    crowd = Crowd(2)
    pool = await crowd.fleet.open()
    runner = crowd.fleet.add_runner(Sampling())
    playing = [asyncio.create_task(crowd.fleet.play(GroupSpec(group_id=n, env_id="env"), runner=runner)) for n in "ab"]
    await until(lambda: all(worker.batches for worker in crowd.workers))

    crowd.peers[0].kill()
    await until(lambda: len(crowd.workers[1].batches) == 2 or len(crowd.workers) == 3)
    await until(lambda: len(crowd.workers) == 3 and pool.stats()[0].num_restarts == 1)
    for worker in crowd.workers:
        worker.may_end.set()

    assert len(await asyncio.gather(*playing)) == 2
    assert crowd.fleet.num_lost == 1
    assert crowd.workers[2].runners == [runner]  # the new one was told what the old one knew
    await pool.close()


async def test_a_group_that_nobody_waits_for_any_more_is_dropped_in_its_worker():
    crowd = Crowd(1)
    pool = await crowd.fleet.open()
    runner = crowd.fleet.add_runner(Sampling())
    playing = asyncio.create_task(crowd.fleet.play(GroupSpec(group_id="a", env_id="env"), runner=runner))
    await until(lambda: "result" in crowd.peers[0].calls)

    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)

    await until(lambda: crowd.workers[0].dropped == [0])
    await pool.close()


def test_a_parcel_keeps_every_bit_dtype_and_shape():
    sent = {
        "matrix": torch.randn(3, 5, dtype=torch.bfloat16),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "transposed": torch.randn(4, 2).T,
    }

    came = packed(sent).tensors()

    for name, tensor in sent.items():
        assert came[name].dtype == tensor.dtype
        assert torch.equal(came[name], tensor)


def test_weights_are_laid_into_the_store_once_and_not_at_all_where_they_lie_there_already():
    laid: list[object] = []

    def put(value: object) -> object:
        laid.append(value)
        return len(laid)

    shipper = Shipper(put)
    manifest = WeightManifest(version=1, tensors={"w": torch.zeros(2)})

    assert [shipper.ship(manifest), shipper.ship(manifest)] == [1, 1]
    there = WeightManifest(version=2, tensors=Shipped({"w": torch.zeros(2)}, ref="already there"))
    assert shipper.ship(there) == "already there"
    assert len(laid) == 1
