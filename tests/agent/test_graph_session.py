"""The environment plays each turn once, in order, whatever a graph does with the calls of the model."""

import asyncio
from typing import Any

from langchain_core.messages import AIMessage, RemoveMessage
from langchain_core.tools import tool as langchain_tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from agentenv import ToolEnv, tool
from agentenv.agent.langgraph import react_graph
from agentenv.messages import Message, ToolCall
from agentenv.reward import reward
from agentenv.trajectory import StopReason
from tests.agent.graph_plays import (
    RENDERER,
    SECRET,
    WIDE,
    assert_is_exact,
    guessed,
    line,
    play,
    recorded,
    results_of,
    said,
    seen,
    speaking,
)


class Counter(ToolEnv):
    """Adds up what it is given. Reward: the number that a call adds, per turn."""

    inline = True

    def setup(self, rng, task):
        self.added, self.played = 0, []
        return "add"

    @tool
    def guess(self, number: int) -> str:
        """Add.

        Args:
            number: what to add.
        """
        self.added += number
        self.played.append(number)
        return f"sum {sum(self.played)}"

    @reward(when="turn")
    def gain(self) -> float:
        added, self.added = self.added, 0
        return float(added)


class Single(Counter):
    """Runs one call of a turn at most."""

    max_parallel_calls = 1


async def test_the_environment_is_not_asked_to_play_a_call_of_a_tool_that_only_the_graph_has():
    def build(model, tools):
        @langchain_tool
        def remember(text: str) -> str:
            """Remember a text."""
            return f"remembered {text}"

        return react_graph(model, [remember, *tools])

    calls = (
        ToolCall(call_id="?", name="remember", arguments={"text": "a"}),
        ToolCall(call_id="?", name="guess", arguments={"number": 8}),
    )
    both = RENDERER.turn_ids(Message(role="assistant", content="", tool_calls=calls))
    trajectory, engine = await play([both, said("done")], build, make_env=lambda spec: Single())

    assert results_of(trajectory) == ["remembered a", "sum 8"]
    assert [turn.reward for turn in trajectory.turns] == [8.0, 0.0]
    assert_is_exact(trajectory, engine)


def acting(change):
    """Return a builder of a graph that lets the model speak once, then runs what `change` makes of its message."""

    def build(model, tools):
        async def act(state: MessagesState):
            spoken: Any = state["messages"][-1]
            results = [await tools[0].ainvoke(call) for call in change(spoken.tool_calls)]
            answer = AIMessage(" / ".join(getattr(result, "content", result) for result in results))
            return {"messages": [*(r for r in results if not isinstance(r, str)), answer]}

        return line(speaking(model, tools), act)

    return build


async def test_a_call_that_is_run_twice_is_played_once():
    trajectory, _ = await play([guessed(5)], acting(lambda calls: [*calls, *calls]), make_env=lambda spec: Counter())

    assert results_of(trajectory) == ["sum 5"]
    assert trajectory.messages[-1].content == "sum 5 / sum 5"
    assert trajectory.reward == 5.0


async def test_calls_of_a_turn_that_are_run_one_after_the_other_are_one_turn():
    trajectory, _ = await play([guessed(5, 7)], acting(lambda calls: calls[::-1]), make_env=lambda spec: Counter())

    assert results_of(trajectory) == ["sum 5", "sum 12"]
    assert trajectory.messages[-1].content == "sum 12 / sum 5"


async def test_a_lonely_call_that_the_graph_changed_is_played_as_given():
    def change(calls):
        return [{**calls[0], "args": {"number": 9}}]

    trajectory, engine = await play([guessed(5)], acting(change), make_env=lambda spec: Counter())

    assert results_of(trajectory) == ["sum 9"]
    assert trajectory.turns[0].reward == 9.0
    assert_is_exact(trajectory, engine)


class Slow(ToolEnv):
    """Takes its time, and notes whether two turns were ever played at once. Reward: 1.0 if not."""

    inline = False

    def setup(self, rng, task):
        self.running, self.most, self.played = 0, 0, 0
        return "go"

    @tool
    async def guess(self, number: int) -> str:
        """Guess.

        Args:
            number: any.
        """
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.1)
        self.running -= 1
        self.played += 1
        return f"played {self.played}"

    @reward
    def was_orderly(self) -> float:
        return float(self.most == 1)


async def test_a_node_that_gives_up_waiting_does_not_stop_the_environment_half_way():
    def build(model, tools):
        async def act(state: MessagesState):
            last: Any = state["messages"][-1]
            if not last.tool_calls:
                return None
            (call,) = last.tool_calls
            try:
                await asyncio.wait_for(tools[0].ainvoke(call), 0.02)
            except TimeoutError:
                return {"messages": await tools[0].ainvoke(call)}
            raise AssertionError("the tool takes longer")

        return line(speaking(model, tools), act)

    trajectory, _ = await play([guessed(1), said("done")], build, make_env=lambda spec: Slow())

    assert (trajectory.stop_reason, trajectory.error, trajectory.reward) == (StopReason.COMPLETED, "", 1.0)
    assert results_of(trajectory) == ["played 1"]


