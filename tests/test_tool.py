"""Tools: schemas from signatures, validation, dispatch, deadlines, parallel calls and the audit log."""

import asyncio
import enum
import functools
import hashlib
import itertools
import json
import threading
import time
import warnings
from dataclasses import replace
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv.errors import DeadlineExceeded, EpisodeError, ToolError, ToolSchemaError, UsageError
from agentenv.messages import ToolCall, malformed_call
from agentenv.tool import as_tool, tool, toolbox_of, tools_of_class
from agentenv.tool_audit import append_audit
from agentenv.tool_content import as_tool_text, encodable
from agentenv.tool_policy import ToolPolicy
from agentenv.tool_schema import parse_docstring
from tests.tools.desks import offered


class Place(pydantic.BaseModel):
    """Where."""

    city: str
    zip_code: int = 0


class Kind(enum.Enum):
    SMALL = "small"
    LARGE = "large"


_ids = itertools.count()


def call(name, arguments=None, call_id=""):
    return ToolCall(call_id=call_id or f"c{next(_ids)}", name=name, arguments=arguments or {})


def schema_of(function) -> dict[str, Any]:
    return dict(as_tool(function).parameters)


def box(*functions, **options):
    made = toolbox_of([as_tool(function) for function in functions])
    return replace(made, **options)


# schemas


def test_the_signature_and_docstring_become_the_schema():
    @tool
    def book(place: Place, days: int, tags: list[str], kind: Literal["bed", "room"] = "bed", note: str | None = None):
        """Book a stay.

        Longer words on booking.

        Args:
            place: where to sleep.
            days: how long,
                in whole days.
            tags: what matters.
            kind: what to book.
        """

    made = as_tool(book)

    assert made.name == "book"
    assert made.description == "Book a stay.\n\nLonger words on booking."
    properties = schema_of(book)["properties"]
    assert properties["days"] == {"type": "integer", "description": "how long, in whole days."}
    assert properties["tags"] == {"type": "array", "description": "what matters.", "items": {"type": "string"}}
    assert properties["kind"] == {
        "type": "string",
        "description": "what to book.",
        "enum": ["bed", "room"],
        "default": "bed",
    }
    assert schema_of(book)["required"] == ["place", "days", "tags"]
    assert schema_of(book)["$defs"]["Place"]["properties"]["city"] == {"type": "string"}
    assert made.spec["function"] == {"name": "book", "description": made.description, "parameters": made.parameters}


def test_constraints_and_descriptions_of_annotated_hints_reach_the_schema():
    @tool
    def wait(seconds: Annotated[int, pydantic.Field(ge=1, le=9, description="how long")]) -> None:
        """Wait."""

    assert schema_of(wait)["properties"]["seconds"] == {
        "type": "integer",
        "description": "how long",
        "minimum": 1,
        "maximum": 9,
    }


def test_a_property_called_title_is_not_dropped_with_the_titles_of_pydantic():
    @tool
    def publish(title: str) -> None:
        """Publish."""

    assert schema_of(publish)["properties"] == {"title": {"type": "string"}}


async def test_a_parameter_may_be_called_function():
    @tool
    def apply(function: str, args: str, kwargs: str, inline: bool, where: str, timeout_s: float) -> str:
        """Apply it."""
        return f"{function} {args} {kwargs} {inline} {where} {timeout_s}"

    given = {"function": "sum", "args": "a", "kwargs": "k", "inline": True, "where": "w", "timeout_s": 2}
    for inline in (True, False):
        assert (await box(apply, inline_default=inline).run(call("apply", given))).content == "sum a k True w 2.0"


async def test_parameter_names_of_pydantic_itself_are_free_to_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        @tool
        def send(json: str, copy: int, model_dump: str, _id: int = 3) -> str:
            """Send."""
            return f"{json} {copy} {model_dump} {_id}"

    result = await box(send).run(call("send", {"json": "{}", "copy": 2, "model_dump": "x"}))
    assert result.content == "{} 2 x 3"
    assert list(schema_of(send)["properties"]) == ["json", "copy", "model_dump", "_id"]


def test_a_tool_without_a_docstring_is_refused():
    with pytest.raises(ToolSchemaError, match="has no docstring"):

        @tool
        def silent(x: int) -> int:
            return x


def test_a_parameter_without_a_hint_is_refused_by_name():
    with pytest.raises(ToolSchemaError, match="parameter 'y' has no type hint"):

        @tool
        def half(x: int, y):
            """Halve."""


def test_a_documented_argument_that_does_not_exist_is_refused():
    with pytest.raises(ToolSchemaError, match="documents z"):

        @tool
        def halve(x: int) -> int:
            """Halve.

            Args:
                z: nothing.
            """
            return x


