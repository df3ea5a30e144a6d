"""LangGraph graphs play episodes: the environment sees turns, the engine token ids, and both are recorded exactly."""

import asyncio
import operator
import warnings
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool as langchain_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from agentenv import AgentEnv
from agentenv.agent.chat import ChatAgent
from agentenv.agent.langgraph import LangGraphAgent, react_graph
from agentenv.engine.scripted import ScriptedEngine
from agentenv.renderer import Renderer
from agentenv.reward import reward
from agentenv.runner import GroupSpec, Runner, RunnerConfig
from agentenv.trainers.samples_from import assign
from agentenv.trajectory import StopReason
from tests.agent.graph_plays import (
    GUESS,
    RENDERER,
    SECRET,
    WIDE,
    assert_is_exact,
    called,
    guessed,
    line,
    play,
    recorded,
    results_of,
    said,
    speaking,
    written,
)

BROKEN = written("<tool_call>{broken")
NAMELESS = written('<tool_call>\n{"arguments": {}}\n</tool_call>')
NO_OBJECT = written('<tool_call>\n{"name": "guess", "arguments": [1]}\n</tool_call>')
UNKNOWN = written('<tool_call>\n{"name": "shout", "arguments": {}}\n</tool_call>')
MIXED = written(
    '<tool_call>\n{"name": "shout", "arguments": {}}\n</tool_call>\n'
    '<tool_call>\n{"name": "guess", "arguments": {"number": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "guess", "arguments": [1]}\n</tool_call>\n'
    '<tool_call>\n{"name": "guess", "arguments": {"number": 3}}\n</tool_call>\n'
    "<tool_call>\n{}\n</tool_call>"
)
SCRIPTS = {
    "found": [guessed(8), guessed(SECRET)],
    "two calls in a turn": [guessed(8, 2), guessed(SECRET)],
    "the first call of three finds it": [guessed(SECRET, 1, 2)],
    "gave up": [guessed(8), said("I do not know.")],
    "malformed and found": [BROKEN, NAMELESS, guessed(9), NO_OBJECT, UNKNOWN, guessed(SECRET)],
    "all kinds in one turn": [MIXED, guessed(SECRET)],
    "malformed to the end": [BROKEN],
    "never found": [guessed(1)],
    "refused arguments": [called("guess", number="many"), called("guess", guess=1), guessed(SECRET)],
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
async def test_a_react_graph_plays_to_the_token_as_the_chat_agent_does(script):
    chat, _ = await play(script, agent=ChatAgent())
    graph, engine = await play(script)

    assert (graph.stop_reason, graph.error, graph.reward) == (chat.stop_reason, chat.error, chat.reward)
    assert recorded(graph) == recorded(chat)
    assert graph.turns == chat.turns
    assert results_of(graph) == results_of(chat)
    assert_is_exact(graph, engine)


async def test_a_word_problem_is_solved_with_the_calculator_and_an_answer():
    from agentenv import make_bare

    env = make_bare("agentenv/Calculator-v0")
    env.reset(seed=5)
    steps, answer = env.problem.steps, env.problem.answer  # type: ignore[attr-defined]
    script = [*(called("calculate", expression=step) for step in steps), said(f"#### {answer}")]

    chat, _ = await play(script, agent=ChatAgent(), env_id="agentenv/Calculator-v0", seed=5)
    graph, _ = await play(script, env_id="agentenv/Calculator-v0", seed=5)

    assert graph.reward == chat.reward == 1.0
    assert recorded(graph) == recorded(chat)
    assert graph.stop_reason is StopReason.COMPLETED


def prebuilt(model, tools):
    from langgraph.prebuilt import create_react_agent

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moved to another package, which also builds such graphs
        return create_react_agent(model, tools)


def only_a_model(model, tools):
    """Nobody in this graph runs tools: the environment does when the graph ends with calls."""
    return line(speaking(model, tools))


def one_step_a_run(model, tools):
    """This graph ends after every tool result, without an answer."""
    speaker = model.bind_tools(tools)

    async def speak(state: MessagesState):
        return {"messages": await speaker.ainvoke(state["messages"])}

    graph = StateGraph(MessagesState)
    graph.add_node("speak", speak)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "speak")
    graph.add_conditional_edges("speak", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", END)
    return graph.compile()


def in_threads(model, tools):
    """Nodes are plain functions, which LangGraph runs in threads."""
    speaker = model.bind_tools(tools)
    node = ToolNode(tools)

    def speak(state: MessagesState):
        return {"messages": speaker.invoke(state["messages"])}

    def act(state: MessagesState):
        return node.invoke(state)

    graph = StateGraph(MessagesState)
    graph.add_node("speak", speak)
    graph.add_node("act", act)
    graph.add_edge(START, "speak")
    graph.add_conditional_edges("speak", tools_condition, {"tools": "act", END: END})
    graph.add_edge("act", "speak")
    return graph.compile()


def streaming(model, tools):
    """The node reads the model's chunks and adds them up."""
    speaker = model.bind_tools(tools)

    async def speak(state: MessagesState):
        total: Any = None
        async for chunk in speaker.astream(state["messages"]):
            total = chunk if total is None else total + chunk
        return {"messages": total}

    graph = StateGraph(MessagesState)
    graph.add_node("speak", speak)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "speak")
    graph.add_conditional_edges("speak", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "speak")
    return graph.compile()


