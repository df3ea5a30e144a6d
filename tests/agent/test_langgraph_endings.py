"""However a graph ends, fails, hangs or oversteps, its episode ends with the right status and nothing is lost."""

import asyncio
import threading
import time
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import interrupt
from typing_extensions import TypedDict

from agentenv import ToolEnv, tool
from agentenv.agent.langgraph import LangGraphAgent, react_graph
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.episode import EpisodeSpec
from agentenv.errors import UsageError
from agentenv.runner import Runner, RunnerConfig
from agentenv.trajectory import StopReason
from tests.agent.graph_plays import (
    GUESS,
    RENDERER,
    SECRET,
    WIDE,
    assert_is_exact,
    guessed,
    line,
    play,
    recorded,
    said,
    seen,
    speaking,
)

# The episode ends the graph.


async def test_a_tool_that_ends_the_episode_ends_the_graph_at_once():
    after: list[str] = []

    def build(model, tools):
        node = ToolNode(tools)

        async def act(state: MessagesState):
            return await node.ainvoke(state)

        async def later(state: MessagesState):
            after.append("ran")

        return line(speaking(model, tools), act, later)

    trajectory, engine = await play([guessed(SECRET)], build)

    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)
    assert after == []
    assert_is_exact(trajectory, engine)


async def test_a_branch_that_still_waits_is_cancelled_when_another_ends_the_episode():
    ended: list[str] = []

    def build(model, tools):
        speaker = model.bind_tools(tools)

        async def finds(state: MessagesState):
            found = await speaker.ainvoke(state["messages"])
            return await ToolNode(tools).ainvoke({"messages": [found]})

        async def waits(state: MessagesState):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        graph = StateGraph(MessagesState)
        graph.add_node("finds", finds)
        graph.add_node("waits", waits)
        graph.add_edge(START, "finds")
        graph.add_edge(START, "waits")
        return graph.compile()

    started = time.monotonic()
    trajectory, _ = await play([guessed(SECRET)], build)

    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)
    assert ended == ["cancelled"]
    assert time.monotonic() - started < 20


async def test_a_graph_that_swallows_every_error_cannot_go_on_after_the_end():
    def build(model, tools):
        speaker = model.bind_tools(tools)
        node = ToolNode(tools, handle_tool_errors=True)

        async def forever(state: MessagesState):
            messages: list[Any] = list(state["messages"])
            while True:
                try:
                    messages.append(await speaker.ainvoke(messages))
                    messages += (await node.ainvoke({"messages": messages}))["messages"]
                except Exception:
                    continue

        return line(forever)

    trajectory, engine = await play([guessed(8), guessed(SECRET)], build)

    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)
    assert len(engine.exchanges) == 2


async def test_a_graph_that_runs_tools_in_a_tight_loop_after_the_end_holds_nobody_up():
    def build(model, tools):
        async def forever(state: MessagesState):
            last: Any = state["messages"][-1]
            while True:
                try:
                    await tools[0].ainvoke(last.tool_calls[0])
                except Exception:
                    continue

        return line(speaking(model, tools), forever)

    trajectory, _ = await play([guessed(SECRET)], build)

    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)


# Errors of the graph.


async def test_an_error_in_a_node_fails_the_episode_and_names_the_node():
    def build(model, tools):
        async def solve(state: MessagesState):
            raise KeyError("no such plan")

        return line(speaking(model, tools), solve)

    trajectory, engine = await play([guessed(8)], build)

    assert trajectory.stop_reason is StopReason.ENV_ERROR
    assert "node 'solve': KeyError: 'no such plan'" in trajectory.error
    assert not trajectory.is_scored
    assert recorded(trajectory) == seen(engine)  # what was sampled is not lost