def test_star_arguments_are_refused():
    with pytest.raises(ToolSchemaError, match="must be an ordinary named parameter"):

        @tool
        def many(*names: str) -> None:
            """Take many."""


def test_a_hint_that_cannot_be_resolved_is_refused():
    with pytest.raises(ToolSchemaError, match="cannot be resolved"):

        @tool
        def lost(x: "NoSuchType") -> None:  # noqa: F821  # type: ignore[name-defined]
            """Lose."""


def test_a_type_without_a_json_form_is_refused():
    with pytest.raises(ToolSchemaError, match="no JSON schema"):

        @tool
        def lock(x: type(threading.Lock())) -> None:  # type: ignore[valid-type]
            """Lock."""


def test_an_undecorated_function_is_no_tool():
    with pytest.raises(UsageError, match="decorate it with @tool"):
        as_tool(print)


def test_two_tools_of_one_name_are_refused():
    @tool
    def look() -> str:
        """Look."""
        return ""

    with pytest.raises(UsageError, match='two tools are called "look"'):
        toolbox_of([as_tool(look), as_tool(look)])


def test_docstrings_split_into_summary_and_arguments():
    summary, arguments = parse_docstring(
        "Do it.\n\nArgs:\n    a (int): first: with a colon.\n    b: second\n        note: goes on.\n\n"
        "Returns:\n    c: no argument"
    )
    assert summary == "Do it."
    assert arguments == {"a": "first: with a colon.", "b": "second note: goes on."}


def test_subclasses_add_override_and_remove_tools():
    class Base:
        @tool
        def one(self) -> str:
            """One."""
            return "1"

        @tool
        def two(self) -> str:
            """Two."""
            return "2"

    class Child(Base):
        two = None  # type: ignore[assignment]

        @tool
        def three(self) -> str:
            """Three."""
            return "3"

    assert [item.name for item in tools_of_class(Child)] == ["one", "three"]
    assert as_tool(Child().three).function() == "3"


# arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "days: Field required"),
        ({"days": "many"}, "days: Input should be a valid integer"),
        ({"days": 1, "dais": 2}, 'dais: unknown argument; allowed: days, place. Did you mean "days"?'),
        ({"days": 1, "place": {"zip_code": 1}}, "place.city: Field required"),
        ({"days": 1, "place": "Bern"}, "place: Input should be a valid dictionary"),
        ({"days": None}, "days: Input should be a valid integer"),
    ],
)
async def test_wrong_arguments_are_told_to_the_model_field_by_field(arguments, message):
    @tool
    def stay(days: int, place: Place | None = None) -> str:
        """Stay."""
        return "ok"

    result = await box(stay).run(call("stay", arguments))

    assert result.is_error
    assert result.content.startswith("Error: invalid arguments for stay: ")
    assert message in result.content


async def test_arguments_arrive_as_the_hinted_types_and_defaults_stay():
    seen = {}

    @tool
    def stay(place: Place, kind: Kind, days: int = 3) -> str:
        """Stay."""
        seen.update(place=place, kind=kind, days=days)
        return "ok"

    await box(stay).run(call("stay", {"place": {"city": "Bern"}, "kind": "large"}))
    assert seen == {"place": Place(city="Bern"), "kind": Kind.LARGE, "days": 3}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.one_of(st.text(), st.sampled_from(["days", "place"])), _JSON, max_size=4))
def test_any_json_object_is_accepted_or_refused_in_words(arguments):
    @tool
    def stay(days: int, place: Place | None = None) -> str:
        """Stay."""
        return "ok"

    result = asyncio.run(box(stay, inline_default=True).run(call("stay", arguments)))
    assert result.content == "ok" or result.content.startswith("Error: invalid arguments for stay")
    assert len(result.content) < 2000


# dispatch


@tool(inline=True)
def echo(text: str) -> str:
    """Say it again."""
    return text


async def test_an_unknown_tool_is_answered_with_the_known_ones():
    result = await box(echo).run(call("ecco", {"text": "a"}))

    assert result.is_error
    assert result.content == 'Error: unknown tool "ecco". Available tools: echo. Did you mean "echo"?'


async def test_a_huge_unknown_name_is_not_repeated_at_length():
    result = await box(echo).run(call("x" * 1_000_000))
    assert len(result.content) < 200
    assert len(result.name) < 200


async def test_a_malformed_call_is_answered_with_what_is_wrong():
    result = await box(echo).run(malformed_call(call_id="c0", status="invalid_json", raw="{"))
    assert result.is_error
    assert "not valid JSON" in result.content


async def test_a_tool_error_speaks_to_the_model():
    @tool
    def refuse() -> str:
        """Refuse."""
        raise ToolError("not on Sundays")

    result = await box(refuse).run(call("refuse"))
    assert (result.content, result.is_error) == ("Error: not on Sundays", True)


