"""Replicas die, hang, lie and come back; requests get through once, and old weights never serve under a new version."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch

from agentenv.engine.concurrency import ConcurrencyConfig
from agentenv.engine.pool import Pool
from agentenv.engine.pool_config import PoolConfig
from agentenv.engine.protocol import Completion, LoraAdapter, SamplingParams, WeightManifest
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError
from tests.engine.mortal_engine import MortalEngine

QUICK = PoolConfig(
    probe_interval_s=0.02,
    probe_timeout_s=0.1,
    max_failed_probes=2,
    control_timeout_s=0.5,
    update_timeout_s=0.5,
    restart_timeout_s=2.0,
    restart_pause_s=0.01,
    max_restarts=2,
)
ADAPTER = LoraAdapter(rank=1, alpha=1.0, target_modules=("q_proj",))


class Park:
    """A pool over engines that can die, and the engines that took their places."""

    def __init__(self) -> None:
        self.engines: list[MortalEngine] = []
        self.restarted: list[tuple[int, MortalEngine]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.prepare: Callable[[MortalEngine], object] = lambda engine: None
        self.pool: Pool

    async def open(self, count: int = 2, *, can_restart: bool = True, latency_s: float = 0.0, **changes: Any) -> "Park":
        self.engines = [MortalEngine(latency_s=latency_s) for _ in range(count)]
        config = QUICK.model_copy(update=changes)
        self.pool = await Pool.open(self.engines, config=config, restart=self.restart if can_restart else None)
        return self

    async def restart(self, index: int) -> MortalEngine:
        await self.gate.wait()
        engine = MortalEngine()
        self.prepare(engine)
        self.restarted.append((index, engine))
        return engine

    async def ask(self, session: str = "s", *, seed: int = 1, deadline_s: float = 5.0, size: int = 3) -> Completion:
        return await self.pool.generate(
            [7] * size, SamplingParams(max_tokens=8, seed=seed), session_id=session, deadline_s=deadline_s
        )

    def states(self) -> list[str]:
        return [stats.state for stats in self.pool.stats()]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - the condition is about many objects, none of which has an event
                await asyncio.sleep(0.005)

    async def until_states(self, *states: str) -> None:
        await self.until(lambda: self.states() == list(states))


@pytest.fixture
async def park() -> AsyncIterator[Park]:
    park = Park()
    yield park
    park.gate.set()
    await park.pool.close()


def manifest(version: int, *values: float, adapter: LoraAdapter | None = None) -> WeightManifest:
    return WeightManifest(version=version, tensors={"w": torch.tensor(values)}, adapter=adapter)


EXPECTED = [(21 + 1 + i) % 97 for i in range(5)]  # prompt 7 + 7 + 7, seed 1


# Requests.


async def test_a_session_stays_and_new_sessions_spread(park):
    await park.open(2, latency_s=0.02)
    await asyncio.gather(*(park.ask(f"s{i}") for i in range(8)))
    await asyncio.gather(*(park.ask(f"s{i}") for i in range(8)))
    turns = [{e.request.session_id for e in engine.exchanges} for engine in park.engines]
    assert [len(sessions) for sessions in turns] == [4, 4]
    assert turns[0].isdisjoint(turns[1])


async def test_an_ended_session_is_forgotten_by_its_replica_alone(park):
    await park.open(2)
    await park.ask("a")
    await park.pool.end_session("a")
    await park.pool.end_session("unknown")
    assert [engine.calls for engine in park.engines] == [["generate", "end a"], []]
    park.engines[0].die()
    await park.pool.end_session("a")  # a replica that is gone holds nothing


async def test_requests_in_a_replica_that_dies_are_asked_once_more_elsewhere_with_the_same_seed(park):
    await park.open(2, latency_s=0.2)
    requests = [asyncio.create_task(park.ask(f"s{i}")) for i in range(6)]
    await asyncio.sleep(0.05)
    park.engines[0].die()

    completions = await asyncio.gather(*requests)

    assert [completion.token_ids for completion in completions] == [EXPECTED] * 6
    assert park.pool.num_reissued == 3
    assert park.engines[1].calls.count("generate") + sum(e.calls.count("generate") for _, e in park.restarted) == 6
    assert all(stats.tokens_in_flight == 0 for stats in park.pool.stats())


async def test_a_request_that_is_itself_at_fault_is_not_asked_again_and_its_replica_stays(park):
    await park.open(2)

    def refuse(request: Any) -> list[int]:
        raise EngineError("prompt_ids[0] is 7000; ids must lie in [0, 100)")

    park.engines[0].script = refuse
    with pytest.raises(EngineError, match="ids must lie in"):
        await park.ask()
    assert park.states() == ["live", "live"]
    assert park.pool.num_reissued == 0


@pytest.mark.fault(
    "two engine replicas die one after the other", then="the third is left alone", metric="agentenv_engine_errors_total"
)
async def test_a_request_lost_with_two_replicas_fails_and_says_so(park):
    await park.open(3, latency_s=0.3, can_restart=False)
    request = asyncio.create_task(park.ask("a"))
    await asyncio.sleep(0.05)
    park.engines[0].die()
    await park.until(lambda: park.engines[1].calls == ["generate"])
    park.engines[1].die()
    with pytest.raises(EngineError, match=r"two replicas were lost.*replica 0: .*connection refused.*replica 1"):
        await request
    assert park.engines[2].calls == []


@pytest.mark.fault(
    "engine replica hangs", then="the request is answered elsewhere", metric="agentenv_pool_reissued_requests_total"
)
async def test_a_replica_that_hangs_is_noticed_and_its_requests_go_elsewhere(park):
    await park.open(2, latency_s=0.2)
    request = asyncio.create_task(park.ask("a", deadline_s=10))
    await asyncio.sleep(0.05)
    park.engines[0].latency_s = 3600
    park.engines[0].is_hung = True
    hung = asyncio.create_task(park.ask("a", deadline_s=10))
    started = asyncio.get_running_loop().time()
    assert (await hung).token_ids == EXPECTED
    assert asyncio.get_running_loop().time() - started < 3
    await request


async def test_a_deadline_is_kept_while_a_replica_hangs(park):
    await park.open(1, can_restart=False, max_failed_probes=1000)
    park.engines[0].is_hung = True
    request = asyncio.create_task(park.ask(deadline_s=0.05))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await request  # the engine that hangs keeps no deadline; whoever asks still may give up
    assert park.pool.stats()[0].requests_in_flight == 0


async def test_cancelling_a_request_reaches_the_replica_and_frees_its_place(park):
    await park.open(1, latency_s=30)
    request = asyncio.create_task(park.ask())
    await asyncio.sleep(0.02)
    assert park.engines[0]._num_running == 1
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert park.engines[0]._num_running == 0
    assert park.pool.stats()[0].requests_in_flight == 0


async def test_a_cancelled_request_stays_cancelled_when_its_replica_is_lost_in_the_same_moment(park):
    await park.open(2, latency_s=30)
    request = asyncio.create_task(park.ask())
    await asyncio.sleep(0.02)
    request.cancel()
    park.pool._take_out(park.pool._replicas[0], "lost")
    with pytest.raises(asyncio.CancelledError):
        await request
    assert park.engines[1].calls == []


async def test_a_request_called_back_inside_a_timeout_of_its_caller_goes_on_elsewhere(park):
    await park.open(2, latency_s=0.1)

    async def episode() -> Completion:
        async with asyncio.timeout(5):
            completion = await park.ask("a")
            await asyncio.sleep(0)  # a cancellation that was left over would strike here
            return completion

    running = asyncio.create_task(episode())
    await asyncio.sleep(0.02)
    park.pool._take_out(park.pool._replicas[0], "lost")
    assert (await running).token_ids == EXPECTED
    assert running.cancelling() == 0


# Bounds.


async def test_what_has_no_room_waits_and_a_deadline_ends_the_waiting(park):
    bounds = ConcurrencyConfig(start_tokens=20, lowest_tokens=20, highest_tokens=20)
    await park.open(1, latency_s=0.3, concurrency=bounds)
    first = asyncio.create_task(park.ask("a"))  # 3 + 8 tokens
    await asyncio.sleep(0.01)
    with pytest.raises(DeadlineExceeded, match=r"no room on a replica within 0\.0"):
        await park.ask("b", deadline_s=0.05)
    assert park.engines[0].calls == ["generate"]
    third = asyncio.create_task(park.ask("c"))
    assert (await first).token_ids == (await third).token_ids == EXPECTED


async def test_an_engine_whose_cache_is_full_gets_less_and_one_that_copes_gets_more(park):
    bounds = ConcurrencyConfig(start_tokens=100, lowest_tokens=10, highest_tokens=200, step_tokens=50, factor=0.5)
    await park.open(2, latency_s=0.5, concurrency=bounds)
    park.engines[0].cache_use = 1.0
    requests = [asyncio.create_task(park.ask(f"s{i}", size=82)) for i in range(2)]  # 82 + 8 of 100 tokens each
    await park.until(lambda: park.pool.stats()[1].tokens_limit >= 150)
    assert park.pool.stats()[0].tokens_limit <= 45  # half of the 90 in flight
    assert park.pool.stats()[0].cache_use == 1.0
    await asyncio.gather(*requests)


# Weights.


async def test_all_replicas_take_new_weights_and_one_acknowledgement_comes_back(park):
    await park.open(3)
    ack = await park.pool.update_weights(manifest(1, 1.0, 2.0))
    assert (ack.version, ack.checksum) == (1, park.engines[0].checksum())
    assert [engine.version for engine in park.engines] == [1, 1, 1]
    assert (await park.pool.health()).version == 1


async def test_a_replacement_gets_the_weights_as_they_were_published_though_the_trainer_has_changed_them_since(park):
    await park.open(2)
    weights = {"w": torch.tensor([1.0, 2.0])}
    await park.pool.update_weights(WeightManifest(version=1, tensors=weights))
    await park.pool.update_weights(WeightManifest(version=2, tensors={"w": weights["w"].add_(1)}))
    published = torch.tensor([2.0, 3.0]).numpy().tobytes()
    weights["w"].mul_(100)  # the next step of the optimizer

    park.engines[0].die()
    await park.until(lambda: len(park.restarted) == 1 and park.states() == ["live", "live"])

    (index, engine) = park.restarted[0]
    assert (index, engine.version, engine.weights) == (0, 2, {"w": published})
    assert engine.calls == ["pause keep", "update 2", "resume"]
    assert park.engines[0].num_closed == 1


async def test_a_replacement_gets_the_model_and_then_the_adapter(park):
    await park.open(1)
    await park.pool.update_weights(manifest(1, 1.0))
    await park.pool.update_weights(manifest(2, 5.0, adapter=ADAPTER))
    await park.pool.update_weights(manifest(3, 6.0, adapter=ADAPTER))
    park.engines[0].die()
    await park.until(lambda: len(park.restarted) == 1 and park.states() == ["live"])
    assert park.restarted[0][1].calls == ["pause keep", "update 1", "update 3", "resume"]


async def test_a_replica_that_fails_an_update_is_replaced_and_gets_the_new_weights_there(park):
    await park.open(2)
    park.engines[1].refusal = "out of memory"

    ack = await park.pool.update_weights(manifest(1, 1.0))

    assert ack.version == 1
    assert park.states()[1] == "replacing"
    await park.until_states("live", "live")
    assert (park.restarted[0][0], park.restarted[0][1].version) == (1, 1)
    assert all(span.version == 1 for span in (await park.ask("new")).weight_versions)


async def test_an_update_that_hangs_on_one_replica_ends_with_its_deadline(park):
    await park.open(2, update_timeout_s=0.1, can_restart=False)
    park.engines[0].is_hung = True
    ack = await park.pool.update_weights(manifest(1, 1.0))
    assert ack.version == 1
    await park.until_states("failed", "live")


async def test_weights_that_all_refuse_change_nothing(park):
    await park.open(2)
    for engine in park.engines:
        engine.refusal = "w is not finite"
    with pytest.raises(EngineError, match=r"no replica took version 1: replica 0: .*not finite; replica 1: "):
        await park.pool.update_weights(manifest(1, 1.0))
    assert park.states() == ["live", "live"]
    assert (await park.ask()).weight_versions[0].version == 0
    for engine in park.engines:
        engine.refusal = ""
    assert (await park.pool.update_weights(manifest(1, 1.0))).version == 1


async def test_a_version_that_is_not_newer_is_refused(park):
    await park.open(1)
    await park.pool.update_weights(manifest(3, 1.0))
    with pytest.raises(EngineError, match=r"version 3 came, but version 3 is served"):
        await park.pool.update_weights(manifest(3, 1.0))


async def test_of_three_replicas_the_one_with_other_bytes_is_taken_out(park):
    await park.open(3)
    park.engines[1].damage = "x"
    ack = await park.pool.update_weights(manifest(1, 1.0))
    assert ack.checksum == park.engines[0].checksum()
    assert park.states() == ["live", "replacing", "live"]
    await park.until_states("live", "live", "live")


async def test_two_replicas_that_disagree_are_both_wrong(park):
    await park.open(2)
    park.engines[0].damage = "x"
    with pytest.raises(EngineError, match="no majority agrees"):
        await park.pool.update_weights(manifest(1, 1.0))
    await park.until(lambda: len(park.restarted) == 2)
    await park.until_states("live", "live")
    assert (await park.ask()).weight_versions[0].version == 0


async def test_a_replacement_that_does_not_take_the_weights_as_the_others_did_never_serves(park):
    await park.open(2)
    await park.pool.update_weights(manifest(1, 1.0))
    park.prepare = lambda engine: setattr(engine, "damage", "x")
    park.engines[0].die()
    await park.until_states("failed", "live")
    assert len(park.restarted) == 2  # the budget
    assert all("generate" not in engine.calls for _, engine in park.restarted)
    assert all(engine.num_closed == 1 for _, engine in park.restarted)


async def test_a_replica_that_began_anew_behind_our_back_is_found_and_given_the_weights(park):
    await park.open(2)
    await park.pool.update_weights(manifest(1, 1.0))
    park.engines[0].version = 0  # its server was restarted by somebody else
    await park.until(lambda: len(park.restarted) == 1)
    await park.until_states("live", "live")
    assert park.restarted[0][1].version == 1


async def test_a_completion_of_older_weights_than_were_served_is_thrown_away(park):
    await park.open(2, probe_interval_s=3600)
    await park.pool.update_weights(manifest(1, 1.0))
    park.engines[0].says_version = 0
    completion = await park.ask("a")
    assert completion.weight_versions[0].version == 1
    assert park.pool.num_reissued == 1


async def test_without_a_way_to_restart_no_copy_of_the_weights_is_made(park):
    await park.open(1, can_restart=False)
    await park.pool.update_weights(manifest(1, 1.0))
    assert park.pool._orders._kept is None


# Verbs, replacement and the end.


async def test_pauses_and_prefixes_reach_every_replica_and_one_that_fails_is_replaced(park):
    await park.open(2)
    await park.pool.forget_prefixes()
    await park.pool.pause("keep")
    park.engines[1].die()
    await park.pool.resume()
    assert park.engines[0].calls == ["forget", "pause keep", "resume"]
    await park.until_states("live", "live")


async def test_a_replica_that_rejoins_during_a_pause_is_paused_until_all_resume(park):
    await park.open(2)
    await park.pool.pause("keep")
    park.engines[0].die()
    await park.until(lambda: len(park.restarted) == 1)
    await park.until_states("live", "live")
    assert park.restarted[0][1].calls == ["pause keep"]
    await park.pool.resume()
    assert park.restarted[0][1].calls == ["pause keep", "resume"]


async def test_a_replica_keeps_coming_back_until_its_budget_is_spent(park):
    await park.open(1)
    for count in (1, 2):
        (park.restarted[-1][1] if park.restarted else park.engines[0]).die()
        await park.until(lambda count=count: park.pool.stats()[0].num_restarts == count)
        assert (await park.ask()).token_ids == EXPECTED
    park.restarted[-1][1].die()
    with pytest.raises(EngineError, match=r"no replica is left\. replica 0: .*its budget is 2 restarts within 3600 s"):
        await park.ask()
    with pytest.raises(EngineError, match="no replica is left"):
        await park.pool.pause()


async def test_requests_and_verbs_wait_while_the_only_replica_is_replaced(park):
    await park.open(1)
    park.gate.clear()
    park.engines[0].die()
    request = asyncio.create_task(park.ask())
    await park.until_states("replacing")
    pause = asyncio.create_task(park.pool.pause("keep"))
    await asyncio.sleep(0.05)
    assert not request.done()
    assert not pause.done()
    assert not (await park.pool.health()).is_ready
    park.gate.set()
    await pause
    await park.pool.resume()
    assert (await request).token_ids == EXPECTED


async def test_a_verb_that_is_cancelled_half_way_leaves_nobody_in_an_unknown_state(park):
    await park.open(2, update_timeout_s=30)
    park.engines[1].is_hung = True
    update = asyncio.create_task(park.pool.update_weights(manifest(1, 1.0)))
    await park.until(lambda: park.engines[1].calls == ["update 1"])
    update.cancel()
    with pytest.raises(asyncio.CancelledError):
        await update
    await park.until(lambda: len(park.restarted) == 2)
    await park.until_states("live", "live")
    assert (await park.ask()).weight_versions[0].version == 0


async def test_a_failing_replacement_is_tried_again(park):
    await park.open(1)
    park.prepare = lambda engine: engine.die() if not park.restarted else None
    park.engines[0].die()
    await park.until(lambda: len(park.restarted) == 2)
    await park.until_states("live")
    assert [engine.num_closed for _, engine in park.restarted] == [1, 0]


async def test_closing_fails_what_waits_and_what_runs_and_closes_every_engine_once(park):
    bounds = ConcurrencyConfig(start_tokens=20, lowest_tokens=20, highest_tokens=20)
    await park.open(2, latency_s=30, concurrency=bounds)
    requests = [asyncio.create_task(park.ask(f"s{i}")) for i in range(4)]
    await asyncio.sleep(0.02)

    await asyncio.gather(park.pool.close(), park.pool.close())

    results = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(result) for result in results] == [EngineClosed] * 4
    assert [engine.num_closed for engine in park.engines] == [1, 1]
    with pytest.raises(EngineClosed):
        await park.ask()
    with pytest.raises(EngineClosed):
        await park.pool.resume()


async def test_replicas_of_different_versions_are_refused_and_closed(park):
    await park.open(1)
    engines = [MortalEngine(version=0), MortalEngine(version=4)]
    with pytest.raises(EngineError, match=r"versions \[0, 4\]"):
        await Pool.open(engines, config=QUICK)
    assert [engine.num_closed for engine in engines] == [1, 1]
    with pytest.raises(EngineError, match="no replica"):
        await Pool.open([])
