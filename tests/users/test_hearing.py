"""Hearing: which slots a text asks for, however it is phrased, and what else it does."""

import time

import pytest

from agentenv.users import Slot, asked_slots, hear

NAME = Slot(name="name", label="name", asked_by=("name",))
EMAIL = Slot(name="email", label="e-mail", asked_by=("email", "e-mail", "mail address"))
ZIP = Slot(name="zip", label="ZIP code", asked_by=("zip", "postal code", "postcode"))
ORDER = Slot(name="order", label="order number", asked_by=("order number", "order id", "which order"))
PRODUCT = Slot(name="product", label="product", asked_by=("product name",))
SLOTS = (NAME, EMAIL, ZIP, ORDER)


def asked(text, slots=SLOTS):
    return [slot.name for slot in asked_slots(text, slots)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("What is your name?", ["name"]),
        ("what's your e-mail", ["email"]),
        ("Could you please give me your e-mail?", ["email"]),
        ("May I have your EMAIL, please?", ["email"]),
        ("Please provide your name and postal codes so that I can look it up.", ["name", "zip"]),
        ("I'll need your order ID.", ["order"]),
        ("What's the number of your order?", ["order"]),
        ("Which order is it about", ["order"]),
        ("Tell me your ZIP", ["zip"]),
        ("I need the following:\n- full name\n- Postcode", ["name", "zip"]),
        ("To proceed, please share these:\n1. Your full name\n2) your postcode", ["name", "zip"]),
        ("Thanks! And your Postcode?", ["zip"]),
        ("Kindly confirm your email address.", ["email"]),
        ("I would need to know your name first.", ["name"]),
        ("Náme?", ["name"]),
        ("ZIP? And order number?", ["zip", "order"]),
    ],
)
def test_a_question_for_a_slot_is_understood_however_it_is_phrased(text, names):
    assert asked(text) == names


@pytest.mark.parametrize("word", ["emial", "emaill", "emal", "postcoed", "postcodde"])
def test_one_typing_error_in_a_longer_word_does_not_matter(word):
    assert asked(f"What is your {word}?") in (["email"], ["zip"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Your email is x@y.example.",
        "I don't need your email.",
        "There is no need for your name.",
        "You do not need to give me your name, okay?",
        "I am sorry, I cannot change the order number.",
        "I found your name and your order.",
        "What is the weather?",
        "1. First\n2. Second",
    ],
)
def test_what_asks_for_no_slot_is_no_question_for_one(text):
    assert asked(text) == []


def test_the_longer_phrase_wins_where_two_slots_share_a_word():
    assert asked("What is the product name?", (NAME, PRODUCT)) == ["product"]
    assert asked("What is the product name, and what is your name?", (NAME, PRODUCT)) == ["product", "name"]


def test_words_of_a_phrase_must_stand_close_together():
    assert asked("In which country did you see the red and green order?") == []


def test_refusals_closings_and_waits_are_told_apart():
    assert hear("I am sorry, but our policy does not allow that.").is_refusal
    assert hear("That won't be possible, I can't do that.").is_refusal
    assert hear("Is there anything else I can help you with?").is_closing
    assert hear("Have a nice day!").is_closing
    assert hear("Let me check that for you.").is_waiting
    assert hear("Shall I go ahead?").asks_consent
    done = hear("I have cancelled the order.")
    assert (done.requests, done.is_refusal, done.is_closing, done.is_waiting, done.asks_consent) == (
        (),
        False,
        False,
        False,
        False,
    )


@pytest.mark.parametrize("text", ["name? " * 100_000, "what " * 100_000, "- " * 100_000, "\n" * 500_000, "?" * 500_000])
def test_hearing_a_hostile_text_takes_no_time(text):
    started = time.process_time()
    asked(text)
    assert time.process_time() - started < 0.5
