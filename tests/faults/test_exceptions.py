"""Whatever author code raises, wherever: that episode fails with a status, the next one is played, both are counted."""

import asyncio
import concurrent.futures
from collections.abc import Callable

import pytest

from agentenv.errors import EpisodeError, ToolError, UsageError
from agentenv.trajectory import StopReason
from tests.faults.desk import Awaited, Inline, InThread, Told, bad_then_good, runner_of, spec, tally_of


class Unpicklable(Exception):
    """Holds what no other process can be sent."""

    def __init__(self) -> None:
        super().__init__(lambda: None)


class Mute(Exception):
    """Its `str()` and `repr()` raise."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


class Mutiny(BaseException):
    """No `Exception`."""


class Rigid(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, *, code: int) -> None:
        self.code = code


def recursion() -> None:
    recursion()


def raising(make: Callable[[], BaseException]) -> Callable[[], None]:
    def harm() -> None:
        raise make()

    return harm


def cycle() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


KINDS: dict[str, Callable[[], None]] = {
    "recursion": recursion,
    "cause cycle": raising(cycle),
    "unpicklable": raising(Unpicklable),
    "str raises": raising(Mute),
    "keyword only": raising(lambda: Rigid(code=3)),
    "huge message": raising(lambda: ValueError("x" * 10_000_000)),
    "lone surrogate": raising(lambda: ValueError("\ud800")),
    "SystemExit": raising(lambda: SystemExit(3)),
    "CancelledError": raising(asyncio.CancelledError),
    "futures.CancelledError": raising(concurrent.futures.CancelledError),
    "GeneratorExit": raising(GeneratorExit),
    "StopIteration": raising(lambda: StopIteration("dry")),
    "StopAsyncIteration": raising(StopAsyncIteration),
    "BaseException": raising(Mutiny),
    "ExceptionGroup": raising(lambda: ExceptionGroup("two", [ValueError("a"), OSError("b")])),
    "BaseExceptionGroup": raising(lambda: BaseExceptionGroup("two", [SystemExit(1), Mutiny()])),
    "MemoryError": raising(MemoryError),
    "AssertionError": raising(AssertionError),
    "TimeoutError": raising(lambda: TimeoutError("theirs")),
    "UnicodeDecodeError": raising(lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")),
    "BrokenPipeError": raising(BrokenPipeError),
    "UsageError": raising(lambda: UsageError("theirs")),
    "EpisodeError": raising(lambda: EpisodeError("env", "theirs", "x")),
    "SyntaxError": raising(lambda: SyntaxError("bad")),
}
STATUS = {"tool": StopReason.TOOL_ERROR, "reward": StopReason.REWARD_ERROR}


@pytest.mark.fault(
    "exceptions of 24 kinds in reset, step, tool, reward and close",
    then="next episode is scored",
    metric="agentenv_episodes_total{stop_reason}",
)
@pytest.mark.parametrize("where", ["setup", "step", "tool", "reward", "close"])
@pytest.mark.parametrize("hooks", [Inline, InThread, Awaited])
async def test_an_exception_of_any_kind_ends_its_episode_alone(renderer, hooks, where):
    for name, harm in KINDS.items():
        told = Told(where, harm)
        bad, _ = await bad_then_good(renderer, hooks, told)

        status = StopReason.ENV_ERROR if name == "EpisodeError" else STATUS.get(where, StopReason.ENV_ERROR)
        assert bad.stop_reason is status, (name, bad.error)
        assert bad.error, name
        assert len(bad.error) < 20_000
        assert not bad.is_scored
        assert bad.reward == 0
        assert told.num_teardowns == 1, name


async def test_an_environment_that_cannot_be_made_fails_its_episode_alone(renderer):
    def make(which):
        if which.group_id == "0":
            raise OSError("no licence")
        return Inline(Told())

    runner = runner_of(renderer, make)
    bad, good = await runner.run_episode(spec(0)), await runner.run_episode(spec(1))
    assert (bad.stop_reason, good.reward) == (StopReason.ENV_ERROR, 1.0)
    assert "could not be made: OSError: no licence" in bad.error
    assert tally_of(runner).num_ended[StopReason.ENV_ERROR] == 1


async def test_a_tool_error_speaks_to_the_model_and_the_episode_goes_on(renderer):
    bad, _ = await _quiet(renderer, Told("tool", raising(lambda: ToolError("not now"))))
    assert (bad.stop_reason, bad.reward) == (StopReason.COMPLETED, 1.0)
    assert "not now" in bad.messages[2].content


async def _quiet(renderer, told):
    runner = runner_of(renderer, lambda which: Inline(told))
    return await runner.run_episode(spec(0)), runner


@pytest.mark.fault("KeyboardInterrupt in a hook", then="a new runner plays", metric="none: it is Ctrl-C and leaves")
@pytest.mark.parametrize("hooks", [Inline, Awaited])
def test_a_keyboard_interrupt_leaves_the_run_and_the_environment_is_torn_down(renderer, hooks):
    told = Told("step", raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(runner_of(renderer, lambda which: hooks(told)).run_episode(spec(0)))
    assert told.num_teardowns == 1
    again = asyncio.run(runner_of(renderer, lambda which: hooks(Told())).run_episode(spec(0)))
    assert again.reward == 1.0


async def test_a_keyboard_interrupt_in_a_thread_came_from_nobody_and_fails_the_episode(renderer):
    bad, _ = await bad_then_good(renderer, InThread, Told("step", raising(KeyboardInterrupt)))
    assert "KeyboardInterrupt was raised" in bad.error


async def test_a_member_that_raises_cancellation_does_not_cancel_its_group(renderer):
    from agentenv.runner import GroupSpec

    harm = raising(asyncio.CancelledError)
    runner = runner_of(renderer, lambda which: Awaited(Told("step", harm) if which.member == 1 else Told()))
    group = await asyncio.wait_for(runner.run_group(GroupSpec(group_id="g", env_id="test/Harmful-v0", size=3)), 5)
    assert [t.stop_reason for t in group.trajectories] == [
        StopReason.COMPLETED,
        StopReason.ENV_ERROR,
        StopReason.COMPLETED,
    ]
