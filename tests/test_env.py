"""The environment core: episodes, actions, endings, failures with a side, and teardown."""

import asyncio
import threading
import time
from typing import Any

import gymnasium
import numpy as np
import pytest

from agentenv import AgentEnv, Message, StopReason, Task, ToolCall, ToolEnv, reward, tool, tool_turn
from agentenv.env import group_rewards
from agentenv.errors import DeadlineExceeded, ToolError, UsageError
from agentenv.random_arguments import random_arguments
from agentenv.tool import as_tool


class Echo(AgentEnv):
    """Says everything back until it hears `bye`."""

    inline = True

    def setup(self, rng, task):
        self.number = int(rng.integers(10**9))
        self.num_polite = 0
        return task.text or f"Say something about {self.number}."

    def respond(self, text):
        self.last_text = text
        self.num_polite += "please" in text
        if text == "bye":
            self.finish()
            return ""
        return f"you said {text}"

    @reward(when="turn", weight=0.5)
    def polite(self):
        return "please" in self.last_text

    @reward
    def total(self):
        return self.num_polite


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


def calls(*names_and_arguments):
    made = [
        ToolCall(call_id=f"c{i}", name=name, arguments=arguments)
        for i, (name, arguments) in enumerate(names_and_arguments)
    ]
    return Message(role="assistant", content="", tool_calls=tuple(made)).to_dict()


# episodes


def test_an_episode_of_text_goes_back_and_forth_until_it_is_finished():
    env = Echo(max_turns=9)
    env.reset(seed=1)

    assert env.step("one")[:4] == ("you said one", 0.0, False, False)
    assert env.step("please")[:4] == ("you said please", 0.5, False, False)
    observation, value, terminated, truncated, info = env.step("bye")
    assert (observation, value, terminated, truncated) == ("", 1.0, True, False)
    assert info == {"messages": (), "reward_components": {"polite": 0.0, "total": 1.0}, "stop_reason": "completed"}


def test_the_turn_limit_truncates_and_still_scores():
    env = Echo(max_turns=2)
    env.reset(seed=1)
    env.step("please")
    observation, value, terminated, truncated, info = env.step("please")

    assert (observation, value, terminated, truncated) == ("you said please", 2.5, False, True)
    assert info["stop_reason"] == "max_turns"


def test_finishing_on_the_last_turn_is_a_termination():
    env = Echo(max_turns=1)
    env.reset(seed=1)
    assert env.step("bye")[2:4] == (True, False)


def test_truncation_from_outside_scores_the_episode():
    env = Echo()
    env.reset(seed=1)
    env.step("please")
    observation, value, terminated, truncated, info = env.truncate(StopReason.CONTEXT_OVERFLOW)
    assert (observation, value, terminated, truncated) == ("", 1.0, False, True)
    assert info["stop_reason"] == "context_overflow"


def test_the_observation_is_the_new_text_only():
    class Two(AgentEnv):
        def setup(self, rng, task):
            return [{"role": "system", "content": "Be kind."}, Message(role="user", content="Hello.")]

        def respond(self, text):
            return [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]

    env = Two()
    assert env.reset(seed=0)[0] == "Be kind.\nHello."
    assert env.step("x")[0] == "a\nb"
    assert [m.content for m in env.conversation] == ["Be kind.", "Hello.", "x", "a", "b"]


def test_the_same_seed_gives_the_same_episode_and_unseeded_resets_continue_it():
    def three(env):
        return [env.reset(seed=7), env.reset(), env.reset()]

    used = Echo()
    used.reset(seed=1)
    used.step("x")
    assert three(used) == three(Echo())
    first, second, third = (observation for observation, _ in three(Echo()))
    assert len({first, second, third}) == 3


def test_train_and_test_differ_under_one_seed():
    assert Echo(split="train").reset(seed=3) != Echo(split="test").reset(seed=3)