async def test_an_error_in_a_subgraph_names_the_way_to_it():
    def build(model, tools):
        async def deep(state: MessagesState):
            raise ValueError("oops")

        graph = StateGraph(MessagesState)
        graph.add_node("outer", line(deep))
        graph.add_edge(START, "outer")
        return graph.compile()

    trajectory, _ = await play([guessed(8)], build)

    assert "node 'outer' > 'deep': ValueError: oops" in trajectory.error


async def test_a_synchronous_call_in_an_async_node_is_explained():
    def build(model, tools):
        async def speak(state: MessagesState):
            return {"messages": model.invoke(state["messages"])}

        return line(speak)

    trajectory, _ = await play([said("Hi.")], build)

    assert "node 'speak': UsageError: a synchronous call" in trajectory.error
    assert "await ainvoke" in trajectory.error


async def test_a_graph_that_fails_sometimes_is_played_again():
    fails = iter([True, False])

    def build(model, tools):
        async def shaky(state: MessagesState):
            if next(fails):
                raise OSError("no disk")

        graph = StateGraph(MessagesState)
        graph.add_node("shaky", shaky)
        graph.add_node("worker", react_graph(model, tools))
        graph.add_edge(START, "shaky")
        graph.add_edge("shaky", "worker")
        return graph.compile()

    runner = Runner(
        engine=ScriptedEngine([guessed(SECRET)]),
        renderer=RENDERER,
        agent=LangGraphAgent(build),
        config=RunnerConfig(limits=WIDE, max_retries=1),
    )
    trajectory = await runner.run_episode(EpisodeSpec(env_id=GUESS, seed=6))

    assert (trajectory.stop_reason, trajectory.attempt, trajectory.reward) == (StopReason.TOOL_STOPPED, 1, 1.0)


async def test_a_graph_that_waits_for_a_person_fails_with_the_reason():
    def build(model, tools):
        async def ask(state: MessagesState):
            interrupt("may I?")

        graph = StateGraph(MessagesState)
        graph.add_node("ask", ask)
        graph.add_edge(START, "ask")
        from langgraph.checkpoint.memory import InMemorySaver

        return graph.compile(checkpointer=InMemorySaver())

    trajectory, _ = await play([said("Hi.")], build)

    assert trajectory.stop_reason is StopReason.ENV_ERROR
    assert "waits for a person" in trajectory.error


class _Plan(TypedDict):
    plan: str


async def test_a_graph_without_messages_is_refused():
    def build(model, tools):
        async def think(state: _Plan):
            return {"plan": "none"}

        return line(think, state=_Plan)

    trajectory, _ = await play([said("Hi.")], build)

    assert trajectory.stop_reason is StopReason.ENV_ERROR
    assert "messages" in trajectory.error


@pytest.mark.parametrize("ending", [HumanMessage("Hm."), None], ids=["human", "unchanged"])
async def test_a_run_that_neither_plays_nor_answers_is_an_error_and_no_endless_loop(ending):
    def build(model, tools):
        async def nothing(state: MessagesState):
            return {"messages": [] if ending is None else [ending]}

        return line(nothing)

    trajectory, _ = await play([said("Hi.")], build)

    assert trajectory.stop_reason is StopReason.ENV_ERROR
    assert "without an answer" in trajectory.error


async def test_an_answer_without_any_turn_of_the_model_is_an_error():
    def build(model, tools):
        async def canned(state: MessagesState):
            return {"messages": AIMessage("42")}

        return line(canned)

    trajectory, _ = await play([said("Hi.")], build)

    assert "before the model took a turn" in trajectory.error


# Failures of a side: the graph cannot hide them.


class Fragile(ToolEnv):
    """Breaks in the middle of a tool."""

    inline = True

    def setup(self, rng, task):
        return "go"

    @tool
    def guess(self, number: int) -> str:
        """Guess.

        Args:
            number: any.
        """
        raise OSError("no database")


