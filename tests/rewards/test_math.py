"""Equality of mathematical answers, against the real math-verify."""

import pytest

from agentenv.errors import DeadlineExceeded, UsageError
from agentenv.rewards.math import math_equal


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        (r"So the result is \boxed{\frac{1}{2}}.", "0.5", 1.0),
        ("The answer is 42.", "42", 1.0),
        ("1,000", "1000", 1.0),
        ("$x^2+2x+1$", "$(x+1)^2$", 1.0),
        ("41", "42", 0.0),
        ("I do not know.", "42", 0.0),
        ("", "42", 0.0),
        ("\x00\ud800", "42", 0.0),
    ],
)
def test_expressions_are_compared_by_value(answer, reference, score):
    assert math_equal(answer, reference, timeout_s=60) == score


def test_an_expression_that_never_ends_is_a_failure_and_the_next_call_works():
    with pytest.raises(DeadlineExceeded, match="no answer within"):
        math_equal("$9^{9^{9^{9^9}}}$", "3", timeout_s=2)
    assert math_equal("3", "3", timeout_s=60) == 1.0


def test_a_reference_without_an_expression_is_the_authors_mistake():
    with pytest.raises(UsageError, match="holds no mathematical expression"):
        math_equal("1", "", timeout_s=60)