def test_a_given_task_replaces_the_sampled_one():
    env = Echo()
    assert env.reset(seed=0, options={"task": {"prompt": "Täsk 漢"}})[0] == "Täsk 漢"
    assert env.reset(seed=0, options={"task": Task(task_id="7", prompt=(Message(role="user", content="x"),))})[0] == "x"
    assert env.task.task_id == "7"
    with pytest.raises(UsageError, match=r'options\["task"\] is str'):
        env.reset(options={"task": "text"})


def test_rendering_shows_the_conversation_with_its_calls():
    env = Desk(render_mode="ansi")
    env.reset(seed=0)
    env.step(calls(("note", {"text": "ü"})))
    assert env.render() == '[user] Work.\n[assistant] note({"text": "\\u00fc"})\n[tool] noted ü'
    assert Desk().render() is None


@pytest.mark.parametrize("options", [{"max_turns": 0}, {"split": "dev"}])
def test_wrong_options_are_refused(options):
    with pytest.raises(UsageError):
        Echo(**options)


# hooks of every kind


def test_asynchronous_hooks_work_from_synchronous_code_and_inside_a_loop():
    class Later(ToolEnv):
        async def setup(self, rng, task):
            self.loop = asyncio.get_running_loop()
            return "go"

        @tool
        async def look(self) -> str:
            """Look."""
            assert asyncio.get_running_loop() is self.loop
            await asyncio.sleep(0)
            return "seen"

        async def answer(self, text):
            self.finish()
            return ""

        async def teardown(self):
            self.is_torn_down = True

        @reward
        async def done(self):
            await asyncio.sleep(0)
            return 1

    def play():
        env = Later()
        env.reset(seed=0)
        observation = env.step(calls(("look", {})))[0]
        value = env.step("bye")[1]
        env.close()
        return observation, value, env.is_torn_down

    async def inside():
        return play()

    assert play() == ("seen", 1.0, True)
    assert asyncio.run(inside()) == ("seen", 1.0, True)


def test_hooks_that_promise_nothing_run_on_threads():
    class Slow(AgentEnv):
        def setup(self, rng, task):
            self.thread = threading.get_ident()
            return "go"

    env = Slow()
    env.reset(seed=0)
    assert env.thread != threading.get_ident()


def test_a_hanging_hook_meets_its_deadline():
    let_go = threading.Event()

    class Hang(AgentEnv):
        def setup(self, rng, task):
            let_go.wait(10)
            return "go"

    started = time.perf_counter()
    with pytest.raises(DeadlineExceeded, match=r"env failure in Hang.setup: no answer within 0.05 s") as raised:
        Hang(hook_timeout_s=0.05).reset(seed=0)
    assert time.perf_counter() - started < 2
    assert raised.value.side == "env"
    let_go.set()


# tools


def test_calls_are_answered_in_order_with_their_ids():
    env = Desk()
    env.reset(seed=0)
    *_, info = env.step(calls(("note", {"text": "a"}), ("refuse", {}), ("nothing", {})))

    assert [(m["tool_call_id"], m["content"].split(".")[0]) for m in info["messages"]] == [
        ("c0", "noted a"),
        ("c1", "Error: no"),
        ("c2", 'Error: unknown tool "nothing"'),
    ]


def test_calls_written_as_text_are_played_with_ids_that_differ_by_turn():
    env = Desk()
    env.reset(seed=0)
    turn = '<tool_call>{"name": "note", "arguments": {"text": "漢"}}</tool_call>'
    *_, first = env.step(turn)
    *_, second = env.step(turn)

    assert first["messages"][0]["content"] == "noted 漢"
    assert first["messages"][0]["tool_call_id"] != second["messages"][0]["tool_call_id"]


def test_too_many_calls_in_one_turn_are_not_run_and_the_model_is_told():
    env = Desk()
    env.reset(seed=0)
    *_, info = env.step(calls(*[("note", {"text": str(i)}) for i in range(10)]))

    assert env.calls == [str(i) for i in range(8)]
    assert [m["content"] for m in info["messages"][8:]] == [
        "Error: not run; at most 8 tool calls are allowed in one turn."
    ] * 2


