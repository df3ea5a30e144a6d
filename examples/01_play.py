"""Play one episode through Gymnasium: text in, an assistant turn out, with a policy of a few lines.

python examples/01_play.py
"""

from __future__ import annotations

import json
import re

import gymnasium

import agentenv  # registers the environments with Gymnasium


def halve(low: int, high: int) -> str:
    """Return an assistant turn that guesses the middle of a range, as a model would write it."""
    call = {"name": "guess", "arguments": {"number": (low + high) // 2}}
    return f"<tool_call>{json.dumps(call)}</tool_call>"


def main() -> None:
    """Play until the environment says that the episode is over."""
    print(f"agentenv {agentenv.__version__}")
    env = gymnasium.make("agentenv/GuessNumber-v0", high=100)
    observation, info = env.reset(seed=7)
    print(f"[env]   {observation}")
    low, high = 1, 100
    is_over, total = False, 0.0
    while not is_over:
        action = halve(low, high)
        observation, reward, terminated, truncated, info = env.step(action)
        is_over, total = terminated or truncated, total + float(reward)
        print(f"[agent] {action}\n[env]   {observation}")
        if found := re.fullmatch(r"(?:higher|lower) (\d+) (\d+)", observation):
            low, high = int(found[1]), int(found[2])
    print(f"return {total:g}, stop reason {info['stop_reason']}, components {info['reward_components']}")
    env.close()


if __name__ == "__main__":
    main()
