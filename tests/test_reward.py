"""Rewards: checked values, typed failures, components by name, group components."""

import asyncio
import math
import threading
from fractions import Fraction

import numpy as np
import pytest

from agentenv import StopReason, Trajectory
from agentenv.errors import DeadlineExceeded, EpisodeError, ToolError, UsageError
from agentenv.reward import Reward, Rubric, as_reward, best_of_group, reward, rewards_of_class, score_group


def component(value, **options):
    return Reward(name="probe", function=lambda: value, **options)


def trajectory(member, value, stop_reason=StopReason.COMPLETED):
    return Trajectory(
        env_id="e",
        task_id="t",
        group_id="g",
        member=member,
        seed=0,
        stop_reason=stop_reason,
        turns=(),
        sequences=(),
        reward_components={"base": value},
        messages=(),
    )


@pytest.mark.parametrize("raw", [1, 1.0, True, np.float32(1), np.int64(1), np.array(1.0), Fraction(1)])
async def test_any_finite_number_becomes_a_python_float(raw):
    value = await component(raw).value(inline_default=True)
    assert value == 1.0
    assert type(value) is float


@pytest.mark.parametrize("raw", [math.nan, math.inf, -math.inf, None, "1.0", "", [1.0], np.array([1.0, 2.0]), 1j])
async def test_anything_else_is_a_failure_of_the_reward_side_and_never_zero(raw):
    with pytest.raises(EpisodeError) as raised:
        await component(raw).value(inline_default=True)
    assert raised.value.side == "reward"
    assert raised.value.where == "probe"


async def test_a_value_outside_the_declared_range_is_refused_with_both():
    with pytest.raises(EpisodeError, match=r"returned 1.5; a finite number in \[0, 1\] is needed"):
        await component(1.5, low=0.0, high=1.0).value(inline_default=True)


async def test_the_weight_applies_after_the_range():
    assert await component(0.5, low=0.0, high=1.0, weight=4.0).value(inline_default=True) == 2.0


@pytest.mark.parametrize("error", [ZeroDivisionError("0/0"), ToolError("not for models"), TimeoutError("own")])
async def test_an_exception_is_a_failure_of_the_reward_side(error):
    def crash():
        raise error

    with pytest.raises(EpisodeError) as raised:
        await Reward(name="probe", function=crash).value(inline_default=True)
    assert raised.value.side == "reward"
    assert not isinstance(raised.value, DeadlineExceeded)


async def test_a_hanging_reward_meets_its_deadline_in_a_thread_and_as_a_coroutine():
    let_go = threading.Event()

    async def hang():
        await asyncio.sleep(10)

    for function in (lambda: let_go.wait(10), hang):
        with pytest.raises(DeadlineExceeded, match=r"reward failure in probe: no answer within 0.05 s"):
            await Reward(name="probe", function=function, timeout_s=0.05).value(inline_default=False)
    let_go.set()


async def test_asynchronous_rewards_are_awaited():
    async def later():
        await asyncio.sleep(0)
        return 0.25

    assert await Reward(name="probe", function=later).value(inline_default=False) == 0.25


async def test_a_rubric_scores_turns_and_ends_by_name():
    class Desk:
        @reward(when="turn", weight=0.1)
        def polite(self):
            return 1

        @reward
        def solved(self):
            return 1

        @staticmethod
        @reward(when="group")
        def best(group):
            return [0.0 for _ in group]

    assert [component.name for component in rewards_of_class(Desk)] == ["polite", "solved", "best"]
    rubric = Rubric(components=tuple(c.bind(Desk()) for c in rewards_of_class(Desk)), inline_default=True)

    assert await rubric.score_turn() == {"polite": 0.1}
    assert await rubric.score_end() == {"solved": 1.0}


def test_a_group_reward_with_self_is_refused_because_it_belongs_to_no_environment():
    with pytest.raises(UsageError, match="@staticmethod"):

        @reward(when="group")
        def best(self, group):
            return [0.0 for _ in group]


def test_subclasses_override_and_remove_components():
    class Base:
        @reward
        def one(self):
            return 1

        @reward
        def two(self):
            return 2

    class Child(Base):
        one = None  # type: ignore[assignment]

        @reward(weight=3.0)
        def two(self):
            return 2

    assert [(c.name, c.weight) for c in rewards_of_class(Child)] == [("two", 3.0)]


def test_two_components_of_one_name_are_refused():
    with pytest.raises(UsageError, match="share the name"):
        Rubric(components=(component(1), component(2)))


def test_an_unknown_moment_is_refused_with_the_allowed_ones():
    with pytest.raises(UsageError, match='when="later"; allowed are "turn", "end" and "group"'):

        @reward(when="later")  # type: ignore[arg-type]
        def never():
            return 0


def test_an_undecorated_function_is_no_reward():
    with pytest.raises(UsageError, match="decorate it with @reward"):
        as_reward(len)


async def test_group_components_see_the_scored_members_only():
    failed = trajectory(1, 0.0, StopReason.TOOL_ERROR)
    group = (trajectory(0, 1.0), failed, trajectory(2, 3.0))

    def rank(members):
        assert [m.member for m in members] == [0, 2]
        return [0.0, 1.0]

    first, second, third = await score_group([Reward(name="rank", function=rank, when="group", weight=2.0)], group)

    assert first.reward_components == {"base": 1.0, "rank": 0.0}
    assert second is failed
    assert third.reward_components == {"base": 3.0, "rank": 2.0}


@pytest.mark.parametrize("values", [[1.0], "ab", None, 3.0])
async def test_a_group_component_must_give_one_number_per_member(values):
    group = (trajectory(0, 1.0), trajectory(1, 2.0))
    with pytest.raises(EpisodeError, match="must return a list of 2 numbers"):
        await score_group([Reward(name="rank", function=lambda _: values, when="group")], group)


async def test_a_group_without_a_scored_member_passes_through():
    group = (trajectory(0, 0.0, StopReason.ENV_ERROR),)

    def never(members):
        raise AssertionError("nothing to score")

    assert await score_group([Reward(name="rank", function=never, when="group")], group) == group


def test_the_best_of_a_group_must_stand_above_its_median():
    # median of 0, 1, 3 is 1; in a group of equals nobody stands out
    assert best_of_group([trajectory(i, v) for i, v in enumerate([0.0, 1.0, 3.0])]) == [0.0, 0.0, 1.0]
    assert best_of_group([trajectory(i, 1.0) for i in range(3)]) == [0.0, 0.0, 0.0]
