"""Arithmetic and logic: the questions have the answers that are stored, and no others where answers are unique."""

import itertools
import re
from datetime import date

import numpy as np
import pytest

from agentenv.answer_env import Question
from agentenv.envs.arithmetic.env import Arithmetic
from agentenv.envs.base_conversion.env import BaseConversion, in_base
from agentenv.envs.boolean_sat.env import BooleanSat
from agentenv.envs.countdown.env import Countdown
from agentenv.envs.date_math.env import DateMath, working_days
from agentenv.envs.letter_count.env import LetterCount
from agentenv.envs.linear_equation.env import LinearEquation
from agentenv.envs.sequence.env import Sequence
from agentenv.envs.sort_words.env import SortWords

LEVELS = [1, 2, 3, 4, 5]


def questions(env_class, difficulty, *, count=30):
    env = env_class(difficulty=difficulty)
    for seed in range(count):
        env.reset(seed=seed)
        yield env, env.question


def earned(env, text):
    return env.step(f"#### {text}")[1]


@pytest.mark.parametrize("difficulty", LEVELS)
def test_an_expression_has_as_many_operations_as_asked_and_python_agrees_with_its_value(difficulty):
    for _, question in questions(Arithmetic, difficulty):
        text = question.prompt.removeprefix("What is ").removesuffix("?")
        assert len(re.findall(r" [+*-] ", text)) == difficulty
        assert eval(text) == int(question.answer)  # of our own digits and signs


def test_numbers_are_compared_as_numbers():
    env = Arithmetic()
    env.reset(seed=0)
    env.question = Question(prompt="", answer="-7")
    assert earned(env, " -07 ") == 1.0


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_solution_solves_every_equation_and_the_system_is_regular(difficulty):
    for _, question in questions(LinearEquation, difficulty):
        values = dict(zip("xyz", map(int, question.answer.split(", ")), strict=False))
        equations = question.prompt.splitlines()[1:]
        assert len(equations) == len(values) == (1, 1, 2, 2, 3)[difficulty - 1]
        rows = []
        for equation in equations:
            left, right = re.sub(r"(\d)([xyz])", r"\1*\2", equation).split("=")
            assert eval(left, {}, dict(values)) == eval(right, {}, dict(values))
            at = [eval(f"({left})-({right})", {}, {n: int(n == m) for n in values}) for m in [*values, ""]]
            rows.append([value - at[-1] for value in at[:-1]])
        assert abs(np.linalg.det(np.array(rows, dtype=float))) > 0.5  # whole numbers, so 0 or at least 1


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_stored_expression_reaches_the_target_with_given_numbers(difficulty):
    for env, question in questions(Countdown, difficulty):
        assert len(env.numbers) == (3, 4, 4, 5, 6)[difficulty - 1]
        assert env.target not in env.numbers
        assert earned(env, question.answer) == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(7 - 3) * 25", 1.0),
        ("25*7-25*3", 0.0),  # 25 twice
        ("100", 0.0),  # the target is not given
        ("73 + 25 + 2", 0.0),  # digits glued together, and a number that is not given
        ("25 * 4", 0.0),
        ("7 * 25 - 3 * 25", 0.0),
        ("(7 - 3) * 25 = 100", 0.0),
        ("25 / (7 - 7)", 0.0),
        ("(7 - 3) ** 25", 0.0),
        ("__import__('os')", 0.0),
        ("(" * 90 + "7", 0.0),
        ("(3 + 7 / 7) * 25", 1.0),
        ("(3 + 7 // 7) * 25", 0.0),
        ("(7 - 3 * 7 ** (7 - 7)) * 25", 0.0),
    ],
)
def test_only_a_right_expression_of_given_numbers_counts(text, value):
    env = Countdown()
    env.reset(seed=0)
    env.numbers, env.target = (3, 7, 25, 7), 100
    assert earned(env, text) == value


@pytest.mark.parametrize("difficulty", LEVELS)
def test_both_forms_are_the_same_number(difficulty):
    for env, question in questions(BaseConversion, difficulty):
        found = re.fullmatch(r"Write the base-(\d+) number (\w+) in base (\d+)\.", question.prompt)
        assert found
        source, digits, base = int(found[1]), found[2], int(found[3])
        assert source != base == env.base
        assert int(digits, source) == int(question.answer, base)
        assert earned(env, question.answer.upper()) == 1.0