def with_memory(model, tools):
    """State lives in a checkpoint between the runs of an episode."""
    graph = StateGraph(MessagesState)
    graph.add_node("inner", only_a_model(model, tools))
    graph.add_edge(START, "inner")
    return graph.compile(checkpointer=SAVER)


SAVER = InMemorySaver()


@pytest.mark.parametrize("build", [prebuilt, only_a_model, one_step_a_run, in_threads, streaming, with_memory])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
async def test_graphs_of_another_form_play_the_same_episode(build, script):
    chat, _ = await play(script, agent=ChatAgent())
    graph, engine = await play(script, build)

    assert (graph.stop_reason, graph.error, graph.reward) == (chat.stop_reason, chat.error, chat.reward)
    assert recorded(graph) == recorded(chat)
    assert graph.turns == chat.turns
    assert_is_exact(graph, engine)


async def test_template_families_keep_their_ids_too(any_renderer: Renderer):
    turns = [any_renderer.turn_ids(t) for t in (_turn(8), _turn(SECRET))]
    ends = []
    for agent in (ChatAgent(), LangGraphAgent()):
        runner = Runner(
            engine=ScriptedEngine(turns), renderer=any_renderer, agent=agent, config=RunnerConfig(limits=WIDE)
        )
        (trajectory,) = (await runner.run_group(GroupSpec(group_id="0", env_id=GUESS, seed=6))).trajectories
        ends.append((trajectory.reward, recorded(trajectory)))

    assert ends[0] == ends[1]
    assert ends[0][0] == 1.0


def _turn(number):
    from agentenv import tool_turn

    return tool_turn("guess", {"number": number})


# Graphs with branches.


def checked(model, tools):
    """A draft that repeats an earlier guess is thrown away and drawn again, once."""
    speaker = model.bind_tools(tools)

    class State(MessagesState):
        draft: AIMessage
        num_drafts: int

    async def draft(state: State):
        return {
            "draft": await speaker.ainvoke(state["messages"]),
            "num_drafts": state.get("num_drafts", 0) + 1,
        }

    def is_good(state: State):
        told = {c["args"].get("number") for m in state["messages"] if isinstance(m, AIMessage) for c in m.tool_calls}
        repeats = any(call["args"].get("number") in told for call in state["draft"].tool_calls)
        return "draft" if repeats and state["num_drafts"] < 2 else "accept"

    def accept(state: State):
        return {"messages": state["draft"], "num_drafts": 0}

    graph = StateGraph(State)
    graph.add_node("draft", draft)
    graph.add_node("accept", accept)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "draft")
    graph.add_conditional_edges("draft", is_good, ["draft", "accept"])
    graph.add_conditional_edges("accept", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "draft")
    return graph.compile()


async def test_a_rejected_draft_is_a_sequence_of_its_own_and_is_never_played():
    trajectory, engine = await play([guessed(8), guessed(8), guessed(SECRET)], checked)

    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)
    assert_is_exact(trajectory, engine)
    # the rejected draft went on from the first turn; the second draft shares its prompt
    assert [turn.sequence for turn in trajectory.turns] == [0, 0, 1]
    assert trajectory.turns[2].start == trajectory.turns[1].start
    assert [turn.num_tool_calls for turn in trajectory.turns] == [1, 1, 1]
    assert results_of(trajectory)[0].startswith("lower")


