"""Graphs train: a small model plays through them with the embedded engine, and the loop updates its weights."""

import asyncio
from pathlib import Path

import pytest
import torch
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from agentenv import make_bare
from agentenv.agent.langgraph import LangGraphAgent, react_graph
from agentenv.agent.policy import PolicyAgent
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.config import load_config
from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.engine.scripted import ScriptedEngine
from agentenv.engine.weights import weights_checksum
from agentenv.renderer import Renderer
from agentenv.runner import GroupSpec, Runner, RunnerConfig
from agentenv.store import TrajectoryStore
from agentenv.tokenizer import wrap_tokenizer
from agentenv.trainers.bad_batch import BadBatches
from agentenv.trainers.checkpoint import CheckpointFolder
from agentenv.trainers.config import AlgorithmConfig, RunConfig
from agentenv.trainers.learner import LocalLearner
from agentenv.trainers.loop import Crew, train
from agentenv.trainers.model import load_policy, named_weights, save_policy
from agentenv.trainers.optimizer import OptimizerConfig
from agentenv.trainers.samples_from import cross_entropy_samples
from agentenv.trainers.tiny import TinyConfig, save_tiny
from agentenv.trainers.worker import UpdatePlan, Worker
from tests.agent.graph_plays import WIDE

ENV_ID = "agentenv/GuessNumber-v0"
NUM_STEPS = 4
NUM_WARM_STEPS = 60
CONFIG = f"""
env: {{id: {ENV_ID}}}
model: {{path: unused}}
engine: {{max_slots: 16, max_length: 256}}
runner: {{limits: {{max_turn_tokens: 24, max_episode_tokens: 256, max_context_tokens: 256}}}}
algorithm: {{advantage: grpo, loss: {{policy: ppo_clip}}}}
trainer:
  num_steps: {NUM_STEPS}
  groups_per_step: 6
  group_size: 4
  optimizer: {{learning_rate: 2e-3}}
evaluation: {{every: 100, num_validation: 8, num_test: 8}}
"""


def demonstrations(renderer, count):
    runner = Runner(
        engine=ScriptedEngine([()]),
        renderer=renderer,
        agent=PolicyAgent("demonstrate"),
        config=RunnerConfig(limits=WIDE),
    )
    specs = [GroupSpec(group_id=str(i), env_id=ENV_ID, seed=10_000 + i) for i in range(count)]
    return [group.trajectories[0] for group in asyncio.run(runner.run_all(specs))]


@pytest.fixture(scope="module")
def warm_folder(tmp_path_factory) -> Path:
    """A small model that has seen some games, so that its episodes differ in reward."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("warm")
    examples = demonstrations(Renderer(byte_tokenizer(), family="qwen3"), 128)
    tools = make_bare(ENV_ID).tool_specs
    tiny = TinyConfig(hidden_size=32, num_heads=2)
    save_tiny(folder / "initial", [t.messages for t in examples], tools=tools, config=tiny, seed=0)
    policy = load_policy(folder / "initial", dtype=torch.float32, device="cpu")
    renderer = Renderer(wrap_tokenizer(policy.tokenizer), family="auto")
    samples = cross_entropy_samples(demonstrations(renderer, 960))
    worker = Worker(policy.model, optimizer=OptimizerConfig(learning_rate=8e-3), algorithm=AlgorithmConfig())
    plan = UpdatePlan(token_budget=8192, num_steps=NUM_WARM_STEPS, seed=0, version=0)
    for step in range(NUM_WARM_STEPS):
        worker.update(samples[step * 16 : step * 16 + 16], plan=plan)
    save_policy(policy, folder / "warm")
    return folder / "warm"


def doubting(model, tools):
    """A branch: a draft that is no call is drawn once more from the same point."""
    speaker = model.bind_tools(tools)

    class State(MessagesState):
        draft: AIMessage
        is_second: bool

    async def draft(state: State):
        answer = await speaker.ainvoke(state["messages"])
        return {"draft": answer, "is_second": "draft" in state and not state["is_second"]}

    def judge(state: State):
        return "accept" if state["draft"].tool_calls or state["is_second"] else "draft"

    async def accept(state: State):
        return {"messages": state["draft"], "is_second": False}

    graph = StateGraph(State)
    for node in (draft, accept):
        graph.add_node(node.__name__, node)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "draft")
    graph.add_conditional_edges("draft", judge, ["draft", "accept"])
    graph.add_conditional_edges("accept", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "draft")
    return graph.compile()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("build", [react_graph, doubting], ids=["react", "branch"])
async def test_a_graph_trains_and_engine_and_trainer_agree_about_its_tokens(build, warm_folder, tmp_path):
    torch.set_num_threads(1)
    (tmp_path / "run.yaml").write_text(CONFIG)
    config = load_config(RunConfig, tmp_path / "run.yaml")
    policy = load_policy(warm_folder, dtype=torch.float32, device="cpu")
    renderer = Renderer(wrap_tokenizer(policy.tokenizer), family="auto")
    worker = Worker(policy.model, optimizer=config.trainer.optimizer, algorithm=config.algorithm)
    assert isinstance(config.engine, HFEngineConfig)
    engine = HFEngine(policy.model.causal_lm, config=config.engine, version=0)
    runner = Runner(engine=engine, renderer=renderer, agent=LangGraphAgent(build), config=config.runner)
    store = TrajectoryStore(tmp_path / "trajectories")
    checkpoints = CheckpointFolder(tmp_path / "checkpoints", keep=1)
    logged: list[dict[str, float]] = []
    before = weights_checksum(named_weights(policy.model))
    try:
        crew = Crew(
            config=config,
            learner=LocalLearner(worker),
            engine=engine,
            runner=runner,
            referee=runner,
            store=store,
            checkpoints=checkpoints,
            log=lambda metrics, step: logged.append(metrics),
            told=lambda metrics: None,
            guard=BadBatches(tmp_path / "bad_batches", limit=3),
        )
        progress = await train(crew)
        served = await engine.health()
    finally:
        await engine.close()

    assert progress.step == served.version == NUM_STEPS
    assert weights_checksum(named_weights(policy.model)) != before
    assert all(metrics["mismatch/k3"] < 1e-6 for metrics in logged)
    assert max(metrics["train/grad_norm"] for metrics in logged) > 0
    played = [stored.trajectory for stored in store.scan(phase="rl")]
    assert {t.error for t in played} == {""}
    assert {span.version for t in played for turn in t.turns for span in turn.weight_versions} == set(range(NUM_STEPS))
    assert len({t.reward for t in played}) == 2
    num_sequences = sum(len(t.sequences) for t in played)
    assert num_sequences > len(played) if build is doubting else num_sequences >= len(played)