async def test_any_other_exception_is_a_failure_of_the_tool_side():
    @tool
    def crash() -> str:
        """Crash."""
        raise KeyError("lost")

    with pytest.raises(EpisodeError, match="tool failure in crash: KeyError: 'lost'") as raised:
        await box(crash).run(call("crash"))
    assert raised.value.side == "tool"


async def test_a_hanging_tool_meets_its_deadline_in_a_thread_and_as_a_coroutine():
    let_go = threading.Event()

    @tool(timeout_s=0.05)
    def hang() -> str:
        """Hang."""
        let_go.wait(10)
        return ""

    @tool(timeout_s=0.05)
    async def hang_async() -> str:
        """Hang."""
        await asyncio.sleep(10)
        return ""

    started = time.perf_counter()
    for name in ("hang", "hang_async"):
        with pytest.raises(DeadlineExceeded, match=f"tool failure in {name}: no answer within 0.05 s"):
            await box(hang, hang_async).run(call(name))
    assert time.perf_counter() - started < 2
    let_go.set()


async def test_lone_surrogates_are_replaced_because_no_tokenizer_takes_them():
    result = await box(echo).run(call("echo\ud800", {}))
    for text in (result.content, result.name):
        text.encode()

    echoed = await box(echo).run(call("echo", {"text": "fine 漢🙂"}))
    assert echoed.content == "fine 漢🙂"
    assert encodable("a\ud800b") == "a?b"


def test_results_become_text():
    assert as_tool_text("as is") == "as is"
    assert as_tool_text(None) == "ok"
    assert as_tool_text(Place(city="Bern")) == '{"city":"Bern","zip_code":0}'
    assert as_tool_text({"a": [1, Place(city="ü")], "b": {2, 1}}) == (
        '{"a": [1, {"city": "ü", "zip_code": 0}], "b": [1, 2]}'
    )


# several calls in one turn


async def test_parallel_tools_overlap_and_results_keep_the_order_of_the_calls():
    both = asyncio.Barrier(2)

    @tool(parallel=True)
    async def meet(name: str) -> str:
        """Wait for the other."""
        await asyncio.wait_for(both.wait(), 5)  # hangs unless two calls run at the same time
        await asyncio.sleep(0.02 if name == "first" else 0)
        return name

    results = await box(meet).run_all([call("meet", {"name": "first"}, "a"), call("meet", {"name": "second"}, "b")])
    assert [(r.call_id, r.content) for r in results] == [("a", "first"), ("b", "second")]


async def test_tools_that_are_not_parallel_run_one_after_the_other():
    running = []

    @tool
    async def step(name: str) -> str:
        """Step."""
        assert not running
        running.append(name)
        await asyncio.sleep(0.005)
        running.remove(name)
        return name

    results = await box(step).run_all([call("step", {"name": str(i)}) for i in range(3)])
    assert [r.content for r in results] == ["0", "1", "2"]


async def test_a_failing_parallel_call_cancels_its_neighbours_and_is_raised_as_itself():
    cancelled = []

    @tool(parallel=True)
    async def work(fails: bool) -> str:
        """Work."""
        if fails:
            raise OSError("disk")
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return ""

    with pytest.raises(EpisodeError, match="OSError: disk"):
        await box(work).run_all([call("work", {"fails": False}), call("work", {"fails": True})])
    assert cancelled == [True]


async def test_calls_after_the_one_that_ended_the_episode_are_refused():
    is_over = []

    @tool
    def stop() -> str:
        """Stop."""
        is_over.append(True)
        return "stopped"

    results = await box(stop).run_all([call("stop"), call("stop")], is_over=lambda: bool(is_over))
    assert [r.is_error for r in results] == [False, True]
    assert "an earlier call of this turn ended the episode" in results[1].content
    assert is_over == [True]


# the audit log


async def test_the_audit_log_says_what_was_called_and_digests_the_result():
    tools = box(echo, caller="desk")
    await tools.run(call("echo", {"text": "hello"}))
    await tools.run(call("nothing"))

    first, second = tools.audit
    assert (first.caller, first.tool, first.arguments, first.outcome) == ("desk", "echo", {"text": "hello"}, "ok")
    assert first.result_sha256 == hashlib.sha256(b"hello").hexdigest()
    assert first.duration_s >= 0
    assert (second.outcome, second.is_error) == ("refused", True)


async def test_a_failed_call_is_in_the_audit_log_too():
    @tool
    async def fetch() -> str:
        """Fetch."""
        raise OSError("no route")

    tools = box(fetch)
    with pytest.raises(EpisodeError, match="no route"):
        await tools.run(call("fetch"))

    assert [entry.outcome for entry in tools.audit] == ["failed"]


