"""Answers after the mark: what counts as the same, and what is no answer."""

import pytest

from agentenv.envs.question import is_same_answer, marked_text


@pytest.mark.parametrize(
    ("given", "truth"),
    [
        ("tea", "Tea"),
        ('"tea".', "tea"),
        ("1,200", "1200"),
        ("12.50", "12.5"),
        ("-3", "-3"),
        ("None", "None"),
        ("a  b", "a b"),
    ],
)
def test_the_same_answer_may_be_written_in_several_ways(given, truth):
    assert is_same_answer(given, truth)


@pytest.mark.parametrize("given", ["", "12 13", "12, 13", "*", "12 or 13", "1 2", "١٢", "12" + " " * 500 + "12"])
def test_anything_beside_the_answer_makes_it_wrong(given):
    assert not is_same_answer(given, "12")


def test_the_last_mark_counts_and_only_its_line():
    assert marked_text("#### 1\n#### 2 \nso it is") == "2"
    assert marked_text("no mark") == ""