def careless(model, tools):
    """Shows every error to the model and goes on."""
    speaker = model.bind_tools(tools)

    async def speak(state: MessagesState):
        try:
            return {"messages": await speaker.ainvoke(state["messages"])}
        except Exception as error:
            return {"messages": AIMessage(f"It failed: {error}")}

    graph = StateGraph(MessagesState)
    graph.add_node("speak", speak)
    graph.add_node("tools", ToolNode(tools, handle_tool_errors=True))
    graph.add_edge(START, "speak")
    graph.add_conditional_edges("speak", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "speak")
    return graph.compile()


@pytest.mark.parametrize("build", [react_graph, careless])
async def test_a_tool_of_the_environment_that_breaks_is_a_tool_error(build):
    trajectory, _ = await play([guessed(1)], build, make_env=lambda spec: Fragile())

    assert trajectory.stop_reason is StopReason.TOOL_ERROR
    assert "OSError: no database" in trajectory.error


@pytest.mark.parametrize("build", [react_graph, careless])
async def test_an_engine_that_fails_is_an_engine_error(build):
    trajectory, _ = await play([guessed(1)], build, faults=Faults(fail_every=2))

    assert trajectory.stop_reason is StopReason.ENGINE_ERROR
    assert len(trajectory.turns) == 1


# Budgets and deadlines.


async def test_a_graph_that_runs_in_circles_is_truncated_by_its_recursion_limit():
    def build(model, tools):
        speaker = model.bind_tools(tools)

        async def speak(state: MessagesState):
            await speaker.ainvoke(state["messages"])

        graph = StateGraph(MessagesState)
        graph.add_node("speak", speak)
        graph.add_edge(START, "speak")
        graph.add_edge("speak", "speak")
        return graph.compile()

    trajectory, engine = await play([said("Hm.")], build, recursion_limit=5)

    assert (trajectory.stop_reason, trajectory.error, trajectory.reward) == (StopReason.MAX_TURNS, "", 0.0)
    assert trajectory.is_scored
    assert len(engine.exchanges) == 5
    assert_is_exact(trajectory, engine)


async def test_the_turns_of_the_environment_are_counted_by_the_environment():
    trajectory, _ = await play([guessed(1)], env_kwargs={"max_guesses": 8, "max_turns": 3})

    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert len(trajectory.turns) == 3


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"max_episode_tokens": 100}, StopReason.MAX_TOKENS), ({"max_context_tokens": 700}, StopReason.CONTEXT_OVERFLOW)],
)
async def test_a_budget_that_is_used_up_truncates_the_episode_as_it_does_for_the_chat_agent(limits, reason):
    from agentenv.agent.chat import ChatAgent

    limits = WIDE.model_copy(update=limits)
    chat, _ = await play([guessed(1)], agent=ChatAgent(), limits=limits)
    graph, engine = await play([guessed(1)], limits=limits)

    assert (graph.stop_reason, graph.error, graph.reward) == (chat.stop_reason, chat.error, chat.reward)
    assert graph.stop_reason is reason
    assert graph.turns == chat.turns
    assert_is_exact(graph, engine)


@pytest.mark.parametrize("num_cut", [0, 3], ids=["whole", "cut"])
async def test_a_graph_may_answer_with_what_it_has_when_a_budget_is_used_up(num_cut):
    limits = WIDE.model_copy(update={"max_episode_tokens": len(guessed(8)) - num_cut})
    trajectory, _ = await play([guessed(8)], careless, limits=limits)

    # the composed answer was played: the environment took it as the end
    assert (trajectory.stop_reason, trajectory.error) == (StopReason.COMPLETED, "")
    assert trajectory.messages[-1].content.startswith("It failed: the episode's budget is used up (max_tokens)")


def stubborn(model, tools):
    async def ask(state: MessagesState):
        while True:
            try:
                async for _ in model.astream(
                    state["messages"]
                ):  # unlike ainvoke, it makes no task that lets others run
                    pass
            except Exception:
                continue

    return line(ask)


