"""Scripted policies that play through the real agent loop: the source of baselines and demonstrations."""

from __future__ import annotations

from typing import Literal

import numpy as np

from agentenv.agent.chat import ChatAgent
from agentenv.engine.protocol import Completion
from agentenv.episode import Episode
from agentenv.errors import boundary
from agentenv.messages import Message
from agentenv.trajectory import VersionSpan

PolicyName = Literal["oracle", "demonstrate", "random"]
POLICIES: tuple[PolicyName, ...] = ("oracle", "demonstrate", "random")


class PolicyAgent(ChatAgent):
    """Lets the environment's own policy speak instead of the engine.

    Its turns are rendered to the ids that a model would have sampled and then take the same way: they are parsed from
    the ids and played. Log-probs are 0 and the weight version is -1, because no model sampled them.

    Args:
        policy: `"oracle"` (best play), `"demonstrate"` (an imperfect expert), or `"random"`.
    """

    def __init__(self, policy: PolicyName) -> None:
        self.policy: PolicyName = policy

    async def speak(self, episode: Episode) -> Completion:
        """Ask the environment's policy and record its turn in ids."""
        env = episode.env
        rng = np.random.default_rng(episode.spec.derived_seed("policy", episode.recorder.num_turns))
        with boundary("env", f"{type(env).__name__}.{self.policy}"):
            if self.policy == "oracle":
                said = env.oracle()
            elif self.policy == "demonstrate":
                said = env.demonstrate(rng)
            else:
                said = env.random_action(rng)
        message = Message(role="assistant", content=said) if isinstance(said, str) else said
        return record_spoken(episode, message)


def record_spoken(episode: Episode, message: Message) -> Completion:
    """Record a turn that no model sampled, in the ids that one would have; log-probs 0, version -1."""
    ids = episode.renderer.turn_ids(message, tools=episode.tools)
    completion = Completion(
        token_ids=ids,
        logprobs=(0.0,) * len(ids),
        finish_reason="stop",
        weight_versions=(VersionSpan(version=-1, start=0, end=len(ids)),),
    )
    episode.record(completion)
    return completion
