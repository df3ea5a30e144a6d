"""Instruction following: rules are checked one by one, JSON is compared strictly, and no pattern can hang."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv.envs.instruct_follow.env import InstructFollow
from agentenv.envs.instruct_follow.plan import KINDS, Plan, draw_plan
from agentenv.envs.json_extract.env import JsonExtract
from agentenv.envs.json_extract.strict_json import is_same, parse, without_fence
from agentenv.envs.regex_golf.env import RegexGolf
from agentenv.envs.regex_golf.matcher import MAX_CHARS, PatternError, compile_pattern
from agentenv.envs.wordle.words import all_words

PLAN = Plan(
    kinds=KINDS,
    num_words=6,
    first="tulip",
    last="drum",
    repeated="lucky",
    times=2,
    letter="a",
    is_upper=False,
    commas=1,
    lines=2,
)
GOOD = "tulip, lucky\nfunny lucky old drum."


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        (GOOD, ()),
        (GOOD.replace("old ", ""), ("words",)),
        (GOOD.replace("old", "old -"), ("words",)),
        (GOOD.replace("tulip", "tulips"), ("first",)),
        (GOOD.replace("drum", "drums"), ("last",)),
        (GOOD.replace("funny", "lucky"), ("repeated",)),
        (GOOD.replace("funny", "sand"), ("letter",)),
        (GOOD.replace("funny", "Funny"), ("case",)),
        (GOOD.replace(",", ""), ("commas",)),
        (GOOD.replace("\n", " "), ("lines",)),
        (GOOD.replace("\n", "\n\n"), ("lines",)),
    ],
)
def test_every_rule_is_broken_alone_and_found(text, broken):
    assert PLAN.broken(text) == broken


def test_capitals_are_all_or_none():
    plan = replace(PLAN, is_upper=True)
    assert plan.broken(GOOD.upper()) == ()
    assert plan.broken(GOOD) == ("case",)


def test_rules_can_always_be_kept_together():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        plan = draw_plan(rng, all_words(), num_rules=len(KINDS))
        assert plan.broken(plan.text([str(w) for w in rng.permutation(all_words())[:60]])) == ()


def test_a_rule_that_was_not_told_does_not_count():
    assert replace(PLAN, kinds=("first",)).broken("TULIP and some other words here") == ()
    assert len(InstructFollow(difficulty=5).reset(seed=0)[0].splitlines()) == 1 + 7 + 1


ORDER = {"name": "Ada", "age": 34, "city": "Basel", "paid": True, "items": [{"product": "mugs", "quantity": 2}]}


def extracted(text):
    env = JsonExtract()
    env.reset(seed=0)
    env.question = replace(env.question, answer=json.dumps([ORDER]))
    return env.step(text)[1]


@pytest.mark.parametrize(
    ("change", "earned"),
    [
        ({}, 1.0),
        ({"age": 34.0}, 0.0),
        ({"age": "34"}, 0.0),
        ({"paid": 1}, 0.0),
        ({"name": "ada"}, 0.0),
        ({"note": None}, 0.0),
        ({"items": []}, 0.0),
    ],
)
def test_values_and_types_must_be_the_same(change, earned):
    assert extracted(json.dumps([{**ORDER, **change}])) == earned
    assert extracted(f"```json\n{json.dumps([{**ORDER, **change}], indent=2)}\n```") == earned


def test_other_texts_around_the_json_and_double_keys_earn_nothing():
    truth = json.dumps([ORDER])
    assert extracted(f"Here: {truth}") == 0.0
    assert extracted(f"{truth}{truth}") == 0.0
    assert extracted(truth.replace('"age"', '"age": 1, "age"')) == 0.0
    assert extracted("[" * 10_000) == 0.0
    assert extracted(json.dumps(dict(reversed(ORDER.items())))) == 0.0  # not a list
    assert extracted(json.dumps([dict(reversed(ORDER.items()))])) == 1.0  # keys in another order


def test_json_is_read_and_compared_strictly():
    assert not is_same(parse("[1]"), parse("[true]"))
    assert not is_same(parse("[1, 2]"), parse("[2, 1]"))
    assert is_same(parse('{"a": 1, "b": 2}'), parse('{"b": 2, "a": 1}'))
    with pytest.raises(ValueError, match="NaN is no JSON"):
        parse("NaN")
    with pytest.raises(ValueError, match="a key stands twice"):
        parse('{"a": 1, "a": 1}')
    assert without_fence("```\n[]\n```") == "[]"
    assert without_fence("```") == "```"


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_the_text_names_every_fact(difficulty):
    env = JsonExtract(difficulty=difficulty)
    for seed in range(30):
        text, _ = env.reset(seed=seed)
        orders = json.loads(env.question.answer)
        assert len(orders) == difficulty
        story = text.partition("\nWrite all orders")[0]
        for order in orders:
            assert order["name"] in story
            assert str(order["age"]) in story
            assert all(f"{item['quantity']} {item['product']}" in story for item in order["items"])
        places = [story.index(order["name"]) for order in orders]
        assert places == sorted(places)


@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        ("abc", ["abc"], ["ab", "abcd", ""]),
        ("a|bc", ["a", "bc"], ["b", "abc"]),
        ("[a-c]x?", ["a", "cx"], ["d", "axx"]),
        ("[^a-c]+", ["d", "xyz"], ["a", "da", ""]),
        ("(ab)*", ["", "abab"], ["aba"]),
        ("a.*z", ["az", "abcz"], ["a", "za"]),
        ("", [""], ["a"]),
        ("(a|)b", ["ab", "b"], ["a"]),
        ("[]", [], ["a", ""]),
    ],
)
def test_patterns_match_whole_words(pattern, matched, others):
    found = compile_pattern(pattern)
    assert all(found.matches(word) for word in matched)
    assert not any(found.matches(word) for word in others)


@pytest.mark.parametrize("pattern", ["(", ")", "*a", "[a", "a{2}", "^a", "a$", r"\w", "(?=a)", "A", "é", "a b", "[z-"])
def test_what_is_outside_the_syntax_is_refused(pattern):
    with pytest.raises(PatternError):
        compile_pattern(pattern)


PIECES = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "[a-c]"]),
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})")
        | st.tuples(inner, st.sampled_from("*+?")).map(lambda two: f"({two[0]}){two[1]}")
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(pattern=PIECES, word=st.text("abc", max_size=6))
def test_patterns_match_what_python_matches(pattern, word):
    assert compile_pattern(pattern).matches(word) == bool(re.fullmatch(pattern, word))


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_compiled_or_refused(text):
    try:
        compile_pattern(text).matches("abc")
    except PatternError:
        return


@pytest.mark.parametrize("pattern", ["(a*)*" * 30 + "b", "(" * 60 + "a" + "*)" * 60, "(.*.*.*.*)+" * 15, "(a|a)*" * 30])
def test_no_pattern_hangs_the_matcher(pattern):
    started = time.process_time()
    compile_pattern(pattern[:MAX_CHARS] if pattern.count("(") != 60 else pattern).matches("a" * 30)
    assert time.process_time() - started < 2.0


def test_a_longer_pattern_is_refused():
    with pytest.raises(PatternError, match="at most 200 are allowed"):
        compile_pattern("a" * 201)


def golf(pattern):
    env = RegexGolf()
    env.reset(seed=0)
    env.wanted, env.unwanted, env.max_chars = ("stone", "store"), ("tribe", "stack"), 6
    return env.step(f"#### {pattern}")[1]


@pytest.mark.parametrize(
    ("pattern", "earned"),
    [
        ("sto.*", 1.0),
        (".*o.*", 1.0),
        ("s.*", 0.0),
        (".*", 0.0),
        ("stone|store", 0.0),
        ("st.[nr]e", 0.0),
        ("sto.e", 1.0),
    ],
)
def test_a_pattern_must_part_the_lists_within_its_length(pattern, earned):
    assert golf(pattern) == earned


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_the_known_pattern_parts_the_lists(difficulty):
    env = RegexGolf(difficulty=difficulty)
    for seed in range(20):
        env.reset(seed=seed)
        assert not set(env.wanted) & set(env.unwanted)
        assert len(env.question.answer) <= env.max_chars < len("|".join(env.wanted))
        assert env.step(env.oracle())[1] == 1.0
