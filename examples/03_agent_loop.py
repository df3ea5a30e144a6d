"""Run the agent loop with a scripted engine and look at the trajectory token by token.

    python examples/03_agent_loop.py

The scripted engine answers from a list of token ids and implements the same verbs as a real engine, so everything
around it is the real thing: rendering, parsing of tool calls from ids, the environment, the record.
"""

from __future__ import annotations

import asyncio

from agentenv import Message, Trajectory, tool_turn
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import ScriptedEngine
from agentenv.renderer import Renderer
from agentenv.runner import GroupSpec, Runner


def show_tokens(trajectory: Trajectory, renderer: Renderer) -> None:
    """Print the sequence in pieces: what the policy wrote, and what it only read."""
    sequence = trajectory.sequences[0]
    start = 0
    for end in range(1, len(sequence) + 1):
        if end == len(sequence) or sequence.is_sampled[end] != sequence.is_sampled[start]:
            text = renderer.decode(sequence.token_ids[start:end].tolist())
            who = "policy" if sequence.is_sampled[start] else "given "
            logprob = float(sequence.logprobs[start:end].sum())
            print(f"{who} [{start:4}, {end:4})  log-prob {logprob:6.1f}  {text if len(text) < 120 else text[-120:]!r}")
            start = end


async def main() -> None:
    """Play a group of two episodes: both members follow the same script."""
    renderer = Renderer(byte_tokenizer(), family="qwen3")
    turns = (
        tool_turn("guess", {"number": 8}),
        Message(role="assistant", content="<tool_call>{broken"),  # malformed calls are kept, and answered
        tool_turn("guess", {"number": 4}),
    )
    script = [renderer.turn_ids(turn) for turn in turns]
    runner = Runner(engine=ScriptedEngine(script), renderer=renderer)
    group = await runner.run_group(GroupSpec(group_id="demo", env_id="agentenv/GuessNumber-v0", seed=3, size=2))

    trajectory = group.trajectories[0]
    show_tokens(trajectory, renderer)
    for index, turn in enumerate(trajectory.turns):
        print(f"turn {index}: tokens [{turn.start}, {turn.end}), {turn.num_malformed_calls} malformed calls")
        written = tuple(trajectory.sequences[0].token_ids[turn.start : turn.end].tolist())
        assert written == tuple(script[min(index, 2)]), "the trainer sees exactly the sampled ids"
    print(f"stop reason {trajectory.stop_reason}, return {trajectory.reward:g}, members {len(group.trajectories)}")


if __name__ == "__main__":
    asyncio.run(main())