def planned(model, tools):
    """A planner without tools writes a plan; a solver with tools reads it."""
    speaker = model.bind_tools(tools)

    class State(MessagesState):
        plan: str

    async def plan(state: State):
        said = await model.ainvoke([SystemMessage("Plan."), *state["messages"]])
        return {"plan": said.content}

    async def solve(state: State):
        return {"messages": await speaker.ainvoke([SystemMessage(state["plan"]), *state["messages"]])}

    def needs_plan(state: State):
        return "solve" if state.get("plan") else "plan"

    graph = StateGraph(State)
    graph.add_node("plan", plan)
    graph.add_node("solve", solve)
    graph.add_node("tools", ToolNode(tools))
    graph.add_conditional_edges(START, needs_plan, ["plan", "solve"])
    graph.add_edge("plan", "solve")
    graph.add_conditional_edges("solve", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "solve")
    return graph.compile()


async def test_planner_and_solver_are_sequences_and_state_outlives_a_run():
    # the malformed turn ends the run; the plan is still known in the next one
    trajectory, engine = await play([said("Halve."), guessed(8), BROKEN, guessed(SECRET)], planned)

    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)
    assert_is_exact(trajectory, engine)
    assert [turn.sequence for turn in trajectory.turns] == [0, 1, 1, 1]
    assert "Halve." in RENDERER.decode(engine.exchanges[1].request.prompt_ids)
    assert "guess" not in RENDERER.decode(engine.exchanges[0].request.prompt_ids).split("Guess my number")[0]


def twice_at_once(model, tools):
    """Two branches speak at the same time; the higher guess is played."""
    speaker = model.bind_tools(tools)

    class State(MessagesState):
        drafts: Annotated[list[AIMessage], operator.add]

    async def left(state: State):
        return {"drafts": [await speaker.ainvoke(state["messages"])]}

    async def right(state: State):
        return {"drafts": [await speaker.ainvoke(state["messages"])]}

    def join(state: State):
        return {"messages": max(state["drafts"][-2:], key=lambda draft: draft.tool_calls[0]["args"]["number"])}

    graph = StateGraph(State)
    for node in (left, right, join):
        graph.add_node(node.__name__, node)
    graph.add_node("tools", ToolNode(tools))
    for name in ("left", "right"):
        graph.add_edge(START, name)
        graph.add_edge("tools", name)
    graph.add_edge(["left", "right"], "join")
    graph.add_edge("join", "tools")
    return graph.compile()


async def test_branches_that_speak_at_once_are_sequences_of_their_own():
    numbers = iter([1, 2, 3, SECRET])
    trajectory, engine = await play(lambda request: guessed(next(numbers)), twice_at_once, latency_s=0.01)

    assert trajectory.error == ""
    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)
    assert_is_exact(trajectory, engine)
    assert len(trajectory.sequences) == 3  # the branch that won goes on, the others end
    assert results_of(trajectory) == ["higher 3 15", "correct"]


def nested(model, tools):
    """A whole agent is a node of another graph."""

    async def brief(state: MessagesState):
        return {"messages": SystemMessage("Guess.")}

    graph = StateGraph(MessagesState)
    graph.add_node("brief", brief)
    graph.add_node("worker", react_graph(model, tools))
    graph.add_edge(START, "brief")
    graph.add_edge("brief", "worker")
    return graph.compile()


async def test_a_subgraph_plays_and_its_end_ends_the_outer_graph():
    trajectory, engine = await play([guessed(8), guessed(SECRET)], nested)

    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)
    assert len(trajectory.sequences) == 1
    assert_is_exact(trajectory, engine)


def with_own_tool(model, tools):
    """The graph has a tool that the environment does not know."""

    @langchain_tool
    def remember(text: str) -> str:
        """Remember a text."""
        return f"remembered {text}"

    return react_graph(model, [*tools, remember])


async def test_tools_of_the_graph_itself_never_reach_the_environment():
    both = written(
        '<tool_call>\n{"name": "remember", "arguments": {"text": "b"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "guess", "arguments": {"number": 8}}\n</tool_call>'
    )
    trajectory, engine = await play([called("remember", text="a"), both, guessed(SECRET)], with_own_tool)

    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)
    assert len(trajectory.sequences) == 1
    assert_is_exact(trajectory, engine)
    prompt = RENDERER.decode(engine.exchanges[2].request.prompt_ids)
    assert "remembered a" in prompt
    assert "remembered b" in prompt
    assert "unknown tool" not in prompt


class Talk(AgentEnv):
    """Greets for as long as it is greeted. Reward: 1.0 per reply that says hello."""

    inline = True
    said = ""

    def setup(self, rng, task):
        return "hello?"

    def respond(self, text):
        self.said = text
        if text == "bye":
            self.finish()
        return f"you said {text}"

    @reward(when="turn")
    def polite(self) -> float:
        return float(self.said.startswith("hello"))


