"""A budget for what the agent writes: when it is used up, the episode is cut off and scored as it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import gymnasium

from agentenv.errors import UsageError
from agentenv.messages import Message
from agentenv.spaces import Action
from agentenv.step import Step
from agentenv.tokenizer import load_tokenizer
from agentenv.trajectory import StopReason
from agentenv.wrappers.agent_wrapper import AgentWrapper, Verdict

_WORD = re.compile(r"\w+|[^\w\s]")


class TokenBudget(AgentWrapper):
    """Ends the episode with `max_tokens` at the turn that goes over the budget; that turn is not played.

    Text, reasoning and calls count. The runner's own `limits.max_episode_tokens` counts exact ids and is cheaper; this
    wrapper serves Gymnasium's loop, and agents that are to be told what is left.

    Args:
        env: what is wrapped.
        max_tokens: budget of one episode.
        tokenizer: model folder or Hub id whose tokens are counted; "" counts words and punctuation marks.
        announce: say after every answer how much is left.
    """

    def __init__(
        self, env: gymnasium.Env[str, Action], *, max_tokens: int, tokenizer: str = "", announce: bool = False
    ) -> None:
        if max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; at least 1 is needed")
        self.max_tokens = max_tokens
        self.announce = announce
        self.num_spent = 0
        self._count: Callable[[str], int] = _counter(tokenizer)
        super().__init__(env, max_tokens=max_tokens, tokenizer=tokenizer, announce=announce)

    def opening(self, step: Step) -> Step:
        """Begin a fresh budget."""
        self.num_spent = 0
        return self._announced(step)

    def before(self, turn: Message) -> Verdict:
        """Count the turn; end the episode where it is too long."""
        self.num_spent += sum(map(self._count, _written(turn)))
        return turn if self.num_spent <= self.max_tokens else StopReason.MAX_TOKENS

    def after(self, turn: Message, step: Step) -> Step:
        """Say how much is left."""
        return self._announced(step)

    def _announced(self, step: Step) -> Step:
        if not self.announce or not step.messages or step.stop_reason is not None:
            return step
        left = self.max_tokens - self.num_spent
        last = step.messages[-1]
        told = replace(last, content=f"{last.content}\n[{left} of {self.max_tokens} tokens are left]")
        return replace(step, messages=(*step.messages[:-1], told))


def _written(turn: Message) -> list[str]:
    calls = [
        call.raw or f"{call.name} {json.dumps(dict(call.arguments), default=str, ensure_ascii=False)}"
        for call in turn.tool_calls
    ]
    return [text for text in (turn.reasoning, turn.content, *calls) if text]


def _counter(tokenizer: str) -> Callable[[str], int]:
    if not tokenizer:
        return lambda text: len(_WORD.findall(text))
    loaded = load_tokenizer(tokenizer)
    return lambda text: len(loaded.encode(text))