async def test_a_graph_that_tries_on_with_an_empty_budget_is_truncated():
    trajectory, engine = await play([said("Hm.")], stubborn, limits=WIDE.model_copy(update={"max_episode_tokens": 8}))

    assert (trajectory.stop_reason, trajectory.error) == (StopReason.MAX_TOKENS, "")
    assert_is_exact(trajectory, engine)


@pytest.mark.parametrize("options", [{}, {"tool_choice": "any"}], ids=["answered", "refused"])
async def test_a_graph_that_asks_in_a_tight_loop_meets_the_deadline_and_lets_others_run(options):
    limits = WIDE.model_copy(
        update={"episode_timeout_s": 0.3, "max_context_tokens": 10**9, "max_episode_tokens": 10**9}
    )
    others = []

    async def other():
        while True:
            others.append(0)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(other())
    trajectory, _ = await play(
        [said("Hm.")], lambda model, tools: stubborn(model.bind(**options), tools), limits=limits
    )
    task.cancel()

    assert trajectory.stop_reason is StopReason.DEADLINE
    assert len(others) > 3


async def test_an_error_that_wraps_an_empty_budget_is_a_truncation():
    def build(model, tools):
        async def wraps(state: MessagesState):
            try:
                await model.bind(max_tokens=8).ainvoke(state["messages"])
                await model.ainvoke(state["messages"])
            except Exception as error:
                raise RuntimeError("the model is gone") from error

        return line(wraps)

    trajectory, _ = await play([said("Hello there.")], build, limits=WIDE.model_copy(update={"max_episode_tokens": 8}))

    assert (trajectory.stop_reason, trajectory.error) == (StopReason.MAX_TOKENS, "")


async def test_a_graph_that_never_ends_meets_the_deadline():
    def build(model, tools):
        async def waits(state: MessagesState):
            await asyncio.sleep(60)

        return line(speaking(model, tools), waits)

    trajectory, engine = await play([guessed(8)], build, limits=WIDE.model_copy(update={"episode_timeout_s": 0.3}))

    assert trajectory.stop_reason is StopReason.DEADLINE
    assert recorded(trajectory) == seen(engine)


async def test_a_thread_that_waits_for_the_model_is_let_go_at_the_deadline():
    freed = threading.Event()

    def build(model, tools):
        def waits(state: MessagesState):
            try:
                model.invoke(state["messages"])
            finally:
                freed.set()

        return line(waits)

    limits = WIDE.model_copy(update={"episode_timeout_s": 0.3})
    trajectory, _ = await play([said("Hi.")], build, limits=limits, faults=Faults(hang_every=1))

    assert trajectory.stop_reason in (StopReason.DEADLINE, StopReason.ENGINE_ERROR)
    assert await asyncio.to_thread(freed.wait, 10)


# Mistakes of the caller.


def not_compiled(model, tools):
    graph = StateGraph(MessagesState)
    graph.add_node("speak", speaking(model, tools))
    graph.add_edge(START, "speak")
    return graph


@pytest.mark.parametrize("path", ["nowhere", "agentenv.agent.langgraph:reakt_graph", "no.such.module:build", ":x"])
def test_an_import_string_that_leads_nowhere_is_refused(path):
    with pytest.raises(UsageError, match="write module:function"):
        LangGraphAgent(path)


def test_a_builder_must_be_a_function_and_the_recursion_limit_positive():
    with pytest.raises(UsageError, match="build is int"):
        LangGraphAgent(5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="recursion_limit is 0"):
        LangGraphAgent(recursion_limit=0)


async def test_a_graph_that_was_not_compiled_is_the_callers_mistake():
    with pytest.raises(UsageError, match=r"returned StateGraph; return a compiled graph \(graph.compile\(\)\)"):
        await play([said("Hi.")], not_compiled)


async def test_a_builder_is_found_by_its_import_string():
    trajectory, _ = await play([guessed(SECRET)], "agentenv.agent.langgraph:react_graph")

    assert trajectory.reward == 1.0
