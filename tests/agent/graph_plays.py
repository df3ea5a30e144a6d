"""Plays scripted episodes with graphs, for the tests of the LangGraph agent."""

from collections.abc import Sequence
from typing import Any

from langgraph.graph import END, START, MessagesState, StateGraph

from agentenv.agent.langgraph import LangGraphAgent
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import ScriptedEngine
from agentenv.env import tool_turn
from agentenv.episode import EpisodeSpec, Limits
from agentenv.messages import Message, ToolCall
from agentenv.renderer import Renderer
from agentenv.runner import Runner, RunnerConfig
from agentenv.trajectory import Trajectory

RENDERER = Renderer(byte_tokenizer(), family="qwen3")
WIDE = Limits(max_turn_tokens=512, max_episode_tokens=10**6, max_context_tokens=10**6)
GUESS = "agentenv/GuessNumber-v0"
SECRET = 7  # of GuessNumber with seed 6


def said(text: str) -> tuple[int, ...]:
    return RENDERER.turn_ids(Message(role="assistant", content=text))


def guessed(*numbers: int) -> tuple[int, ...]:
    calls = tuple(ToolCall(call_id="?", name="guess", arguments={"number": n}) for n in numbers)
    return RENDERER.turn_ids(Message(role="assistant", content="", tool_calls=calls))


def called(name: str, **arguments: object) -> tuple[int, ...]:
    return RENDERER.turn_ids(tool_turn(name, arguments))


def written(text: str) -> tuple[int, ...]:
    return tuple(RENDERER.tokenizer.encode(text + "<|im_end|>"))


async def play(
    script: Any,
    build: Any = None,
    *,
    env_id: str = GUESS,
    env_kwargs: dict[str, object] | None = None,
    seed: int = 6,
    limits: Limits = WIDE,
    agent: Any = None,
    recursion_limit: int = 128,
    make_env: Any = None,
    **engine_options: Any,
) -> tuple[Trajectory, ScriptedEngine]:
    """Play one episode, without retries, and return it with the engine that answered."""
    engine = ScriptedEngine(script, keep_exchanges=True, **engine_options)
    if agent is None:
        options = {} if build is None else {"build": build}
        agent = LangGraphAgent(**options, recursion_limit=recursion_limit)
    runner = Runner(
        engine=engine,
        renderer=RENDERER,
        agent=agent,
        config=RunnerConfig(limits=limits, max_retries=0),
        make_env=make_env,
    )
    kwargs = {"max_guesses": 8} if env_kwargs is None and env_id == GUESS else env_kwargs or {}
    trajectory = await runner.run_episode(EpisodeSpec(env_id=env_id, env_kwargs=kwargs, seed=seed))
    return trajectory, engine


def recorded(trajectory: Trajectory) -> list[list[int]]:
    return [sequence.token_ids.tolist() for sequence in trajectory.sequences]


def seen(engine: ScriptedEngine) -> list[list[int]]:
    """Return prompt and completion of every request."""
    return [[*e.request.prompt_ids, *e.completion.token_ids] for e in engine.exchanges]


def assert_is_exact(trajectory: Trajectory, engine: ScriptedEngine) -> None:
    """Every turn stands in its sequence as the engine sampled it, after exactly the ids that the engine saw."""
    exchanges = sorted((list(e.request.prompt_ids), list(e.completion.token_ids)) for e in engine.exchanges)
    turns = []
    for turn in trajectory.turns:
        ids = trajectory.sequences[turn.sequence].token_ids.tolist()
        turns.append((ids[: turn.start], ids[turn.start : turn.end]))
    assert sorted(turns) == exchanges
    assert sum(int(s.is_sampled.sum()) for s in trajectory.sequences) == sum(len(ids) for _, ids in exchanges)


def results_of(trajectory: Trajectory) -> Sequence[str]:
    """Return what the environment said about tool calls."""
    return [message.content for message in trajectory.messages if message.role == "tool"]


def line(*nodes, state: Any = MessagesState):
    """Compile a graph whose nodes run one after the other."""
    graph = StateGraph(state)
    for node in nodes:
        graph.add_node(node.__name__, node)
    for before, after in zip((START, *(n.__name__ for n in nodes)), (*(n.__name__ for n in nodes), END), strict=True):
        graph.add_edge(before, after)
    return graph.compile()


def speaking(model, tools):
    """Return a node in which the model speaks."""
    speaker = model.bind_tools(tools)

    async def speak(state: MessagesState):
        return {"messages": await speaker.ainvoke(state["messages"])}

    return speak
