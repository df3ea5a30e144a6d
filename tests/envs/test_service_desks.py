"""RetailService and TravelBooking: identify, keep to the policy, tell what was asked, and touch nothing else."""

import random
from typing import Any

import pytest

from agentenv import ToolCall, tool_turn
from agentenv.envs.retail_service.env import RetailService
from agentenv.envs.retail_service.shop import RETURN_FEE
from agentenv.envs.travel_booking.env import TravelBooking
from agentenv.envs.worlds.desk import REFUSAL, draw_jobs, money
from agentenv.envs.worlds.telling import was_told
from agentenv.messages import Message

DESKS = [RetailService, TravelBooking]


def played(env, *, change=None, extra=None):
    """Play the oracle; `change(turn)` may replace its turns, `extra` is called once before the last turn."""
    value, is_over = 0.0, False
    while not is_over:
        turn = env.oracle()
        if change is not None:
            turn = change(turn)
        if extra is not None and not turn.tool_calls and env.num_turns > 3:
            env.step(extra().to_dict())
            extra = None
        _, value, terminated, truncated, _ = env.step(turn.to_dict())
        is_over = terminated or truncated
    return value


def started(cls, seed=0, **options) -> Any:
    env = cls(**options)
    env.reset(seed=seed)
    return env


def with_refusal(cls):
    """Return an environment whose customer has a forbidden wish, and the index of it."""
    for seed in range(50):
        env = started(cls, seed, difficulty=2)
        for index, job in enumerate(env.case.jobs):
            if not job.reply:
                return env, index
    raise AssertionError("no forbidden wish in 50 seeds")


@pytest.mark.parametrize("cls", DESKS)
def test_the_expert_is_paid_on_every_difficulty(cls):
    for difficulty in range(1, 6):
        assert [played(started(cls, seed, difficulty=difficulty)) for seed in range(20)] == [1.0] * 20


@pytest.mark.parametrize("cls", DESKS)
def test_every_customer_has_a_wish_that_is_granted_so_that_refusing_all_never_pays(cls):
    for seed in range(60):
        env = started(cls, seed, difficulty=1 + seed % 5)
        assert any(job.writes or job.tells for job in env.case.jobs)
    env = started(cls, 1)
    is_over, total = False, 0.0
    while not is_over:
        _, value, terminated, truncated, _ = env.step(REFUSAL)
        total, is_over = total + value, terminated or truncated
    assert total == 0.0


@pytest.mark.parametrize("cls", DESKS)
def test_the_right_changes_without_identification_earn_nothing(cls):
    for seed in range(20):
        env = started(cls, seed)
        is_over, value = False, 1.0
        while not is_over:
            turn = env.cheat(random.Random(0))
            _, value, terminated, truncated, _ = env.step(turn.to_dict())
            is_over = terminated or truncated
        assert value == 0.0
        assert env.database == env.goal


@pytest.mark.parametrize("cls", DESKS)
def test_an_amount_that_was_not_told_costs_everything(cls):
    seed = next(seed for seed in range(50) if any(job.tells for job in started(cls, seed).case.jobs))
    silent = lambda turn: turn if turn.tool_calls or "?" in turn.content else Message(role="assistant", content="Done.")  # noqa: E731
    assert played(started(cls, seed)) == 1.0
    assert played(started(cls, seed), change=silent) == 0.0


def test_an_order_that_policy_protects_and_that_is_cancelled_costs_everything():
    env, index = with_refusal(RetailService)
    order_id = next(order_id for order_id in env.shop.orders if order_id in env.case.jobs[index].want.text)
    forbidden = tool_turn("cancel_order", {"order_id": order_id, "reason": "no longer needed"})
    assert played(env, extra=lambda: forbidden) == 0.0


def test_a_basic_fare_that_is_cancelled_all_the_same_costs_everything():
    env, index = with_refusal(TravelBooking)
    lookups = env.case.jobs[index].lookups
    booking_id = next(arguments["booking_id"] for name, arguments in lookups if name == "get_booking")
    assert played(env, extra=lambda: tool_turn("cancel_booking", {"booking_id": booking_id})) == 0.0


def test_a_look_into_the_order_of_somebody_else_breaks_the_policy():
    env = started(RetailService)
    other = next(o.order_id for o in env.shop.orders.values() if o.customer_id != env.case.customer_id)
    assert played(env, extra=lambda: tool_turn("get_order", {"order_id": other})) == 0.0
    assert env.broke_policy


