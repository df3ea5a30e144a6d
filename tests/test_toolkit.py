"""Toolkits: state per episode, attaching, and closing."""

import pytest

from agentenv import ToolCall, ToolEnv, tool, tool_turn
from agentenv.errors import EpisodeError, UsageError
from agentenv.messages import Message
from agentenv.toolkit import Toolkit, attached
from tests.tools.desks import offered

closed: list[str] = []


class Counter(Toolkit):
    """Counts."""

    def __init__(self, *, start: int = 0, name: str = "counter"):
        self.value = start
        self.name = name
        self.env = None

    def joined(self, env):
        self.env = env

    @tool
    def count(self, by: int = 1) -> str:
        """Count.

        Args:
            by: how far.
        """
        self.value += by
        return str(self.value)

    def close(self):
        closed.append(self.name)


class Desk(ToolEnv):
    """Count. Reward: none."""

    inline = True
    counter = attached(Counter, start=10)

    def setup(self, rng, task):
        return f"Count on from {self.counter.value}."


@pytest.fixture(autouse=True)
def _nothing_closed():
    closed.clear()


def told(env, name="count", arguments=None):
    return env.step(tool_turn(name, arguments or {}).to_dict())[0]


def test_an_attached_toolkit_is_made_anew_for_every_episode_and_closed_after_it():
    env = Desk()
    assert offered(env.tool_specs) == ["count"]
    assert env.reset(seed=0)[0] == "Count on from 10."
    assert [told(env), told(env, arguments={"by": 5})] == ["11", "16"]
    assert (env.counter.value, env.counter.env) == (16, env)

    env.reset(seed=0)
    assert closed == ["counter"]
    assert told(env) == "11"
    env.close()
    env.close()
    assert closed == ["counter", "counter"]


def test_two_environments_share_no_toolkit():
    first, second = Desk(), Desk()
    first.reset(seed=0)
    second.reset(seed=0)
    told(first)
    assert (first.counter.value, second.counter.value) == (11, 10)


def test_setup_attaches_for_one_episode_and_the_constructor_for_all():
    class Two(ToolEnv):
        """Count. Reward: none."""

        inline = True

        def __init__(self):
            super().__init__()
            self.attach(Counter(name="lasting"))

        def setup(self, rng, task):
            self.attach(look)
            return "Count."

    @tool
    def look() -> str:
        """Look."""
        return "seen"

    env = Two()
    env.reset(seed=0)
    assert [told(env), told(env, "look")] == ["1", "seen"]
    env.reset(seed=0)
    assert told(env) == "2"
    assert closed == []
    env.close()
    assert closed == ["lasting"]


def test_a_toolkit_attached_in_setup_is_closed_even_where_setup_fails_later():
    class Broken(ToolEnv):
        """Fail. Reward: none."""

        inline = True

        def setup(self, rng, task):
            self.attach(Counter(name="taken"))
            raise OSError("disk")

    env = Broken()
    with pytest.raises(EpisodeError):
        env.reset(seed=0)
    env.close()
    assert closed == ["taken"]


def test_every_toolkit_is_closed_also_after_one_whose_close_fails():
    class Stuck(Counter):
        """Fails to close."""

        def close(self):
            raise OSError("stuck")

        @tool
        def other(self) -> str:
            """Do nothing."""
            return ""

        count = None  # type: ignore[assignment]

    class First(ToolEnv):
        """Count. Reward: none."""

        inline = True
        stuck = attached(Stuck)
        counter = attached(Counter, name="second")

        def setup(self, rng, task):
            return "Count."

    env = First()
    env.reset(seed=0)
    with pytest.raises(EpisodeError, match="stuck"):
        env.close()
    assert closed == ["second"]


def test_an_asynchronous_close_is_awaited():
    class Later(Counter):
        """Closes later."""

        async def close(self):  # type: ignore[override]
            closed.append("later")

    class Late(Desk):
        """Count. Reward: none."""

        counter = attached(Later)

    env = Late()
    env.reset(seed=0)
    env.close()
    assert closed == ["later"]


def test_a_subclass_replaces_or_removes_an_attached_toolkit():
    class Further(Desk):
        """Count. Reward: none."""

        counter = attached(Counter, start=99)

    class Without(Desk):
        """Count. Reward: none."""

        counter = None  # type: ignore[assignment]

        def setup(self, rng, task):
            return "Go."

    env = Further()
    env.reset(seed=0)
    assert told(env) == "100"
    assert Without().tool_specs == ()


def test_two_tools_of_one_name_are_refused_at_once():
    class Clash(Desk):
        """Count. Reward: none."""

        @tool
        def count(self) -> str:
            """Count."""
            return ""

    with pytest.raises(UsageError, match='two tools are called "count"'):
        Clash()


def test_the_audit_log_is_of_the_running_episode_and_names_it():
    env = Desk()
    env.reset(seed=3)
    told(env)
    before = env.toolbox.audit
    env.reset()
    told(env, "nothing")

    assert [(entry.caller, entry.tool, entry.outcome) for entry in before] == [("Desk//seed 3.0", "count", "ok")]
    assert [(entry.caller, entry.outcome) for entry in env.toolbox.audit] == [("Desk//seed 3.1", "refused")]


def test_calls_beyond_the_allowed_number_are_in_the_audit_log():
    env = Desk()
    env.reset(seed=0)
    calls = tuple(ToolCall(call_id=str(index), name="count", arguments={}) for index in range(10))
    env.step(Message(role="assistant", content="", tool_calls=calls).to_dict())
    assert [entry.outcome for entry in env.toolbox.audit] == ["ok"] * 8 + ["refused"] * 2
