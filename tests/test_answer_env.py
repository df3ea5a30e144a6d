"""AnswerEnv: where the answer stands, what counts as one, and that listing candidates earns nothing."""

import time

import numpy as np
import pytest

from agentenv import check_env
from agentenv.answer_env import AnswerEnv, Question, listed, marked, read_numbers
from agentenv.errors import UsageError


class Doubles(AnswerEnv):
    """Double a number. Reward: 1.0 if the answer is exact, else 0.0."""

    answer_form = "the number"

    def draw(self, rng):
        number = int(rng.integers(10_000))
        return Question(prompt=f"Double {number}.", answer=str(2 * number), content=str(number))


def asked(**options):
    env = Doubles(**options)
    env.reset(seed=0)
    env.question = Question(prompt="Double 21.", answer="42")
    return env


def test_it_keeps_every_promise():
    check_env(Doubles, num_seeds=50)


def test_the_prompt_ends_with_the_form_of_the_answer():
    observation, _ = Doubles().reset(seed=0)
    assert observation.splitlines()[1] == "End with #### and the number."


@pytest.mark.parametrize(
    ("text", "earned"),
    [
        ("#### 42", 1.0),
        ("It is twice 21.\n####42  \nThat is all.", 1.0),
        ("#### 41\n#### 42", 1.0),
        ("42", 0.0),
        ("#### 42\n#### 41", 0.0),
        ("#### 41 or 42", 0.0),
        ("#### 42.", 0.0),
        ("####\n42", 0.0),
        ("#### " + "4" * 5000, 0.0),
        ("", 0.0),
    ],
)
def test_what_stands_after_the_last_mark_is_the_answer(text, earned):
    assert asked().step(text)[1:3] == (earned, True)


def test_no_cheat_is_paid_and_some_hold_the_right_answer():
    env = asked()
    cheats = env.cheats(np.random.default_rng(0))
    assert sum("42" in cheat for cheat in cheats) >= 4
    for cheat in cheats:
        assert asked().step(cheat)[1] == 0.0


def test_the_fingerprint_is_the_content_or_else_the_prompt():
    assert Question(prompt="p", answer="a", content="c").identity == "c"
    assert Question(prompt="p", answer="a").identity == "p"


@pytest.mark.parametrize("difficulty", [0, 6])
def test_a_difficulty_outside_the_range_is_refused(difficulty):
    with pytest.raises(UsageError, match="allowed are 1 to 5"):
        Doubles(difficulty=difficulty)


def test_an_environment_without_questions_says_so():
    with pytest.raises(Exception, match="AnswerEnv draws no questions; write draw"):
        AnswerEnv().reset(seed=0)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("7", [7]),
        (" -7 , 08,9 ", [-7, 8, 9]),
        ("7 8", None),
        ("7,", None),
        ("", None),
        ("--7", None),
        ("7.0", None),
        ("٧", None),
        ("9" * 31, None),
    ],
)
def test_numbers_are_read_exactly(text, numbers):
    assert read_numbers(text) == numbers


def test_marks_and_lists():
    assert marked("a #### b\nc") == "b"
    assert marked("no mark") is None
    assert listed([1, "b"]) == "1, b"


@pytest.mark.parametrize("text", ["1," * 500_000, "-" * 500_000, "#" * 500_000, "1 " * 500_000])
def test_reading_a_hostile_answer_takes_no_time(text):
    started = time.process_time()
    read_numbers(text)
    marked(text)
    assert time.process_time() - started < 0.5
