"""Whatever a model writes, every call of every tool gives a typed observation and never an exception."""

import asyncio
import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentenv import Message, ToolCall, ToolEnv, ToolResult
from agentenv.tools import calculator
from agentenv.tools.ask_user import AskUser
from agentenv.tools.corpus import Passage
from agentenv.tools.delegate import Delegate
from agentenv.tools.fetch import Fetch
from agentenv.tools.files import Files
from agentenv.tools.notes import Notes
from agentenv.tools.search import Search
from agentenv.tools.search_index import open_index
from agentenv.tools.sql import WritableSql, memory_database
from agentenv.tools.sql_guard import SqlLimits
from agentenv.tools.submit import Submit
from tests.tools.desks import box


async def helper(question):
    return "yes"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index([Passage(passage_id="a", text="the moon")], cache=tmp_path_factory.mktemp("cache"))


def every_kit(index):
    """Return the toolkits that need nothing beyond this process."""
    return (
        AskUser(lambda question: "no"),
        Delegate(helper),
        Fetch(["nowhere.invalid"]),
        Files({"a.txt": "one\ntwo"}),
        Notes(),
        Search(index),
        WritableSql(memory_database("CREATE TABLE t (a)"), limits=SqlLimits(timeout_s=0.05)),
        Submit(),
    )


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["a.txt", "SELECT 1", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_NAMES = """
question url path text old new after_line first_line last_line folder name query sql passage_id expression
"""
NAMES = st.sampled_from(_NAMES.split())
ARGUMENTS = st.dictionaries(NAMES | st.text(max_size=4), VALUES, max_size=4)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_arguments_of_any_tool_give_a_typed_result(index, data):
    kits = every_kit(index)
    tools = box(*kits, calculator.calculate)
    name = data.draw(st.sampled_from(sorted(set(tools.tools) - {"submit"})))
    arguments = data.draw(ARGUMENTS)

    result = asyncio.run(tools.run(ToolCall(call_id="c", name=name, arguments=arguments)))

    assert isinstance(result, ToolResult)
    result.content.encode()  # a tokenizer takes it
    assert result.is_error == (tools.audit[-1].outcome != "ok")
    for kit in kits:
        if isinstance(kit, WritableSql):
            kit.close()


BAD: list[Any] = [None, True, -1, 1e400, math.nan, "x" * 10_000_000, [[[]]], {"a": {"b": [None]}}, "\ud800", "\0"]


@pytest.mark.parametrize("value", BAD, ids=range(len(BAD)))
def test_one_bad_value_in_every_argument_of_every_tool_is_answered(index, value):
    tools = box(*every_kit(index), calculator.calculate)

    async def everything():
        for name, item in sorted(tools.tools.items()):
            properties: Any = item.parameters.get("properties", {})
            for bad in properties:
                arguments: dict[str, Any] = {
                    key: 1 if kind.get("type") == "integer" else "a" for key, kind in properties.items()
                }
                arguments[bad] = value
                if name == "submit" and isinstance(value, str) and len(value) < 100:
                    continue  # without an environment, a valid submission is its author's mistake
                result = await tools.run(ToolCall(call_id="c", name=name, arguments=arguments))
                assert len(result.content) < 100_000, name
                if not isinstance(value, str):
                    assert result.is_error or value is None or value in (True, -1), (name, bad)
            extra = await tools.run(ToolCall(call_id="c", name=name, arguments={"nonsense": value}))
            assert extra.is_error

    asyncio.run(everything())


class Desk(ToolEnv):
    """Use tools. Reward: none."""

    inline = True
    max_malformed_turns = 1_000

    def setup(self, rng, task):
        self.attach(Notes(), Files({"a.txt": "one"}), Submit(), calculator.calculate)
        return "Go."


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=200),
    st.sampled_from(["{}", "<tool_call>{}</tool_call>", '<tool_call>{{"name": {}}}</tool_call>']),
)
def test_any_bytes_that_a_model_writes_give_an_observation(raw, form):
    env = Desk(max_turns=1_000)
    env.reset(seed=0)
    observation, reward, *_, info = env.step(form.format(raw.decode("utf-8", "surrogateescape")))
    assert isinstance(observation, str)
    assert reward == 0.0
    assert all(message["role"] == "tool" for message in info["messages"])
    observation.encode()
    env.close()


CALLS = st.tuples(st.sampled_from(["write_note", "view_file", "nothing"]), VALUES) | st.just(
    ("calculate", {"expression": "1+1"})
)


@settings(deadline=None, max_examples=200)
@given(st.lists(CALLS, max_size=12))
def test_any_calls_of_a_message_are_answered_one_by_one(calls):
    env = Desk()
    env.reset(seed=0)
    shaped = [{"id": "same", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    *_, info = env.step({"role": "assistant", "content": "", "tool_calls": shaped})  # type: ignore[arg-type]
    assert len(info["messages"]) == len(calls)
    if calls:
        assert len(env.toolbox.audit) == len(calls)
        # all of them have one id, so only the first may have run
        assert all(entry.outcome == "refused" for entry in env.toolbox.audit[1:])
    env.close()


def test_ten_megabytes_of_a_call_that_never_ends_are_one_short_error():
    env = Desk()
    env.reset(seed=0)
    observation, *_ = env.step("<tool_call>" + json.dumps({"name": "x" * 10_000_000})[:-2])
    assert observation.startswith("Error: ")
    assert len(observation) < 500
    message = Message(
        role="assistant", content="", tool_calls=(ToolCall(call_id="c", name="y" * 10_000_000, arguments={}),)
    )
    observation, *_ = env.step(message.to_dict())
    assert len(observation) < 500
    env.close()
