"""Wordle: the word list, the marks, refusals, and no way around the limit."""

import time

import pytest

from agentenv import Message, ToolCall, tool_turn
from agentenv.envs.wordle.env import Wordle
from agentenv.envs.wordle.words import all_words, consistent, marks, secrets
from agentenv.errors import UsageError


def started(secret, **options):
    env = Wordle(**options)
    env.reset(seed=0)
    env.secret = secret
    return env


def guess(env, word):
    return env.step(tool_turn("guess", {"word": word}).to_dict())


def letters(guess, secret):
    return "".join({"right": "R", "misplaced": "m", "absent": "-"}[mark] for mark in marks(guess, secret))


def test_the_list_holds_over_600_plain_five_letter_words_once_each():
    words = all_words()
    assert len(words) >= 600
    assert list(words) == sorted(set(words))
    assert all(len(word) == 5 and word.isascii() and word.isalpha() and word.islower() for word in words)


def test_the_secrets_of_the_splits_share_no_word_and_cover_the_list():
    assert not set(secrets("train")) & set(secrets("test"))
    assert set(secrets("train")) | set(secrets("test")) == set(all_words())
    assert 0.18 < len(secrets("test")) / len(all_words()) < 0.22
    for split in ("train", "test"):
        env = Wordle(split=split)
        for seed in range(100):
            env.reset(seed=seed)
            assert env.secret in secrets(split)


@pytest.mark.parametrize(
    ("guess", "secret", "expected"),
    [
        ("crane", "crane", "RRRRR"),
        ("crane", "moist", "-----"),
        ("crane", "ocean", "m-mmm"),  # c, a, n and e are all elsewhere
        ("trace", "crane", "-RRmR"),
        ("eerie", "there", "m-m-R"),  # there has two e: one in place, so only one more is misplaced
        ("allay", "hello", "-mR--"),  # both l of hello are accounted for by two l of the guess
        ("steel", "elect", "-mRmm"),  # one e in place, the other elsewhere
    ],
)
def test_marks_follow_the_rules_of_repeated_letters(guess, secret, expected):
    assert letters(guess, secret) == expected


def test_consistent_words_are_those_that_would_have_given_the_same_marks():
    words = ("crane", "crate", "trace", "moist")
    assert consistent(words, "crane", marks("crane", "crate")) == ("crate",)
    assert consistent(words, "moist", marks("moist", "crane")) == ("crane",)


def test_the_hint_names_every_letter_and_the_guesses_left():
    env = started("crane")
    assert guess(env, "ocean")[0] == (
        "ocean: o absent, c misplaced, e misplaced, a misplaced, n misplaced. 5 guesses left."
    )
    assert guess(env, "crane")[:3] == ("crane: correct", 1.0, True)


def test_the_last_wrong_guess_ends_the_episode_with_nothing():
    env = started("crane", max_guesses=2)
    assert guess(env, "ocean")[1:3] == (0.0, False)
    assert guess(env, "about")[1:3] == (0.0, True)


def test_case_and_space_around_a_word_do_not_matter():
    assert guess(started("crane"), "  CRANE\n")[1] == 1.0


def test_unknown_words_use_no_guess_but_are_counted():
    env = started("crane", max_refused=3)
    observation, value, terminated, _, _ = guess(env, "crane!")
    assert observation == (
        "Error: a guess has 5 letters, this one has 6. No guess was used; 2 more such errors are allowed."
    )
    assert (value, terminated, len(env.history)) == (0.0, False, 0)
    assert guess(env, "zzzzz")[0].startswith('Error: "zzzzz" is not a known word. No guess was used; 1 more')
    assert guess(env, "漢字漢字漢")[1:3] == (0.0, True)


def test_many_guesses_in_one_turn_do_not_pass_the_limit():
    env = started("crane", max_guesses=1)
    words = ("about", "crane")
    calls = tuple(ToolCall(call_id=word, name="guess", arguments={"word": word}) for word in words)
    _, value, terminated, _, _ = env.step(Message(role="assistant", content="", tool_calls=calls).to_dict())
    assert (value, terminated) == (0.0, True)


def test_saying_the_word_without_the_tool_earns_nothing():
    assert started("crane").step("crane")[1] == 0.0


def test_the_secret_is_in_no_prompt_schema_or_info():
    for seed in range(20):
        env = Wordle()
        observation, info = env.reset(seed=seed)
        assert env.secret not in f"{observation} {info} {env.tool_specs}"


def test_the_oracle_answers_within_five_milliseconds_once_warm():
    env = Wordle()
    durations = []
    for seed in range(30):
        env.reset(seed=seed)
        is_over = False
        while not is_over:
            begun = time.perf_counter()
            turn = env.oracle()
            durations.append(time.perf_counter() - begun)
            is_over = env.step(turn.to_dict())[2]
    assert sorted(durations)[len(durations) // 2] < 0.005


@pytest.mark.parametrize("options", [{"max_guesses": 0}, {"max_refused": 0}])
def test_limits_below_one_are_refused(options):
    with pytest.raises(UsageError, match="both must be at least 1"):
        Wordle(**options)