@pytest.mark.parametrize("build", [react_graph, with_memory], ids=lambda build: build.__name__)
async def test_a_conversation_goes_on_after_every_answer_until_the_environment_ends_it(build):
    script = [said("hello"), said("what?"), said("hello again"), said("bye")]

    chat, _ = await play(script, agent=ChatAgent(), env_id="test/Talk-v0", make_env=lambda spec: Talk())
    graph, engine = await play(script, build, env_id="test/Talk-v0", make_env=lambda spec: Talk())

    assert (graph.stop_reason, graph.error, graph.reward) == (StopReason.COMPLETED, "", 2.0)
    assert [turn.reward for turn in graph.turns] == [1.0, 0.0, 1.0, 0.0]
    assert graph.turns == chat.turns
    assert recorded(graph) == recorded(chat)
    assert_is_exact(graph, engine)


async def test_the_same_memory_keeps_episodes_apart():
    first, _ = await play([guessed(8), guessed(SECRET)], with_memory)
    second, _ = await play([guessed(8), guessed(SECRET)], with_memory)

    assert recorded(first) == recorded(second)


# Many at once, and what training needs.


async def test_one_agent_plays_many_episodes_at_once_without_mixing_them():
    engine = ScriptedEngine(
        lambda request: guessed(1 + (request.sampling.seed or 0) % 15), latency_s=0.005, keep_exchanges=True
    )
    runner = Runner(engine=engine, renderer=RENDERER, agent=LangGraphAgent(), config=RunnerConfig(limits=WIDE))
    chat = Runner(engine=engine, renderer=RENDERER, config=RunnerConfig(limits=WIDE))
    specs = [GroupSpec(group_id=str(i), env_id=GUESS, seed=i, size=4) for i in range(16)]

    async with asyncio.timeout(60):
        groups = await runner.run_all(specs)
    expected = await chat.run_all(specs)

    played = [t for group in groups for t in group.trajectories]
    assert len(played) == 64
    assert [recorded(t) for t in played] == [recorded(t) for group in expected for t in group.trajectories]
    assert [t.reward for t in played] == [t.reward for group in expected for t in group.trajectories]
    assert len({t.reward for t in played}) == 2


async def test_groups_become_samples_with_one_advantage_for_every_branch_of_an_episode():
    numbers = {0: SECRET, 1: 8}  # member 0 finds it at once; member 1 repeats itself and gives up

    def script(request):
        if request.turn == 0:
            return guessed(numbers[sessions.setdefault(request.session_id, len(sessions))])
        return guessed(8) if request.turn == 1 else said("I give up.")

    sessions: dict[str, int] = {}
    runner = Runner(
        engine=ScriptedEngine(script),
        renderer=RENDERER,
        agent=LangGraphAgent(checked),
        config=RunnerConfig(limits=WIDE),
    )
    group = await runner.run_group(GroupSpec(group_id="g", env_id=GUESS, seed=6, size=2))

    samples = assign([group], advantage="grpo", divide_by_std=False)

    assert [t.reward for t in group.trajectories] == [1.0, 0.0]
    assert [sample.sample_id for sample in samples] == ["g/0/0", "g/1/0", "g/1/1"]
    advantages = [set(sample.advantage_T[sample.is_sampled_T].tolist()) for sample in samples]
    assert advantages == [{0.5}, {-0.5}, {-0.5}]
    trained = [int(sample.policy_weight_T.sum()) for sample in samples]
    # the prompt that both drafts share is trained once, where it was sampled
    assert trained == [len(guessed(SECRET)), 2 * len(guessed(8)), len(said("I give up."))]


async def test_a_final_answer_that_the_budget_cut_is_no_answer():
    limits = WIDE.model_copy(update={"max_turn_tokens": 4})

    chat, _ = await play([said("a long answer")], agent=ChatAgent(), limits=limits)
    graph, _ = await play([said("a long answer")], limits=limits)

    assert graph.stop_reason is chat.stop_reason is StopReason.MAX_TOKENS


async def test_the_user_message_of_an_episode_reaches_the_graph_as_a_human_message():
    found = []

    def build(model, tools):
        async def look(state: MessagesState):
            found.extend(state["messages"])

        return line(look, speaking(model, tools))

    await play([said("done")], build)

    (message,) = found
    assert isinstance(message, HumanMessage)
    assert message.content == "Guess my number from 1 to 15 in 8 guesses."
