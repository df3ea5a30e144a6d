"""Workplace: errands are solved by exact changes and mails, and anything besides costs everything."""

import random
from typing import Any

import pytest

from agentenv import tool_turn
from agentenv.envs.workplace.env import Workplace
from agentenv.envs.workplace.errands import OfficeBuilder
from agentenv.envs.workplace.office import ME
from agentenv.envs.worlds.errand import draw_errands

KINDS = [
    "answer_about_budget",
    "change_phone",
    "note_invoice",
    "plan_meeting",
    "hand_over_tickets",
    "close_room",
    "ticket_from_mail",
    "count_tickets",
]


class OneKind(Workplace):
    """Workplace with one errand of a given kind. Reward: 1.0 as there."""

    kind = ""

    def draw_world(self, rnd):
        builder = OfficeBuilder(rnd, split=self.split, size=4)
        return builder.office, (getattr(builder, self.kind)(),)


def started(kind, seed=0):
    env = OneKind()
    env.kind = kind
    env.reset(seed=seed)
    return env


def call(env, name, arguments):
    return env.step(tool_turn(name, arguments).to_dict())[0]


def do(env, calls):
    for name, arguments in calls:
        assert not call(env, name, arguments).startswith("Error")


@pytest.mark.parametrize("kind", KINDS)
def test_the_writes_alone_solve_an_errand_and_leaving_one_out_does_not(kind):
    env = started(kind)
    do(env, env.all_writes)
    assert env.step("Done.")[1:3] == (1.0, True)

    env = started(kind)
    do(env, env.all_writes[:-1])
    assert env.step("Done.")[1:3] == (0.0, True)


@pytest.mark.parametrize("kind", KINDS)
def test_something_touched_besides_costs_everything(kind):
    env = started(kind)
    do(env, env.all_writes)
    do(env, [("send_mail", {"to": ME, "subject": "Hi", "body": "I did it."})])
    assert env.step("Done.")[1] == 0.0

    env = started(kind)
    do(env, env.all_writes)
    ticket = next(iter(env.office.tickets))
    do(env, [("update_ticket", {"ticket_id": ticket, "status": "closed"})])
    do(env, [("update_ticket", {"ticket_id": ticket, "priority": "low"})])
    do(env, [("create_ticket", {"title": "x", "priority": "low", "assignee": ME})])
    assert env.step("Done.")[1] == 0.0


def test_a_mail_may_be_worded_freely_but_not_list_every_number():
    env = started("answer_about_budget")
    ((_, mail),) = env.all_writes
    budget = next(word for word in mail["body"].split() if word.isdigit())
    do(env, [("send_mail", {**mail, "body": f"Hello! It was approved; we may spend {budget} euros on it."})])
    assert env.step("Done.")[1] == 1.0

    env = started("answer_about_budget")
    do(env, [("send_mail", {**mail, "body": f"It is one of 1, 2, 3, {budget}."})])
    assert env.step("Done.")[1] == 0.0


def test_the_superseded_budget_is_wrong():
    env = started("answer_about_budget")
    draft = next(d.text for d in env.office.documents.values() if "draft" in d.title)
    wrong = next(word for word in draft.split() if word.isdigit())
    ((_, mail),) = env.all_writes
    do(env, [("send_mail", {**mail, "body": f"The budget is {wrong} euros."})])
    assert env.step("Done.")[1] == 0.0


def test_a_meeting_is_planned_in_the_first_hour_that_is_free_for_all_three():
    for seed in range(30):
        env = started("plan_meeting", seed)
        name, meeting = env.all_writes[0]
        if name != "create_event":
            continue
        people = [*meeting["attendees"], ME]
        free = [
            hour
            for hour in range(9, 17)
            if all(env.office.is_free(who, meeting["day"], hour, hour + 1) for who in people)
        ]
        assert meeting["start"] == free[0]
        assert len(free) < 8  # somebody is busy, else nothing had to be found


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("read_mail", {"mail_id": "M1"}),
        ("send_mail", {"to": "nobody@x.example", "subject": "", "body": ""}),
        ("create_event", {"title": "x", "day": "Monday", "start": 12, "end": 12, "attendees": []}),
        ("create_event", {"title": "x", "day": "Sunday", "start": 12, "end": 13, "attendees": []}),
        ("create_event", {"title": "x", "day": "Monday", "start": 3, "end": 13, "attendees": []}),
        ("cancel_event", {"event_id": "E9999"}),
        ("find_contacts", {"text": ""}),
        ("search_documents", {"text": "*"}),
        ("update_ticket", {"ticket_id": "T1"}),
        ("append_to_document", {"document_id": "D1", "line": "x"}),
    ],
)
def test_a_bad_call_is_refused_and_changes_nothing(name, arguments):
    env = started("change_phone")
    before = env.office.snapshot()
    assert call(env, name, arguments).startswith("Error: ")
    assert env.office.snapshot() == before


def test_where_a_row_stands_in_a_list_says_nothing_about_the_errand():
    places = set()
    for seed in range(30):
        env = started("change_phone", seed)
        mail_id = env.errands[0].reads[1][1]["mail_id"]
        places.add(sorted(env.office.inbox).index(mail_id))
    assert len(places) > 5


def test_difficulty_decides_how_many_errands_there_are():
    makers: Any = [lambda index=index: index for index in range(8)]

    def drawn(difficulty):
        return [draw_errands(makers, easy=3, rnd=random.Random(s), difficulty=difficulty) for s in range(40)]

    assert {len(errands) for d in (1, 2) for errands in drawn(d)} == {1}
    assert {len(errands) for errands in drawn(3)} == {2}
    assert {len(errands) for errands in drawn(5)} == {3}
    assert {index for errands in drawn(1) for index in errands} == {0, 1, 2}
    assert {index for errands in drawn(2) for index in errands} == set(range(8))
