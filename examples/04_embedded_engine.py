"""Serve a model in process: a small random Qwen3 plays several episodes at once through the embedded engine.

    python examples/04_embedded_engine.py        # needs agentenv[train]

A random model writes nonsense, and the environment answers it: that is the loop as it stands before any training.
"""

from __future__ import annotations

import asyncio
import time

from agentenv import Trajectory
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.hf import HFEngine, HFEngineConfig
from agentenv.episode import Limits
from agentenv.renderer import Renderer
from agentenv.runner import GroupSpec, Runner, RunnerConfig
from agentenv.trainers.tiny import make_tiny_model

NUM_EPISODES = 8


async def play(seed: int) -> list[Trajectory]:
    """Play episodes with a fresh engine; the sampling seeds derive from `seed`."""
    tokenizer = byte_tokenizer()
    model = make_tiny_model(tokenizer.vocab_size, seed=0, hidden_size=32, num_layers=2, num_heads=2)
    engine = HFEngine(model, config=HFEngineConfig(max_slots=NUM_EPISODES, max_length=2048))
    runner = Runner(
        engine=engine,
        renderer=Renderer(tokenizer, family="qwen3"),
        config=RunnerConfig(limits=Limits(max_turn_tokens=24, max_episode_tokens=96, max_context_tokens=2048)),
    )
    specs = [
        GroupSpec(group_id=str(index), env_id="agentenv/GuessNumber-v0", seed=index, run_seed=seed)
        for index in range(NUM_EPISODES)
    ]
    try:
        return [group.trajectories[0] for group in await runner.run_all(specs)]
    finally:
        await engine.close()


async def main() -> None:
    """Play twice with one seed and once with another."""
    started = time.perf_counter()
    first = await play(seed=0)
    seconds = time.perf_counter() - started
    for trajectory in first[:4]:
        written = sum(turn.num_tokens for turn in trajectory.turns)
        said = next(m.content for m in trajectory.messages if m.role == "assistant")
        print(f"episode {trajectory.group_id}: {len(trajectory.turns)} turns, {written} tokens, {said[:30]!r}")
    sampled = sum(trajectory.num_sampled_tokens for trajectory in first)
    print(f"{NUM_EPISODES} episodes at once: {sampled} tokens in {seconds:.2f} s, {sampled / seconds:.0f} tokens/s")

    again, other = await play(seed=0), await play(seed=1)
    print(f"same seed, same tokens: {ids_of(first) == ids_of(again)}")
    print(f"other seed, same tokens: {ids_of(first) == ids_of(other)}")


def ids_of(trajectories: list[Trajectory]) -> list[list[int]]:
    """Return the token ids of every episode."""
    return [trajectory.sequences[0].token_ids.tolist() for trajectory in trajectories]


if __name__ == "__main__":
    asyncio.run(main())
