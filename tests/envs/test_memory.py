"""Memory: the question has one answer, it lies where it should, and only the answer to the question counts."""

import re

import pytest

from agentenv.envs.key_value_stream.env import KeyValueStream
from agentenv.envs.long_needle.env import LongNeedle
from agentenv.errors import UsageError


@pytest.mark.parametrize(("difficulty", "length"), [(1, 10), (2, 25), (3, 60), (4, 150), (5, 400)])
def test_the_newest_values_are_asked_after_all_settings_were_told(difficulty, length):
    env = KeyValueStream(difficulty=difficulty)
    told, turns = [], 0
    observation, _ = env.reset(seed=3)
    while "newest values of" not in observation:
        told += re.findall(r"(\w+) = (\d+)", observation)
        observation, _, terminated, truncated, _ = env.step("ok")
        turns += 1
        assert not terminated
        assert not truncated
    assert len(told) == length
    assert turns == -(-length // 5)
    keys = observation.splitlines()[0].removeprefix("What are the newest values of ").removesuffix("?").split(", ")
    assert env.step("#### " + ", ".join(dict(told)[key] for key in keys))[1:3] == (1.0, True)


def test_an_answer_before_the_question_earns_nothing():
    env = KeyValueStream(num_updates=5)
    env.reset(seed=0)
    assert env.step(f"#### {env.question.answer}")[1:3] == (0.0, False)
    assert env.step("#### 1, 2")[1:3] == (0.0, True)


def test_some_keys_change_and_an_old_value_is_wrong():
    env = KeyValueStream(num_updates=60)
    env.reset(seed=0)
    assert len(env.updates) == 60
    assert len(dict(env.updates)) == 15
    oldest = dict(reversed(env.updates))
    changed = [key for key, value in dict(env.updates).items() if oldest[key] != value]
    assert len(changed) > 5


@pytest.mark.parametrize(
    ("difficulty", "num_sentences", "length"), [(1, None, 40), (2, None, 100), (5, None, 3000), (5, 24, 24)]
)
def test_a_reader_who_follows_the_trail_finds_the_code(difficulty, num_sentences, length):
    env = LongNeedle(difficulty=difficulty, num_sentences=num_sentences)
    for seed in range(5):
        text, _ = env.reset(seed=seed)
        story, _, asked = text.partition("\n\n")
        assert story.count(".") == length
        given = dict(re.findall(r"(\w+) gave the green key to (\w+)\.", story))
        codes = dict(re.findall(r"(\w+) wrote down the code (\d+)\.", story))
        assert (len(given), len(codes)) == (difficulty, 3)
        holder = asked.partition(" had the green key first")[0]
        while holder in given:
            holder = given[holder]
        assert env.step(f"#### {codes[holder]}")[1] == 1.0


@pytest.mark.parametrize(("env_class", "option"), [(KeyValueStream, "num_updates"), (LongNeedle, "num_sentences")])
def test_a_length_that_is_too_short_is_refused(env_class, option):
    with pytest.raises(UsageError, match=f"{option} is 4; at least"):
        env_class(**{option: 4})
