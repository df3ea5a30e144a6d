"""Calculator: problems, their steps, the splits, and which answers earn the reward."""

import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from agentenv import tool_turn
from agentenv.envs.calculator.answer import first_number, last_number, marked_answer
from agentenv.envs.calculator.env import Calculator
from agentenv.envs.calculator.stories import make_problem
from agentenv.errors import UsageError
from agentenv.splits import split_of
from agentenv.tools.calculator import evaluate


def answered(text, *, answer=1234):
    env = Calculator(difficulty=1)
    env.reset(seed=0)
    env.problem = replace(env.problem, answer=answer)
    return env.step(text)[1]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5])
def test_a_problem_takes_as_many_steps_as_asked_and_each_begins_with_the_last_result(num_steps):
    for seed in range(200):
        problem = make_problem(np.random.default_rng(seed), num_steps=num_steps)
        results = [evaluate(step) for step in problem.steps]

        assert len(problem.steps) == num_steps
        assert results[-1] == problem.answer > 0
        assert all(result.denominator == 1 for result in results)
        assert all(step.startswith(str(result)) for step, result in zip(problem.steps[1:], results, strict=False))
        assert problem.text.endswith("?")
        assert "{" not in problem.text


def test_problems_are_many():
    texts = {make_problem(np.random.default_rng(seed), num_steps=2).text for seed in range(500)}
    assert len(texts) > 490


def test_train_and_test_share_no_problem_however_often_they_are_drawn():
    drawn = {}
    for split in ("train", "test"):
        env = Calculator(difficulty=1, split=split)
        drawn[split] = {env.reset(seed=seed)[0] for seed in range(1000)}
    assert not drawn["train"] & drawn["test"]


def test_about_a_fifth_of_all_problems_is_test():
    splits = [split_of(make_problem(np.random.default_rng(s), num_steps=3).text) for s in range(2000)]
    assert 0.17 < splits.count("test") / 2000 < 0.23


def test_the_oracle_calls_the_calculator_once_per_turn_and_then_answers():
    env = Calculator(difficulty=3, max_turns=9)
    env.reset(seed=5)
    for step in env.problem.steps:
        turn = env.oracle()
        assert [call.arguments for call in turn.tool_calls] == [{"expression": step}]
        env.step(turn.to_dict())
    assert env.oracle().content == f"#### {env.problem.answer}"
    assert env.step(env.oracle().to_dict())[1:3] == (1.0, True)


def test_the_calculator_answers_and_refuses():
    env = Calculator()
    env.reset(seed=0)
    assert env.step(tool_turn("calculate", {"expression": "6*7"}).to_dict())[0] == "42"
    assert env.step(tool_turn("calculate", {"expression": "6/0"}).to_dict())[0].startswith("Error: division by zero")


@pytest.mark.parametrize(
    "text",
    [
        "#### 1234",
        "####1,234.00",
        "It is 5, no: #### $1,234 in total",
        "\\boxed{1234}",
        "Thus \\boxed{\\$1,234}.",
        "The answer is 1234.",
        "first 7, then 1,234",
        "#### 7\n#### 1234",
        "#### \\frac{2468}{2}",
        "\ud800 #### 1234",
    ],
)
def test_the_right_number_earns_the_reward_however_it_is_written(text):
    assert answered(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I do not know.",
        "#### 1235",
        "#### -1234",
        "1234 #### 7",
        "#### 1234\n#### 7",
        "1234 or 7",
        "\\boxed{1234} \\boxed{7}",
        "#### 12345",
        "#### 1234/0",
        "#### 1234/2",
        "#### 1234.001",
    ],
)
def test_any_other_answer_earns_nothing(text):
    assert answered(text) == 0.0


def test_an_episode_without_an_answer_earns_nothing():
    env = Calculator(difficulty=1, max_turns=2)
    env.reset(seed=0)
    env.step(env.oracle().to_dict())
    _, value, terminated, truncated, _ = env.step(tool_turn("calculate", {"expression": "1"}).to_dict())
    assert (value, terminated, truncated) == (0.0, False, True)


@pytest.mark.parametrize("difficulty", [0, 6])
def test_a_difficulty_outside_the_range_is_refused(difficulty):
    with pytest.raises(UsageError, match="allowed are 1 to 5 steps"):
        Calculator(difficulty=difficulty)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-5", Fraction(-5)),
        ("−5", Fraction(-5)),
        ("-$5", Fraction(-5)),
        ("$-5", Fraction(-5)),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("-\\frac{1}{2}", Fraction(-1, 2)),
        ("12%", Fraction(12)),
        ("3/0", None),
        ("none", None),
        ("9" * 399, Fraction(int("9" * 399))),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert first_number(text) == value


def test_a_minus_between_numbers_is_no_sign():
    assert last_number("10-5") == 5
    assert last_number("x = -5") == -5


def test_marks_come_before_boxes_and_the_last_one_counts():
    assert marked_answer("\\boxed{1} #### 2") == 2
    assert marked_answer("\\boxed{1} \\boxed{3}") == 3
    assert marked_answer("4") is None


@pytest.mark.parametrize("text", ["1," * 300_000, "-" * 500_000, "####" * 200_000, "\\boxed{" * 100_000, "9" * 500_000])
def test_reading_a_hostile_answer_takes_no_time(text):
    started = time.perf_counter()
    marked_answer(text)
    last_number(text)
    assert time.perf_counter() - started < 0.5
