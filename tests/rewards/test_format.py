"""Forms: JSON schemas, sections, patterns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.errors import UsageError
from agentenv.rewards.format import has_sections, json_in, matches_pattern, matches_schema

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"n": 3}', 1.0),
        ('Here:\n```json\n{"n": 3}\n```\nDone.', 1.0),
        ('{"n": 3.5}', 0.0),
        ('{"n": 3, "m": 1}', 0.0),
        ('{"n": 1, "n": 2}', 0.0),
        ('{"n": NaN}', 0.0),
        ("{'n': 3}", 0.0),
        ('The answer is {"n": 3}', 0.0),
        ('```\n{"n": 1}\n```\n```\n{"n": 2}\n```', 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
        ("[" * 900 + "]" * 900, 0.0),
        ('{"n": ' + "9" * 5_000 + "}", 0.0),
        ("x" * 2_000_000, 0.0),
    ],
)
def test_json_complies_with_its_schema_or_earns_nothing(text, score):
    assert matches_schema(text, SCHEMA) == score


def test_a_wrong_schema_is_the_authors_mistake():
    with pytest.raises(UsageError, match="the JSON schema is wrong"):
        matches_schema("{}", {"type": "thing"})


@given(st.text())
def test_any_text_is_json_or_a_value_error(text):
    try:
        json_in(text)
    except ValueError:
        return


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think>\n<answer>b</answer>\n", 1.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<think>a</think>so<answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> and <answer>c</answer>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("</think>a<think><answer>b</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_sections_stand_in_order_once_and_alone(text, score):
    assert has_sections(text, ["think", "answer"]) == score


def test_a_pattern_matches_the_whole_text():
    assert matches_pattern("ab12", r"[a-z]+\d+") == 1.0
    assert matches_pattern("ab12!", r"[a-z]+\d+") == 0.0
    assert matches_pattern("1" * 11, r"\d+", max_chars=10) == 0.0
    with pytest.raises(UsageError, match="section names"):
        has_sections("", ["<x>"])
