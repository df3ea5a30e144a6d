"""Train a LangGraph graph: a graph with a branch plays a group of episodes, and its turns become training samples.

    python examples/07_langgraph.py              # needs agentenv[langgraph,train]

A scripted engine stands in for the policy: it guesses by the sampling seed, so the members of the group differ.
"""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from agentenv import tool_turn
from agentenv.agent.langgraph import LangGraphAgent
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import ScriptedEngine, ScriptedRequest
from agentenv.renderer import Renderer
from agentenv.runner import GroupSpec, Runner
from agentenv.trainers.samples_from import assign

RENDERER = Renderer(byte_tokenizer(), family="qwen3")


class State(MessagesState):
    """The conversation, and a draft that is not part of it yet."""

    draft: AIMessage


def build(model: Any, tools: Any) -> Any:
    """Draft a guess; one that was made before goes back and is drawn again, another one is played."""
    speaker = model.bind_tools(tools)

    async def draft(state: State) -> dict[str, Any]:
        return {"draft": await speaker.ainvoke(state["messages"])}

    def is_new(state: State) -> str:
        made = [call["args"] for m in state["messages"] if isinstance(m, AIMessage) for call in m.tool_calls]
        return "draft" if any(call["args"] in made for call in state["draft"].tool_calls) else "accept"

    def accept(state: State) -> dict[str, Any]:
        return {"messages": [state["draft"]]}

    graph = StateGraph(State)
    graph.add_node("draft", draft)
    graph.add_node("accept", accept)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "draft")
    graph.add_conditional_edges("draft", is_new, ["draft", "accept"])
    graph.add_conditional_edges("accept", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "draft")
    return graph.compile()


def guess(request: ScriptedRequest) -> tuple[int, ...]:
    """Return a call in token ids, as a model would sample it."""
    return RENDERER.turn_ids(tool_turn("guess", {"number": 1 + (request.sampling.seed or 0) % 6}))


async def main() -> None:
    """Play a group of four episodes and show what a trainer gets from it."""
    runner = Runner(engine=ScriptedEngine(guess), renderer=RENDERER, agent=LangGraphAgent(build))
    spec = GroupSpec(group_id="demo", env_id="agentenv/GuessNumber-v0", env_kwargs={"high": 6}, seed=1, size=4)
    group = await runner.run_group(spec)
    for t in group.trajectories:
        parts = f"turns {len(t.turns)}, sequences {len(t.sequences)}, return {t.reward:g}"
        print(f"episode {t.member}: {parts}, stop reason {t.stop_reason}")
    for sample in assign([group], advantage="grpo"):
        advantage = sample.advantage_T[sample.is_sampled_T][0]
        print(f"sample {sample.sample_id}: {int(sample.policy_weight_T.sum())} tokens trained, {advantage:+.2f}")


if __name__ == "__main__":
    asyncio.run(main())
