"""Scripted policies that play through the real agent loop: the source of baselines and demonstrations."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from agentenv.agent.chat import ChatAgent
from agentenv.agent.dialect import Dialect
from agentenv.engine.protocol import Completion, FinishReason
from agentenv.episode import Episode
from agentenv.errors import boundary
from agentenv.messages import Message
from agentenv.renderer import ToolSpecs
from agentenv.trajectory import VersionSpan

PolicyName = Literal["oracle", "demonstrate", "random"]
POLICIES: tuple[PolicyName, ...] = ("oracle", "demonstrate", "random")


class PolicyAgent(ChatAgent):
    """Lets the environment's own policy speak instead of the engine.

    Its turns are rendered to the ids that a model would have sampled and then take the same way: they are parsed from
    the ids and played. Log-probs are 0 and the weight version is -1, because no model sampled them.

    Args:
        policy: `"oracle"` (best play), `"demonstrate"` (an imperfect expert), or `"random"`.
        dialect: how its turns are written; that of the agent whose demonstrations they are to be.
    """

    uses_engine: ClassVar[bool] = False

    def __init__(self, policy: PolicyName, *, dialect: Dialect | None = None) -> None:
        super().__init__(dialect=dialect)
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
        return record_spoken(episode, self.dialect.write(message), tools=self.dialect.shown_tools(episode.tools))


def record_spoken(
    episode: Episode, message: Message, *, tools: ToolSpecs | None = None, finish_reason: FinishReason = "stop"
) -> Completion:
    """Record a turn that no model sampled, in the ids that one would have; log-probs 0, version -1.

    Args:
        episode: that is played.
        message: what was said.
        tools: those that the template is given; the episode's by default.
        finish_reason: why the turn ended.
    """
    ids = episode.renderer.turn_ids(message, tools=episode.tools if tools is None else tools)
    completion = Completion(
        token_ids=ids,
        logprobs=(0.0,) * len(ids),
        finish_reason=finish_reason,
        weight_versions=(VersionSpan(version=-1, start=0, end=len(ids)),),
    )
    episode.record(completion)
    return completion