def test_a_customer_insists_once_on_what_is_forbidden():
    env, index = with_refusal(RetailService)
    played(env)
    insist = env.case.jobs[index].want.insist
    assert insist
    assert [m.content for m in env.conversation if m.role == "user"].count(insist) == 1


@pytest.mark.parametrize("cls", DESKS)
def test_from_difficulty_4_on_customers_do_not_know_their_number_and_say_so(cls):
    env = started(cls, difficulty=4)
    label = "e-mail address" if cls is RetailService else "member number"
    assert f"I do not know the {label}" in env.step(f"Please tell me your {label}.")[0]


@pytest.mark.parametrize("cls", DESKS)
def test_who_is_asked_for_a_number_that_was_stated_or_is_not_known_says_so(cls):
    label = "order number" if cls is RetailService else "booking number"
    question = f"What is the {label}?"
    assert label in started(cls, difficulty=1).step(question)[0]
    assert f"I do not know the {label}, sorry." in started(cls, difficulty=3).step(question)[0]


def test_the_refund_is_the_price_minus_the_fee():
    for seed in range(200):
        env = started(RetailService, seed, difficulty=1)
        (job,) = env.case.jobs
        if job.writes and job.writes[0][0] == "return_item":
            order = env.shop.orders[job.writes[0][1]["order_id"]]
            (line,) = [line for line in order.lines if line.sku == job.writes[0][1]["sku"]]
            assert job.tells == (money(line.price - RETURN_FEE),)
            return
    raise AssertionError("no return in 200 seeds")


def test_the_cheapest_flight_that_arrives_in_time_is_the_one_to_book():
    for seed in range(200):
        env = started(TravelBooking, seed, difficulty=1)
        (job,) = env.case.jobs
        if job.writes and job.writes[0][0] == "book_flight":
            facts = {fact.slot.name: fact.value for fact in env.case.facts}
            ((_, search),) = job.lookups
            flights = env.airline.flights_of(search["origin"], search["destination"], search["day"])
            in_time = [f for f in flights if f.arrives <= facts["arrival"].zfill(5)]
            prices = [f.price(facts["fare"]) for f in in_time]
            booked = env.airline.flights[job.writes[0][1]["flight_id"]]
            assert booked.price(facts["fare"]) == min(prices)
            assert prices.count(min(prices)) == 1
            assert len(in_time) < len(flights)
            return
    raise AssertionError("no booking in 200 seeds")


@pytest.mark.parametrize("cls", DESKS)
def test_many_calls_in_one_turn_pay_no_more_than_the_right_ones(cls):
    env = started(cls)
    calls = [c for job in env.case.jobs for c in job.writes] * 4
    made = tuple(ToolCall(call_id=f"c{i}", name=n, arguments=a) for i, (n, a) in enumerate(calls[:8]))
    assert env.step(Message(role="assistant", content="", tool_calls=made).to_dict())[1] == 0.0


def test_difficulty_decides_how_many_wishes_there_are_and_how_many_are_forbidden():
    def counts(difficulty):
        found = set()
        granted: Any = [lambda: "granted"] * 5
        refused: Any = [lambda: "refused"] * 5
        for seed in range(50):
            jobs: Any = draw_jobs(granted, refused=refused, rnd=random.Random(seed), difficulty=difficulty)
            found.add((jobs.count("granted"), jobs.count("refused")))
        return found

    assert [counts(d) for d in (1, 2, 3, 5)] == [{(1, 0)}, {(1, 0), (1, 1)}, {(2, 0), (1, 1)}, {(2, 1)}]


@pytest.mark.parametrize(
    ("value", "text", "told"),
    [
        ("12.50", "You get 12.50 euros.", True),
        ("12.50", "You get €12.5.", True),
        ("1012.00", "You get 1,012.00 euros.", True),
        ("12.50", "You get 112.50 euros.", False),
        ("12.50", "You get 12 or 50.", False),
        ("7", "1 2 3 4 5 6 7", False),
        ("Kick-off", "I moved the kick-off.", True),
        ("Kick-off", "I moved the kick-offs.", False),
    ],
)
def test_a_value_is_told_when_it_stands_among_few_numbers(value, text, told):
    assert was_told(value, [text]) is told
