"""What hangs meets its deadline; the next episode is played, and the process can still end."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agentenv.engine.scripted import ScriptedEngine
from agentenv.env import tool_turn
from agentenv.episode import Limits
from agentenv.errors import UsageError
from agentenv.gauges import Gauges
from agentenv.offload import num_abandoned_threads
from agentenv.runner import GroupSpec
from agentenv.trajectory import Group, StopReason
from tests.faults.desk import Awaited, Inline, InThread, Told, bad_then_good, runner_of, script, spec, tally_of

ROOT = Path(__file__).resolve().parents[2]
STATUS = {"tool": StopReason.TOOL_ERROR, "reward": StopReason.REWARD_ERROR, "close": StopReason.ENV_ERROR}
PLACES = ["setup", "step", "tool", "reward", "close"]


def hung_threads() -> float:
    return next(value for name, _, value in Gauges()._samples() if name == "hook_threads_hung")  # type: ignore[misc]


@pytest.mark.fault(
    "hook hangs in Python", then="next episode is scored", metric="agentenv_episodes_total, agentenv_hook_threads_hung"
)
@pytest.mark.parametrize("where", PLACES)
async def test_a_loop_in_python_is_left_behind_at_its_deadline(renderer, where):
    let_go = threading.Event()

    def spin() -> None:
        while not let_go.is_set():
            time.sleep(0)

    before = num_abandoned_threads()
    bad, _ = await bad_then_good(renderer, InThread, Told(where, spin))
    assert bad.stop_reason is STATUS.get(where, StopReason.DEADLINE), bad.error
    assert "no answer within 0.3 s" in bad.error
    assert hung_threads() == num_abandoned_threads() == before + 1
    let_go.set()
    async with asyncio.timeout(5):
        while num_abandoned_threads() > before:  # noqa: ASYNC110 - a thread ends, which tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.fault(
    "hook hangs in C (time.sleep)",
    then="next episode is scored",
    metric="agentenv_episodes_total, agentenv_hook_threads_hung",
)
@pytest.mark.parametrize("where", PLACES)
async def test_a_sleep_in_c_is_left_behind_at_its_deadline(renderer, where):
    bad, _ = await bad_then_good(renderer, InThread, Told(where, lambda: time.sleep(1.5)))
    assert bad.stop_reason is STATUS.get(where, StopReason.DEADLINE), bad.error
    assert hung_threads() >= 1


@pytest.mark.fault("hook hangs in await", then="next episode is scored", metric="agentenv_episodes_total{stop_reason}")
@pytest.mark.parametrize("where", PLACES)
async def test_an_await_that_never_ends_is_cancelled_at_its_deadline(renderer, where):
    bad, _ = await bad_then_good(renderer, Awaited, Told(where, lambda: asyncio.sleep(3600)))
    assert bad.stop_reason is STATUS.get(where, StopReason.DEADLINE), bad.error


@pytest.mark.fault("hook hangs for ever", then="process ends", metric="agentenv_hook_threads_hung")
def test_a_thread_that_never_comes_back_does_not_keep_the_process_from_ending():
    program = """
import asyncio, time
from agentenv.offload import call_hook, num_abandoned_threads
async def main():
    try:
        await call_hook(time.sleep, 3600, inline=False, timeout_s=0.05, side="env", where="x")
    except Exception as error:
        print(error)
    print(await call_hook(lambda: "next", inline=False, timeout_s=5, side="env", where="x"), num_abandoned_threads())
asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert "its thread is abandoned" in ran.stdout
    assert ran.stdout.endswith("next 1\n")


@pytest.mark.fault("episode never ends", then="next episode is scored", metric="agentenv_episodes_total")
@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(), StopReason.MAX_TURNS),
        (Limits(max_episode_tokens=60), StopReason.MAX_TOKENS),
        (Limits(max_context_tokens=900), StopReason.CONTEXT_OVERFLOW),
    ],
)
async def test_an_episode_without_end_is_ended_by_a_budget_and_scored(renderer, limits, reason):
    engine = ScriptedEngine([renderer.turn_ids(tool_turn("act", {}))])  # the last turn repeats
    runner = runner_of(renderer, lambda which: Inline(Told()), engine=engine, limits=limits)
    endless = await asyncio.wait_for(runner.run_episode(spec(0)), 10)
    assert (endless.stop_reason, endless.reward) == (reason, 1.0)

    engine.script = script(renderer)
    assert (await runner.run_episode(spec(1))).stop_reason in (StopReason.COMPLETED, reason)
    assert tally_of(runner).num_ended[reason] >= 1


@pytest.mark.fault("step after done", then="reset plays on", metric="none: a caller's mistake")
def test_a_step_after_the_end_is_refused_and_a_reset_plays_on():
    env = Inline(Told())
    env.reset(seed=0)
    env.step("done")
    with pytest.raises(UsageError, match="the episode is over; call reset first"):
        env.step("more")
    env.reset(seed=0)
    assert env.step("done")[1:3] == (1.0, True)
    env.close()


@pytest.mark.fault("one straggler 100 times slower", then="the others come at once", metric="agentenv_episode_seconds")
async def test_a_straggler_holds_up_nobody_but_its_group(renderer):
    quick_s, slow_s = 0.01, 1.0

    def make(which):
        wait_s = slow_s if (which.group_id, which.member) == ("3", 0) else quick_s
        env = Awaited(Told("step", lambda: asyncio.sleep(wait_s)))
        env.hook_timeout_s = 10
        return env

    runner = runner_of(renderer, make, max_episodes=4)
    order = []
    started = time.perf_counter()
    async for group in runner.run(GroupSpec(group_id=str(i), env_id="test/Harmful-v0", size=2) for i in range(12)):
        order.append((group.group_id, time.perf_counter() - started))
    assert order[-1][0] == "3"
    assert order[-2][1] < slow_s  # eleven groups were done while it still played
    assert tally_of(runner).num_ended[StopReason.COMPLETED] == 24
    assert sum(count for bound, count in tally_of(runner).seconds.cumulative() if bound == 0.5) == 23


@pytest.mark.fault(
    "cancelled at any await", then="next episode is scored", metric="none: a cancelled attempt is no data"
)
async def test_a_runner_cancelled_at_any_await_leaves_nothing_open(renderer):
    is_cancelled = True
    for num_passes in range(60):
        told = [Told() for _ in range(3)]
        runner = runner_of(renderer, lambda which: Awaited(told[which.member]))  # noqa: B023 - used in this pass only
        task = asyncio.create_task(runner.run_group(GroupSpec(group_id="g", env_id="test/Harmful-v0", size=3)))
        for _ in range(num_passes):
            await asyncio.sleep(0)
        task.cancel()
        (result,) = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 5)
        is_cancelled = isinstance(result, asyncio.CancelledError)
        assert is_cancelled or (isinstance(result, Group) and len(result.scored) == 3)
        assert not runner.running
        assert runner.admission.num_running == 0
        assert all(one.num_teardowns <= 1 for one in told)
        again = await runner_of(renderer, lambda which: Awaited(Told())).run_episode(spec(0))
        assert again.reward == 1.0
    assert not is_cancelled, "the last passes must come after the end"