def test_an_audit_log_is_appended_to_a_file_line_by_line(tmp_path):
    tools = box(echo, caller="desk")
    asyncio.run(tools.run(call("echo", {"text": "\ud800"}, call_id="first")))
    asyncio.run(tools.run(call("echo", {"text": "b"})))
    place = tmp_path / "new" / "audit.jsonl"

    append_audit(place, tools.audit[:1])
    append_audit(place, tools.audit[1:])

    first, second = [json.loads(line) for line in place.read_text().splitlines()]
    assert (first["caller"], first["call_id"], first["arguments"]) == ("desk", "first", {"text": "\ud800"})
    assert second["result_sha256"] == hashlib.sha256(b"b").hexdigest()


# policy


async def test_what_reaches_outside_is_read_only_unless_the_policy_names_it():
    @tool(reaches_outside=True)
    def post(text: str) -> str:
        """Post.

        Args:
            text: what.
        """
        return "posted"

    @tool(reaches_outside=True, read_only=True)
    def fetch() -> str:
        """Fetch."""
        return "fetched"

    strict = box(post, fetch)
    assert offered(strict.specs) == ["fetch"]
    refused = await strict.run(call("post", {"text": "a"}))
    assert (refused.is_error, strict.audit[0].outcome) == (True, "refused")
    assert "outside of this episode" in refused.content
    assert (await strict.run(call("fetch"))).content == "fetched"

    named = box(post, policy=ToolPolicy(may_change_outside=frozenset({"post"})))
    assert (await named.run(call("post", {"text": "a"}))).content == "posted"


async def test_a_tool_that_the_allow_list_does_not_name_is_neither_offered_nor_run():
    tools = box(echo, policy=ToolPolicy(allowed=frozenset({"look"})))

    assert tools.specs == ()
    assert (await tools.run(call("echo", {"text": "a"}))).content == 'Error: the tool "echo" is not allowed here.'
    assert (await tools.run(call("ecko"))).content == 'Error: unknown tool "ecko". Available tools: none.'


# limits


async def test_a_long_result_keeps_its_beginning_and_its_end():
    @tool(max_output_chars=5)
    def count() -> str:
        """Count."""
        return "0123456789"

    assert (await box(count).run(call("count"))).content == "012\n[... 5 characters omitted]\n89"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"text": "x" * 10_000_000}, "too long; at most 1,000,000 characters"),
        ({"text": [0] * 2_000_000}, "too long"),
        ({"text": {"y" * 2_000_000: 1}}, "too long"),
        ({"text": float("nan")}, "nan, which is not a JSON number"),
        ({"text": {"a": [float("inf")]}}, "inf, which is not a JSON number"),
        ({"text": functools.reduce(lambda inner, _: [inner], range(100), "x")}, "nested too deeply"),
    ],
)
async def test_arguments_without_bounds_are_refused_before_they_are_read(arguments, told):
    result = await box(echo).run(call("echo", arguments))
    assert result.content.startswith("Error: invalid arguments for echo: ")
    assert told in result.content


async def test_the_second_call_of_a_turn_with_the_same_id_is_not_run():
    ran = []

    @tool(parallel=True)
    async def note(text: str) -> str:
        """Note.

        Args:
            text: what.
        """
        ran.append(text)
        return text

    calls = [call("note", {"text": text}, call_id=name) for text, name in [("a", "x"), ("b", "x"), ("c", "y")]]
    results = await box(note).run_all(calls)

    assert ran == ["a", "c"]
    assert [result.is_error for result in results] == [False, True, False]
    assert "has the same id" in results[1].content


# idempotent tools


async def test_an_idempotent_tool_is_tried_again_and_every_try_is_recorded():
    tries = []

    @tool(idempotent=True)
    async def look() -> str:
        """Look."""
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("gone")
        return "seen"

    tools = box(look)
    assert (await tools.run(call("look"))).content == "seen"
    assert [entry.outcome for entry in tools.audit] == ["retried", "retried", "ok"]


async def test_a_tool_that_is_not_idempotent_is_tried_once():
    tries = []

    @tool
    async def pay() -> str:
        """Pay."""
        tries.append(1)
        raise ConnectionError("gone")

    with pytest.raises(EpisodeError):
        await box(pay).run(call("pay"))
    assert tries == [1]


async def test_the_tries_of_an_idempotent_tool_share_one_deadline():
    @tool(idempotent=True, timeout_s=0.2)
    async def look() -> str:
        """Look."""
        await asyncio.sleep(0.15)
        raise ConnectionError("gone")

    started = time.perf_counter()
    with pytest.raises(EpisodeError):
        await box(look).run(call("look"))
    assert time.perf_counter() - started < 0.4
