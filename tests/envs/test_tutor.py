"""Tutor: misconceptions answer as they should, worked examples cure them, and the quiz decides."""

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.envs.tutor.env import Tutor
from agentenv.envs.tutor.learner import Learner, mentions
from agentenv.envs.tutor.skills import SKILLS, is_same_value

BY_NAME = {skill.name: skill for skill in SKILLS}


def learner(skill, misconception, *, needed=2):
    return Learner({skill: misconception}, examples_needed=needed, rnd=random.Random(0))


def study(who, text):
    return [who.study(example) for example in mentions(text)]


@pytest.mark.parametrize(
    ("skill", "numbers", "misconception", "right", "wrong"),
    [
        ("subtraction", (52, 17), "takes_smaller_from_larger_digit", "35", "45"),
        ("subtraction", (52, 17), "forgets_to_lower_the_tens", "35", "45"),
        ("addition", (58, 27), "forgets_the_carry", "85", "75"),
        ("adding fractions", (1, 2, 1, 3), "adds_tops_and_bottoms", "5/6", "2/5"),
        ("multiplying fractions", (1, 2, 3, 4), "multiplies_crosswise", "3/8", "2/3"),
        ("order of operations", (2, 3, 4), "goes_from_left_to_right", "14", "20"),
        ("brackets", (4, 2, 5), "multiplies_the_first_only", "28", "13"),
        ("powers", (2, 3), "multiplies_base_and_exponent", "8", "6"),
        ("percentages", (20, 60), "takes_the_percent_away", "12", "40"),
    ],
)
def test_a_misconception_gives_its_own_answer(skill, numbers, misconception, right, wrong):
    assert BY_NAME[skill].answer(numbers) == right
    assert BY_NAME[skill].answer(numbers, misconception) == wrong


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What is 52 - 17?", [("subtraction", (52, 17), "")]),
        ("52−17=35.", [("subtraction", (52, 17), "35")]),
        ("- 52 - 17 = 35\n- 40 - 3 = 37", [("subtraction", (52, 17), "35"), ("subtraction", (40, 3), "37")]),
        ("1. What is 3 + 4?", [("addition", (3, 4), "")]),
        ("1/2 + 1/3 = 5/6. Good.", [("adding fractions", (1, 2, 1, 3), "5/6")]),
        ("2 + 3 * 4 is 14", [("order of operations", (2, 3, 4), "14")]),
        ("4*(2+5) equals 28", [("brackets", (4, 2, 5), "28")]),
        ("3/4 × 2/5?", [("multiplying fractions", (3, 4, 2, 5), "")]),
        ("2 + 3 + 4", []),
        ("1.5 + 2 = 3", []),
        ("no problem", []),
    ],
)
def test_problems_are_found_in_words(text, found):
    assert [(item.skill.name, item.numbers, item.value) for item in mentions(text)] == found


def test_different_right_and_surprising_examples_cure_a_misconception():
    who = learner("subtraction", "takes_smaller_from_larger_digit")
    assert "I would have said that 52 - 17 is 45" in study(who, "52 - 17 = 35")[0]
    study(who, "52 - 17 = 35")  # the same one again
    assert who.misconceptions
    assert "now I see" in study(who, "61 - 25 = 36")[0]
    assert not who.misconceptions


def test_an_example_that_does_not_surprise_teaches_nothing():
    who = learner("subtraction", "takes_smaller_from_larger_digit", needed=1)
    assert "what I would have said" in study(who, "59 - 17 = 42")[0]
    assert who.misconceptions


def test_a_wrong_example_undoes_progress_and_spoils_what_was_mastered():
    who = learner("subtraction", "takes_smaller_from_larger_digit")
    study(who, "52 - 17 = 35. 52 - 17 = 99. 61 - 25 = 36")
    assert "subtraction" in who.misconceptions
    assert "confused" in study(who, "2^3 = 9")[0]
    assert "powers" in who.misconceptions


def test_a_quiz_too_early_fails_and_a_cured_learner_passes():
    env = Tutor(difficulty=1)
    env.reset(seed=0)
    assert env.step("Now the quiz!")[1:3] == (0.0, True)

    env.reset(seed=0)
    env.step(env.oracle())
    env.step(env.oracle())
    assert env.step("Now the quiz!")[1:3] == (1.0, True)


def test_more_than_two_examples_at_once_are_too_many():
    env = Tutor(difficulty=3)
    env.reset(seed=0)
    assert "too much at once" in env.step("2 + 3 * 4 = 14. 3 + 3 * 4 = 15. 4 + 3 * 4 = 16")[0]


def test_confusing_the_learner_about_another_kind_fails_the_quiz():
    env = Tutor(difficulty=1)
    env.reset(seed=0)
    other = next(skill for skill in SKILLS if skill.name not in env.at_first)
    env.step(env.oracle())
    env.step(env.oracle())
    env.step(f"{other.written(other.telling(random.Random(0), next(iter(other.wrong))))} = 77777")
    assert env.step("quiz")[1:3] == (0.0, True)


def test_every_misconception_is_told_from_the_truth_by_many_problems():
    for skill in SKILLS:
        for name in skill.wrong:
            drawn = [skill.draw(random.Random(seed)) for seed in range(200)]
            differs = sum(skill.answer(numbers) != skill.answer(numbers, name) for numbers in drawn)
            assert differs > 40, (skill.name, name)


@given(st.text(alphabet="0123456789+-*/^%() =.isof\n", max_size=80))
def test_whatever_is_written_the_learner_answers_in_words(text):
    env = Tutor(difficulty=5)
    env.reset(seed=0)
    observation, value, *_ = env.step(text)
    assert observation
    assert value == 0.0


def test_values_are_compared_as_numbers():
    assert is_same_value("6/20", "3/10")
    assert not is_same_value("6/20", str(Fraction(1, 3)))
    assert not is_same_value("1/0", "1")
