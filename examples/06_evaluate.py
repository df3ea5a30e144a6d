"""Evaluate policies: success with its interval, cost and format, and pass@k over groups of attempts.

    python examples/06_evaluate.py

The policies are those that every shipped environment brings. A model is measured the same way: leave the agent out, and
pass an engine that serves it.
"""

from __future__ import annotations

import asyncio

from agentenv.agent.policy import POLICIES, PolicyAgent
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import ScriptedEngine
from agentenv.evaluate import evaluate, evaluation_groups, group_pass_at_k
from agentenv.renderer import Renderer
from agentenv.runner import GroupSpec, Runner

ENV_ID = "agentenv/GuessNumber-v0"


async def main() -> None:
    """Play 200 episodes per policy, then 8 attempts at each of 25 tasks."""
    renderer = Renderer(byte_tokenizer(), family="qwen3")
    groups = evaluation_groups(ENV_ID, num_episodes=200, seed=0, env_kwargs={"split": "test"})
    print(f"{'policy':12} {'success':>8} {'95 % interval':>16} {'turns':>6} {'tokens':>7}  endings")
    for name in POLICIES:
        runner = Runner(engine=ScriptedEngine([()]), renderer=renderer, agent=PolicyAgent(name))
        summary, _ = await evaluate(runner, groups, name=name)
        interval = f"{summary.success_low:.3f} to {summary.success_high:.3f}"
        print(
            f"{name:12} {summary.success_rate:8.3f} {interval:>16} {summary.mean_turns:6.2f} "
            f"{summary.mean_sampled_tokens:7.1f}  {dict(summary.stop_reasons)}"
        )

    runner = Runner(engine=ScriptedEngine([()]), renderer=renderer, agent=PolicyAgent("demonstrate"))
    attempts = [GroupSpec(group_id=f"task-{seed}", env_id=ENV_ID, seed=seed, size=8) for seed in range(25)]
    played = await runner.run_all(attempts)
    for k in (1, 2, 4, 8):
        print(f"demonstrate pass@{k}: {group_pass_at_k(played, k=k):.3f}")


if __name__ == "__main__":
    asyncio.run(main())