async def test_branches_that_act_at_once_take_turns_in_the_environment():
    def build(model, tools):
        speaker, node = model.bind_tools(tools), ToolNode(tools)

        async def act(state: MessagesState):
            spoken = await speaker.ainvoke(state["messages"])
            return await node.ainvoke({"messages": [spoken]})

        graph = StateGraph(MessagesState)
        for name in ("left", "right"):
            graph.add_node(name, act)
            graph.add_edge(START, name)
        graph.add_node("end", speaking(model, []))
        graph.add_edge(["left", "right"], "end")
        return graph.compile()

    script = [guessed(1), guessed(2), said("done")]
    trajectory, engine = await play(script, build, make_env=lambda spec: Slow())

    assert (trajectory.stop_reason, trajectory.error, trajectory.reward) == (StopReason.COMPLETED, "", 1.0)
    assert len(results_of(trajectory)) == 2
    assert_is_exact(trajectory, engine)


async def test_a_budget_that_ends_one_branch_waits_for_the_turn_that_another_plays():
    def build(model, tools):
        speaker, node = model.bind_tools(tools), ToolNode(tools)

        async def act(state: MessagesState):
            spoken = await speaker.ainvoke(state["messages"])
            return await node.ainvoke({"messages": [spoken]})

        async def ask(state: MessagesState):
            await asyncio.sleep(0.03)  # the tool runs by now
            await model.ainvoke(state["messages"])

        graph = StateGraph(MessagesState)
        for name, part in (("act", act), ("ask", ask)):
            graph.add_node(name, part)
            graph.add_edge(START, name)
        return graph.compile()

    limits = WIDE.model_copy(update={"max_episode_tokens": len(guessed(1))})
    trajectory, _ = await play([guessed(1)], build, make_env=lambda spec: Slow(), limits=limits)

    assert (trajectory.stop_reason, trajectory.error, trajectory.reward) == (StopReason.MAX_TOKENS, "", 1.0)
    assert results_of(trajectory) == ["played 1"]


async def test_a_changed_call_with_siblings_is_refused():
    def change(calls):
        return [calls[0], {**calls[1], "args": {"number": 9}}]

    trajectory, _ = await play([guessed(5, 7)], acting(change), make_env=lambda spec: Counter())

    assert trajectory.stop_reason is StopReason.ENV_ERROR
    assert "the graph changed call call_0_1 of 'guess', one of 2 in its turn" in trajectory.error


async def test_calls_that_the_model_never_wrote_are_played_and_credited_to_its_latest_turn():
    def change(calls):
        return [*calls, {"number": 1}, {"name": "guess", "args": {"number": 2}, "id": "mine", "type": "tool_call"}]

    trajectory, _ = await play([guessed(5)], acting(change), make_env=lambda spec: Counter())

    assert results_of(trajectory) == ["sum 5", "sum 6", "sum 8"]
    assert trajectory.turns[0].reward == 8.0  # 5 + 1 + 2, and nothing for the composed answer
    assert trajectory.turns[0].num_tool_calls == 1


async def test_a_call_before_the_model_said_anything_is_refused():
    def build(model, tools):
        async def act(state: MessagesState):
            await tools[0].ainvoke({"number": 1})

        return line(act)

    trajectory, _ = await play([guessed(5)], build, make_env=lambda spec: Counter())

    assert "ran tool 'guess' before the model took a turn" in trajectory.error


async def test_text_as_arguments_of_a_tool_is_explained():
    def build(model, tools):
        async def act(state: MessagesState):
            await tools[0].ainvoke("1")

        return line(speaking(model, tools), act)

    trajectory, _ = await play([guessed(5)], build, make_env=lambda spec: Counter())

    assert "give its arguments as a dict" in trajectory.error


async def test_calls_that_a_graph_edits_in_its_last_message_are_played_as_it_has_them():
    def build(model, tools):
        async def edit(state: MessagesState):
            last: Any = state["messages"][-1]
            edited = [{**call, "args": {"number": 3}} for call in last.tool_calls]
            return {"messages": AIMessage("", id=last.id, tool_calls=edited)}

        return line(speaking(model, tools), edit)

    trajectory, _ = await play([guessed(5), said("done")], build, make_env=lambda spec: Counter())

    assert results_of(trajectory) == ["sum 3"]
    assert trajectory.turns[0].reward == 3.0


async def test_a_graph_that_forgets_its_history_begins_a_new_sequence():
    def build(model, tools):
        speaker = model.bind_tools(tools)

        async def speak(state: MessagesState):
            opening, rest = state["messages"][0], state["messages"][1:]
            forgotten = [RemoveMessage(id=str(m.id)) for m in rest]
            return {"messages": [*forgotten, await speaker.ainvoke([opening])]}

        graph = StateGraph(MessagesState)
        graph.add_node("speak", speak)
        graph.add_node("tools", ToolNode(tools))
        graph.add_edge(START, "speak")
        graph.add_conditional_edges("speak", tools_condition, {"tools": "tools", END: END})
        graph.add_edge("tools", "speak")
        return graph.compile()

    trajectory, engine = await play([guessed(8), guessed(SECRET)], build)

    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)
    assert recorded(trajectory) == seen(engine)
    assert trajectory.metrics["history_breaks"] == 1.0
