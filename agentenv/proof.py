"""`Proof`: the part of an environment that shows that it can be solved, not guessed and not cheated."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from agentenv.errors import UsageError
from agentenv.messages import Message
from agentenv.vision import described_content


class Proof:
    """Scripted policies, what they must reach, and what tells one task from another; `AgentEnv` inherits it."""

    oracle_threshold: ClassVar[float] = 1.0
    """Mean return that the oracle must reach."""
    random_threshold: ClassVar[float] = 0.5
    """Mean return that the random policy must not pass."""
    split_by: ClassVar[Literal["content", "seed"]] = "content"
    """`"content"`: train and test never share a task. `"seed"`: too few tasks exist, so only their order differs."""
    check_seeds: ClassVar[int] = 200
    """Episodes per policy of the shipped proof suite; fewer where one takes long."""

    conversation: list[Message]

    @classmethod
    def unavailable(cls) -> str:
        """Return why it cannot be played on this machine and what to do; empty where it can."""
        return ""

    def oracle(self) -> str | Message:
        """Return the best next assistant turn, from the hidden state."""
        raise UsageError(f"{type(self).__name__} has no oracle")

    def demonstrate(self, rng: np.random.Generator) -> str | Message:
        """Return the next turn of an imperfect expert; the oracle unless a subclass knows a more human one."""
        return self.oracle()

    def random_action(self, rng: np.random.Generator) -> str | Message:
        """Return an assistant turn drawn without any skill."""
        return str(rng.integers(0, 100))

    def cheat(self, rng: np.random.Generator) -> str | Message:
        """Return the next turn of an agent that tries to be paid without solving; it must earn nothing.

        It names every candidate at once, repeats the prompt, forges results, writes the answer mark twice: whatever a
        careless grader of this task would pay for.
        """
        raise UsageError(f"{type(self).__name__} has no cheating policy")

    def fingerprint(self) -> str:
        """Return what was asked, hidden state included; asked at the end of an episode of the oracle.

        Train and test never share one. The default is the whole conversation, which shows the hidden state where the
        oracle's turns do. Override it where chance that does not matter, such as the order of a list, stands in it.
        """
        return "\n".join(_told(message) for message in self.conversation)


def _told(message: Message) -> str:
    calls = [f"{call.name}({dict(call.arguments)})" for call in message.tool_calls]
    images = [image.digest for image in message.images]
    return " ".join([message.role, described_content(message), *calls, *images])
