"""Scheduler: the first time that suits, the smallest room that does, and absences that later requests respect."""

import pytest

from agentenv import tool_turn
from agentenv.envs.scheduler.env import Scheduler
from agentenv.envs.scheduler.week import Booking, Need, Room, Week, clock, slot_of
from agentenv.errors import ToolError


def week():
    rooms = {
        "Small": Room(name="Small", seats=2, has_projector=False),
        "Large": Room(name="Large", seats=8, has_projector=True),
    }
    return Week(rooms=rooms, people=("Ada", "Ben", "Cem"))


def busy(who, day, start, end, *, room=""):
    return Booking(
        title="x", room=room, day=day, start=slot_of(start), length=slot_of(end) - slot_of(start), people=who
    )


def test_times_are_half_hours():
    assert (slot_of("09:00"), slot_of("9:30"), clock(27)) == (18, 19, "13:30")
    for wrong in ("", "9", "09:15", "noon", "0x9:00", "123:00"):
        with pytest.raises(ToolError, match="is no time"):
            slot_of(wrong)


def test_the_first_time_is_when_everybody_is_free_in_the_smallest_free_room():
    plan = week()
    need = Need(people=("Ada", "Ben"), length=2)
    assert plan.first_time(need) == ("Monday", slot_of("09:00"), "Small")
    plan.add(busy(("Ada",), "Monday", "09:00", "10:00"))
    plan.add(busy(("Ben",), "Monday", "10:30", "11:00"))
    assert plan.first_time(need) == ("Monday", slot_of("11:00"), "Small")
    plan.add(busy((), "Monday", "11:00", "17:00", room="Small"))
    assert plan.first_time(need) == ("Monday", slot_of("11:00"), "Large")


def test_conditions_move_the_first_time():
    plan = week()
    assert plan.first_time(Need(people=("Ada",), length=1, needs_projector=True)) == ("Monday", 18, "Large")
    assert plan.first_time(Need(people=("Ada", "Ben", "Cem"), length=1)) == ("Monday", 18, "Large")
    assert plan.first_time(Need(people=("Ada",), length=1, days=("Friday",), from_slot=20)) == ("Friday", 20, "Small")
    assert plan.first_time(Need(people=("Ada",), length=4, from_slot=18, to_slot=21)) is None


def test_double_bookings_are_refused_and_change_nothing():
    plan = week()
    plan.book_room("A", "Large", "Monday", "09:00", 60, ["Ada"])
    before = plan.snapshot()
    for room, start, people, told in [
        ("Large", "09:30", ["Ben"], "room Large is taken"),
        ("Small", "09:30", ["Ada"], "Ada is busy"),
        ("Small", "16:30", ["Ben"], "between 09:00 and 17:00"),
        ("Small", "12:00", ["Benn"], 'Did you mean "Ben"'),
        ("Smal", "12:00", ["Ben"], 'Did you mean "Small"'),
    ]:
        with pytest.raises(ToolError, match=told):
            plan.book_room("B", room, "Monday", start, 60, people)
    with pytest.raises(ToolError, match="45 minutes"):
        plan.book_room("B", "Small", "Monday", "12:00", 45, ["Ben"])
    assert plan.snapshot() == before


def test_a_meeting_may_move_over_its_own_old_time():
    plan = week()
    plan.book_room("A", "Large", "Monday", "09:00", 60, ["Ada"])
    plan.move_booking("K101", "Monday", "09:30")
    assert plan.bookings["K101"].start == slot_of("09:30")


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_every_new_meeting_stands_at_the_first_time_and_respects_absences(difficulty):
    for seed in range(15):
        env = Scheduler(difficulty=difficulty)
        env.reset(seed=seed)
        away = [
            (e.text.split(" is away on ")[0], e.text.split(" is away on ")[1].split(".")[0])
            for e in env.errands
            if " is away on " in e.text
        ]
        for name, arguments in env.all_writes:
            people = arguments.get("people") or env.week.bookings[arguments["booking_id"]].people
            assert not any(who in people and arguments["day"] == day for who, day in away)
            assert not env.step(tool_turn(name, arguments).to_dict())[0].startswith("Error")
        assert env.step("Done.")[1] == 1.0


def test_a_later_time_or_a_larger_room_earns_nothing():
    env = Scheduler(difficulty=1)
    for seed in range(30):
        env.reset(seed=seed)
        ((name, arguments),) = env.all_writes
        others = [room for room in env.week.rooms if room != arguments["room"]]
        for room in others:
            if not env.step(tool_turn(name, {**arguments, "room": room}).to_dict())[0].startswith("Error"):
                assert env.step("Done.")[1] == 0.0
                return
    raise AssertionError("no other room was ever free")


def test_a_cancelled_meeting_costs_everything():
    env = Scheduler(difficulty=1)
    env.reset(seed=0)
    ((name, arguments),) = env.all_writes
    env.step(tool_turn(name, arguments).to_dict())
    env.step(tool_turn("cancel_booking", {"booking_id": "K101"}).to_dict())
    assert env.step("Done.")[1] == 0.0
