"""The scripted user: wants in order, facts on request, honesty, patience, and the same words for the same seed."""

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.errors import UsageError
from agentenv.users import Fact, Persona, ScriptedUser, Slot, UserBrief, Want, draw_persona

NAME = Slot(name="name", label="name", asked_by=("name",))
CITY = Slot(name="city", label="city", asked_by=("city", "where"))
PHONE = Slot(name="phone", label="phone number", asked_by=("phone",))
FACTS = (
    Fact(slot=NAME, value="Ada", sentence="My name is Ada."),
    Fact(slot=CITY, value="Oslo"),
    Fact(slot=PHONE, value=""),
)


TAXI = (Want(text="I want a taxi."),)


def user(*, wants=TAXI, seed=0, critic=None, max_turns=30, **persona):
    brief = UserBrief(wants=wants, facts=FACTS, persona=Persona(**persona), max_turns=max_turns)
    return ScriptedUser(brief, rng=np.random.default_rng(seed), critic=critic)


def test_a_fact_is_told_when_asked_for_and_not_before():
    someone = user()
    assert "Ada" not in someone.begin().text
    assert someone.revealed == set()
    assert someone.reply("What is your name?").text == "My name is Ada."
    assert someone.revealed == {"name"}


def test_what_it_does_not_know_is_said_honestly():
    assert user().reply("Your phone?").text == "I do not know the phone number, sorry."


def test_a_terse_user_gives_the_bare_answer_and_a_chatty_one_adds_words():
    assert user(verbosity="terse").reply("Which city?").text == "city: Oslo."
    chatty = user(verbosity="chatty").reply("Which city?").text
    assert chatty.startswith("The city is Oslo. ")
    assert len(chatty) > len("The city is Oslo. ")


def test_a_user_who_answers_one_question_at_a_time_answers_the_next_when_asked_again():
    someone = user(facts_per_turn=1)
    assert someone.reply("What are your name and your city?").text == "My name is Ada."
    assert someone.reply("What are your name and your city?").text == "The city is Oslo."
    assert someone.patience == Persona().patience  # both turns brought something new


def test_asking_again_for_what_was_told_costs_patience_until_the_user_leaves():
    someone = user(patience=2)
    someone.reply("Your name?")
    again = someone.reply("Your name?")
    assert (again.text, again.end) == ("My name is Ada.", None)
    assert someone.reply("Your name?").end == "gave_up"
    assert someone.counts["repeated"] == 2


def test_wants_are_stated_one_after_the_other_and_then_the_user_is_satisfied():
    someone = user(wants=(Want(text="A taxi."), Want(text="A hotel.")))
    assert "A taxi." in someone.begin().text
    second = someone.reply("The taxi is booked.")
    assert "A hotel." in second.text
    assert second.end is None
    assert someone.reply("The hotel is booked. Anything else?").end == "satisfied"


def test_a_refusal_is_argued_with_once():
    someone = user(wants=(Want(text="A free taxi.", insist="But I am poor!"),))
    assert someone.reply("I am sorry, I cannot do that.").text == "But I am poor!"
    assert someone.reply("I am sorry, I cannot do that.").end == "satisfied"
    assert someone.counts["insisted"] == 1


def test_a_promise_to_look_is_not_taken_for_a_result():
    someone = user()
    assert someone.reply("Let me check that for you.").end is None
    assert someone.reply("It is booked.").end == "satisfied"


def test_a_yes_is_given_when_consent_is_asked_for():
    assert user().reply("Shall I go ahead?").text.startswith("Yes")


def test_feedback_is_given_until_the_critic_is_content():
    someone = user(critic=lambda text: "" if "blue" in text else "Not that colour.")
    assert someone.reply("I sent a red one.").text == "Not that colour."
    assert someone.reply("I sent a blue one.").end == "satisfied"
    assert someone.counts["feedback"] == 1


@pytest.mark.parametrize("text", ["", "   ", "What is the meaning of life?"])
def test_what_is_not_understood_costs_patience(text):
    someone = user(patience=2)
    assert someone.reply(text).end is None
    assert someone.reply(text).end == "gave_up"
    assert someone.counts["puzzled"] == 2


@given(st.lists(st.text(max_size=200), max_size=8))
def test_whatever_is_said_the_user_answers_in_words_and_the_conversation_ends(texts):
    someone = user(patience=5, max_turns=6)
    someone.begin()
    ends = []
    for text in [*texts, *["?"] * 6]:
        turn = someone.reply(text)
        assert turn.text
        ends.append(turn.end)
        if turn.end is not None:
            break
    assert ends[-1] in ("satisfied", "gave_up", "turn_cap")


def test_the_cap_on_turns_ends_every_conversation():
    someone = user(max_turns=3, patience=100)
    someone.begin()
    assert someone.reply("Shall I go ahead?").end is None
    assert someone.reply("Shall I go ahead?").end == "turn_cap"


def test_the_same_seed_gives_the_same_words_and_seeds_differ():
    def said(seed):
        someone = user(seed=seed, verbosity="chatty", patience=9)
        return [someone.begin().text, *(someone.reply(text).text for text in ("Name?", "?", "Go ahead?"))]

    assert said(3) == said(3)
    assert len({tuple(said(seed)) for seed in range(10)}) > 3


def test_personas_get_harder():
    easy = [draw_persona(np.random.default_rng(seed), difficulty=1) for seed in range(50)]
    hard = [draw_persona(np.random.default_rng(seed), difficulty=5) for seed in range(50)]
    assert min(p.patience for p in easy) > min(p.patience for p in hard) >= 3
    assert {p.facts_per_turn for p in easy} == {8}
    assert {p.facts_per_turn for p in hard} == {1, 2, 3}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: UserBrief(wants=()), "wants nothing"),
        (lambda: UserBrief(wants=(Want(text="x"),), facts=(FACTS[0], FACTS[0])), "several facts for name"),
        (lambda: UserBrief(wants=(Want(text="x"),), max_turns=1), "max_turns is 1"),
        (lambda: Persona(patience=0), "patience is 0"),
        (lambda: Persona(verbosity=cast(Any, "loud")), "terse, plain, chatty"),
        (lambda: Slot(name="x", label="x", asked_by=()), "has no phrase"),
    ],
)
def test_a_brief_that_cannot_work_is_refused(make, told):
    with pytest.raises(UsageError, match=told):
        make()