def test_bases_are_written_as_everybody_does():
    assert (in_base(0, 2), in_base(255, 16), in_base(35, 36), in_base(6, 3)) == ("0", "ff", "z", "20")


@pytest.mark.parametrize("difficulty", LEVELS)
def test_letters_are_counted_in_the_line(difficulty):
    for _, question in questions(LetterCount, difficulty):
        head, line = question.prompt.split(" occur in: ")
        letters = head.removeprefix("How often do the letters ").split(", ")
        assert len(set(letters)) == 3
        assert len(line.split()) == 4 * difficulty
        assert question.answer == ", ".join(str(sum(c == letter for c in line)) for letter in letters)


@pytest.mark.parametrize("difficulty", LEVELS)
def test_words_are_sorted_as_asked_and_none_is_lost(difficulty):
    for env, question in questions(SortWords, difficulty):
        given, answer = question.prompt.split(": ")[1].split(", "), question.answer.split(", ")
        assert sorted(given) == sorted(answer)
        keys = [word if difficulty < 4 else word[::-1][0] + word for word in answer]
        assert keys == sorted(keys)
        assert earned(env, question.answer.upper().replace(", ", ",")) == 1.0


@pytest.mark.parametrize("difficulty", LEVELS)
def test_exactly_one_assignment_satisfies_all_clauses(difficulty):
    num = (5, 6, 7, 8, 10)[difficulty - 1]
    for _, question in questions(BooleanSat, difficulty, count=8):
        clauses = question.prompt.splitlines()[1:]
        satisfying = [
            "".join(map(str, values))
            for values in itertools.product((0, 1), repeat=num)
            if all(eval(clause, {}, dict(zip("abcdefghij", values, strict=False))) for clause in clauses)
        ]
        assert satisfying == [question.answer]


@pytest.mark.parametrize("difficulty", [1, 2, 5])
def test_dates_lie_as_many_days_apart_as_asked(difficulty):
    for _, question in questions(DateMath, difficulty):
        found = re.fullmatch(r"Which date lies (\d+) days (after|before) (\w+), (\S+)\?", question.prompt)
        assert found
        start, end = date.fromisoformat(found[4]), date.fromisoformat(question.answer)
        assert (end - start).days == int(found[1]) * (1 if found[2] == "after" else -1)
        assert f"{start:%A}" == found[3]


def test_working_days_leave_out_saturdays_and_sundays():
    friday = date(2024, 3, 1)
    assert working_days(friday, 1) == date(2024, 3, 4)
    assert working_days(friday, 5) == date(2024, 3, 8)
    assert working_days(date(2024, 3, 4), -1) == friday
    assert working_days(date(2024, 3, 2), 1) == date(2024, 3, 4)  # from a Saturday


def test_a_date_in_another_form_earns_nothing():
    env = DateMath()
    env.reset(seed=0)
    env.question = Question(prompt="", answer="2024-03-01")
    assert earned(env, "1 March 2024") == 0.0


@pytest.mark.parametrize("difficulty", LEVELS)
def test_the_asked_numbers_follow_one_of_the_named_rules(difficulty):
    for _, question in questions(Sequence, difficulty, count=60):
        shown = [int(n) for n in question.prompt.splitlines()[0].removeprefix("Continue: ").split(", ")]
        x = [*shown, *map(int, question.answer.split(", "))]
        steps = [b - a for a, b in itertools.pairwise(x)]
        follows = [
            len(set(steps)) == 1,
            any(all(b == f * a + 1 for a, b in itertools.pairwise(x)) for f in range(2, 6)),
            len({b - a for a, b in itertools.pairwise(steps)}) == 1,
            any(
                all(c == f * b + g * a for a, b, c in zip(x, x[1:], x[2:], strict=False))
                for f in range(1, 4)
                for g in range(1, 4)
            ),
            all(len({b - a for a, b in itertools.pairwise(x[i::2])}) == 1 for i in (0, 1)),
        ]
        assert any(follows[:difficulty])
        assert len(shown) == 7
