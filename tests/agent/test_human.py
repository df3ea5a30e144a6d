"""What a person types becomes a turn."""

import pytest

from agentenv.agent.human import read_line
from agentenv.errors import UsageError
from agentenv.registry import make_bare

GUESS = make_bare("agentenv/GuessNumber-v0").tool_specs


@pytest.mark.parametrize("line", ["guess 7", "guess number=7", 'guess {"number": 7}', "  guess   7  "])
def test_a_line_that_begins_with_a_tool_is_a_call(line):
    (call,) = read_line(line, tools=GUESS).tool_calls
    assert (call.name, call.arguments) == ("guess", {"number": 7})


def test_anything_else_is_said():
    message = read_line("is it 7?", tools=GUESS)
    assert (message.content, message.tool_calls) == ("is it 7?", ())


def test_arguments_may_stand_in_order_or_by_name():
    tools = make_bare("agentenv/Wordle-v0").tool_specs
    (call,) = read_line("guess crane", tools=tools).tool_calls
    assert list(call.arguments.values()) == ["crane"]


def test_broken_json_is_refused():
    with pytest.raises(UsageError, match="not valid JSON"):
        read_line("guess {7", tools=GUESS)
