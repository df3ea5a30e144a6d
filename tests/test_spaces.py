"""The spaces of language: membership, samples, JSON and equality."""

import json

import gymnasium
import pytest
from gymnasium.vector.utils import batch_space

from agentenv.spaces import MessageSpace, TextSpace


@pytest.mark.parametrize("text", ["", "two words\n", "漢字🙂", "\x00", "\ud800"])
def test_any_string_is_text(text):
    assert text in TextSpace()


def test_text_has_a_largest_length():
    assert "abc" in TextSpace(3)
    assert "abcd" not in TextSpace(3)
    assert len(TextSpace(2).sample()) <= 2


@pytest.mark.parametrize("thing", [None, 3, b"bytes", ["a"], {"a": 1}])
def test_other_things_are_not_text(thing):
    assert thing not in TextSpace()


@pytest.mark.parametrize(
    "action",
    [
        "text",
        {"role": "assistant", "content": "hi"},
        {"content": ""},
        {"role": "assistant", "content": "", "tool_calls": ({"function": {"name": "x"}},)},
    ],
)
def test_text_and_assistant_messages_are_actions(action):
    assert action in MessageSpace()


@pytest.mark.parametrize("thing", [None, 7, {"role": "user", "content": "x"}, {"content": 3}, {"tool_calls": "x"}])
def test_other_things_are_not_actions(thing):
    assert thing not in MessageSpace()


@pytest.mark.parametrize("space", [TextSpace(), MessageSpace(["find"])])
def test_samples_are_members_and_survive_json(space):
    samples = [space.sample() for _ in range(50)]

    assert all(sample in space for sample in samples)
    read = space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples))))
    assert read == samples


def test_a_seed_given_late_or_at_construction_fixes_the_samples():
    late, early = MessageSpace(["find"]), MessageSpace(["find"], seed=3)
    late.seed(3)

    first, again = [late.sample() for _ in range(20)], MessageSpace(["find"], seed=3)
    assert [again.sample() for _ in range(20)] == [early.sample() for _ in range(20)]
    late.seed(3)
    assert [late.sample() for _ in range(20)] == first


def test_samples_call_known_and_unknown_tools():
    space = MessageSpace(["find"], seed=0)
    samples = json.dumps([space.sample() for _ in range(100)])
    assert "find" in samples
    assert "no_such_tool" in samples


def test_spaces_are_equal_by_value():
    assert TextSpace(5) == TextSpace(5) != TextSpace(6)
    assert MessageSpace(["a"]) == MessageSpace(["a"]) != MessageSpace(["b"])
    assert TextSpace() != MessageSpace()
    assert hash(MessageSpace(["a"])) == hash(MessageSpace(["a"]))
    assert repr(MessageSpace(["a", "b"])) == "MessageSpace(a, b)"


def test_spaces_batch_without_a_flat_form():
    space = MessageSpace(["a"])
    assert isinstance(space, gymnasium.Space)
    assert not space.is_np_flattenable
    assert len(batch_space(space, 3).sample()) == 3