def test_a_turn_cannot_go_on_after_one_of_its_calls_ended_the_episode():
    env = Desk()
    env.reset(seed=0)
    _, value, terminated, _, info = env.step(calls(("close_desk", {}), ("note", {"text": "late"})))

    assert (value, terminated, info["stop_reason"]) == (0.0, True, "tool_stopped")
    assert "an earlier call of this turn ended the episode" in info["messages"][1]["content"]


def test_a_turn_without_a_call_is_the_final_answer():
    env = Desk()
    env.reset(seed=0)
    _, _, terminated, _, info = env.step("I am done.")
    assert (terminated, info["stop_reason"]) == (True, "completed")


def test_malformed_turns_in_a_row_end_the_episode_as_a_parse_error():
    env = Desk()
    env.reset(seed=0)
    bad, good = "<tool_call>{oops</tool_call>", '<tool_call>{"name": "note", "arguments": {"text": "a"}}</tool_call>'

    for turn in (bad, bad, good, bad, bad):  # a good call begins the count anew
        assert env.step(turn)[2:4] == (False, False)
    _, value, terminated, truncated, info = env.step(bad)
    assert (value, terminated, truncated) == (1.0, False, True)
    assert info["stop_reason"] == "parse_error"


async def test_a_step_counts_the_malformed_calls_of_its_turn():
    env = Desk()
    await env.reset_async(seed=0)
    step = await env.step_async(env.read_action('<tool_call>{</tool_call><tool_call>{"name": "refuse"}</tool_call>'))
    assert step.num_malformed_calls == 1


def test_tools_of_one_task_are_not_seen_by_the_next():
    @tool(inline=True)
    def extra() -> str:
        """More."""
        return "more"

    class Varied(Desk):
        def setup(self, rng, task):
            if task.task_id == "wide":
                self.use_tools([as_tool(extra), as_tool(self.note)])
            return super().setup(rng, task)

    def names(env):
        return list(env.toolbox.tools)

    env = Varied()
    env.reset(seed=0, options={"task": Task(task_id="wide")})
    assert names(env) == ["extra", "note"]
    assert env.step(calls(("extra", {})))[0] == "more"
    env.reset(seed=0)
    assert names(env) == ["note", "close_desk", "refuse"]


def test_random_arguments_fit_the_schema():
    schema = {
        "properties": {
            "n": {"type": "integer", "minimum": 3, "maximum": 3},
            "x": {"type": "number"},
            "b": {"type": "boolean"},
            "kind": {"enum": ["only"]},
            "tags": {"type": "array", "items": {"type": "integer"}},
            "inner": {"type": "object", "properties": {"s": {"type": "string"}}},
        }
    }
    drawn: dict[str, Any] = random_arguments(schema, np.random.default_rng(0))
    assert (drawn["n"], drawn["kind"], type(drawn["x"]), type(drawn["b"])) == (3, "only", float, bool)
    assert all(isinstance(tag, int) for tag in drawn["tags"])
    assert isinstance(drawn["inner"]["s"], str)


def test_the_random_policy_of_an_environment_without_tools_still_speaks():
    class Mute(ToolEnv):
        pass

    assert isinstance(Mute().random_action(np.random.default_rng(0)), str)


def test_group_components_are_kept_apart_from_those_of_an_episode():
    class Best(Desk):
        @staticmethod
        @reward(when="group")
        def best(group):
            return [0.0 for _ in group]

    assert [c.name for c in group_rewards(Best)] == ["best"]
    env = Best()
    assert list(env.reset(seed=0)[1]["reward_components"]) == ["num_notes"]


# Gymnasium around it


def test_the_wrappers_of_gymnasium_go_around_it():
    env = gymnasium.make("agentenv/GuessNumber-v0", max_episode_steps=2)
    env = gymnasium.wrappers.RecordEpisodeStatistics(env)
    env.reset(seed=0)
    miss = getattr(env.unwrapped, "secret") % 15 + 1  # noqa: B009
    turn = tool_turn("guess", {"number": miss}).to_dict()
    assert env.step(turn)[2:4] == (False, False)
    *_, terminated, truncated, info = env.step(turn)
    assert (terminated, truncated) == (False, True)
    assert info["episode"]["l"] == 2
