"""What an environment does when something goes wrong: failures with a side, teardown, and garbage for actions."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv import AgentEnv, Message, Task, ToolCall, ToolEnv, reward, tool
from agentenv.errors import EpisodeError, ToolError, UsageError


class Parrot(AgentEnv):
    """Says everything back until it hears `bye`."""

    inline = True

    def setup(self, rng, task):
        return "Speak."

    def respond(self, text):
        if text == "bye":
            self.finish()
            return ""
        return f"you said {text}"


class Desk(ToolEnv):
    """A few tools."""

    inline = True

    def setup(self, rng, task):
        self.calls = []
        return "Work."

    @tool
    def note(self, text: str) -> str:
        """Write a note."""
        self.calls.append(text)
        return f"noted {text}"

    @tool
    def close_desk(self) -> str:
        """Go home."""
        self.finish()
        return "closed"

    @tool
    def refuse(self) -> str:
        """Refuse."""
        raise ToolError("no")

    @reward
    def num_notes(self):
        return len(self.calls)


class Broken(ToolEnv):
    """Fails where `where` says."""

    inline = True

    def __init__(self, where="", **options):
        self.where, self.num_teardowns = where, 0
        super().__init__(**options)

    def fail(self, where):
        if self.where == where:
            raise OSError(f"{where} is broken")

    def sample_task(self, rng):
        self.fail("sample_task")
        return Task(task_id="")

    def setup(self, rng, task):
        self.fail("setup")
        return "" if self.where == "no prompt" else "go"

    def teardown(self):
        self.num_teardowns += 1
        self.fail("teardown")

    def answer(self, text):
        self.fail("answer")
        self.finish()
        return ""

    @tool
    def work(self) -> str:
        """Work."""
        self.fail("tool")
        return "done"

    @reward(when="turn")
    def pace(self):
        self.fail("turn reward")
        return 0

    @reward
    def result(self):
        self.fail("reward")
        return float("nan") if self.where == "nan" else 1


def calls(*names_and_arguments):
    made = [
        ToolCall(call_id=f"c{i}", name=name, arguments=arguments)
        for i, (name, arguments) in enumerate(names_and_arguments)
    ]
    return Message(role="assistant", content="", tool_calls=tuple(made)).to_dict()


def play_and_close(env):
    env.reset(seed=0)
    env.step(calls(("work", {})))
    env.step("done")
    env.close()


# failures


@pytest.mark.parametrize(
    ("where", "side", "name"),
    [
        ("sample_task", "env", "Broken.setup"),
        ("setup", "env", "Broken.setup"),
        ("answer", "env", "Broken.answer"),
        ("tool", "tool", "work"),
        ("turn reward", "reward", "pace"),
        ("reward", "reward", "result"),
        ("nan", "reward", "result"),
        ("teardown", "env", "Broken.teardown"),
    ],
)
def test_a_failure_names_its_side_and_place(where, side, name):
    env = Broken(where)
    with pytest.raises(EpisodeError) as raised:
        play_and_close(env)
    assert (raised.value.side, raised.value.where) == (side, name)


def test_a_setup_without_a_prompt_is_told():
    class Silent(AgentEnv):
        def setup(self, rng, task):
            return []

    with pytest.raises(EpisodeError, match="setup returned no message; return the prompt"):
        Silent().reset(seed=0)


@pytest.mark.parametrize("where", ["setup", "answer", "tool", "turn reward", "reward"])
def test_a_failed_episode_cannot_go_on_but_the_next_one_can(where):
    env = Broken(where)
    with pytest.raises(EpisodeError):
        play_and_close(env)
    with pytest.raises(UsageError, match="the episode failed and cannot go on; call reset first"):
        env.step("again")
    with pytest.raises(UsageError, match="failed and cannot go on"):
        env.truncate()

    env.where = ""
    env.reset(seed=0)
    assert env.num_teardowns == 1
    assert env.step("done")[1] == 1.0
    env.close()
    assert env.num_teardowns == 2


def test_teardown_runs_once_per_started_episode_and_close_may_be_repeated():
    env = Broken()
    env.close()
    assert env.num_teardowns == 0

    env = Broken()
    env.reset(seed=0)
    env.reset(seed=0)
    env.step("done")
    env.close()
    env.close()
    assert env.num_teardowns == 2


def test_a_failing_teardown_still_closes():
    env = Broken("teardown")
    env.reset(seed=0)
    with pytest.raises(EpisodeError):
        env.close()
    env.close()
    assert env.num_teardowns == 1


@pytest.mark.fault("step after done", then="refused with the remedy", metric="none: a caller's mistake")
def test_use_outside_an_episode_is_told_with_the_remedy():
    env = Parrot()
    with pytest.raises(UsageError, match="step on Parrot: the episode has not begun; call reset first"):
        env.step("x")
    env.reset(seed=0)
    env.step("bye")
    with pytest.raises(UsageError, match="the episode is over; call reset first"):
        env.step("x")
    env.close()
    with pytest.raises(UsageError, match="the episode was closed; make a new environment"):
        env.step("x")
    with pytest.raises(UsageError, match="was closed; make a new one"):
        env.reset(seed=0)


def test_an_inline_environment_that_waits_is_told_what_to_change():
    class Liar(AgentEnv):
        inline = True

        def setup(self, rng, task):
            return asyncio.sleep(0, "go")

    with pytest.raises(EpisodeError, match="set inline = False"):
        Liar().reset(seed=0)


def test_an_environment_without_an_oracle_says_so():
    with pytest.raises(UsageError, match="Parrot has no oracle"):
        Parrot().oracle()


# garbage


def test_unreadable_actions_become_text():
    env = Parrot(max_turns=20)
    env.reset(seed=0)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    actions: Any = (None, 7, b"x", [1], {1: 2}, {"tool_calls": 3}, {"content": 5}, {"tool_calls": [deep]}, deep)
    for action in actions:
        assert env.step(action)[2:4] == (False, False)


def test_arguments_that_no_json_can_hold_are_a_malformed_call_and_can_be_shown():
    env = Desk(render_mode="ansi")
    env.reset(seed=0)
    observation, *_ = env.step(calls(("note", {("a", "b"): 1})))
    assert observation.startswith("Error: the tool call must be an object")
    assert "note" in (env.render() or "")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.sampled_from(["note", "close_desk", "refuse", "no_such_tool", ""]) | st.text(max_size=5)
_CALLS = st.builds(
    lambda name, arguments, close: "<tool_call>" + json.dumps({"name": name, "arguments": arguments}) + close,
    _NAMES,
    _JSON,
    st.sampled_from(["</tool_call>", "</tool_call> ", ""]),
)
_TEXTS = st.text() | st.lists(_CALLS | st.text(max_size=5), max_size=5).map("".join)
_MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["assistant", "user", "boss"]),
        "content": _JSON,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "id": _JSON,
                    "status": _JSON,
                    "function": st.fixed_dictionaries({"name": _NAMES, "arguments": _JSON}) | _JSON,
                },
            )
            | _JSON,
            max_size=4,
        ),
    },
)


@settings(deadline=None)
@given(st.lists(_TEXTS | _MESSAGES | _JSON, max_size=6))
def test_no_action_ever_raises_and_every_reward_is_a_float(actions):
    env = Desk(render_mode="ansi")
    env.reset(seed=0)
    for action in actions:
        observation, value, terminated, truncated, info = env.step(action)
        observation.encode()
        assert type(value) is float
        assert list(info) == ["messages", "reward_components", "stop_reason"]
        if terminated or truncated:
            break
    env.render()
    env.close()
