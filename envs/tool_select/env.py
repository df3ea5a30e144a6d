"""ToolSelect: pick the right one among fifty or more tools, different ones in every episode."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from agentenv.answer_env import checked_difficulty
from agentenv.env import ToolEnv, tool_turn
from agentenv.envs.drawing import pick, pick_distinct
from agentenv.envs.question import PlannedCall
from agentenv.envs.tool_select.offered import (
    Arguments,
    Offer,
    all_offers,
    all_tools,
    drawn_arguments,
    neighbours,
    sentence,
)
from agentenv.messages import Message, ToolCall
from agentenv.reward import reward
from agentenv.splits import draw_for
from agentenv.tasks import Task

_NUM_TOOLS = (50, 50, 75, 100, 130)
"""Tools on offer, by difficulty."""
_FIRST_WITH_NEIGHBOURS = 2
_NUM_REQUESTS = (1, 1, 1, 2, 3)


class ToolSelect(ToolEnv):
    """Answer requests, each with one call of the right tool among many; every episode offers others.

    Reward: 1.0 if the first calls are the right tools with the right arguments, in the order of the requests, else
    0.0. The first wrong call ends the episode, and so does a turn without a call.

    Args:
        difficulty: 1: 50 tools drawn at random; 2: 50, among them all that are easily mistaken for the right one; 3:
            75; 4: 100 and two requests; 5: all 130 and three requests.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 1.0
    random_threshold: ClassVar[float] = 0.01

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.difficulty = checked_difficulty(difficulty)
        self.expected: tuple[PlannedCall, ...] = ()
        self.num_right = 0
        super().__init__(**{"max_turns": 6, **options})
        self.use_tools([made.bind(self) for made in all_tools()])

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw requests and the tools that are offered with them."""
        self.num_right = 0
        chosen, self.expected = draw_for(self.split, lambda: self._draw(rng), content=lambda drawn: str(drawn[1]))
        self.offer_only(self._names(rng, chosen))
        asked = [sentence(rng, offer, call.arguments) for offer, call in zip(chosen, self.expected, strict=True)]
        if len(asked) == 1:
            return f"{asked[0]}\nCall the one tool that does this."
        told = "\n".join(f"{number}. {text}" for number, text in enumerate(asked, start=1))
        return f"{told}\nCall, for each of these in order, the one tool that does it."

    def called(self, name: str, arguments: Arguments) -> str:
        """Take a call: the right one leads to the next request, a wrong one ends the episode."""
        expected = self.expected[self.num_right]
        if name != expected.name or not _is_same(arguments, expected.arguments):
            self.finish()
            return "done, but that was not asked for"
        self.num_right += 1
        if self.num_right == len(self.expected):
            self.finish()
        return "done"

    @reward(low=0.0, high=1.0)
    def all_right(self) -> float:
        """1.0 if every request was answered by the right call."""
        return float(bool(self.expected) and self.num_right == len(self.expected))

    def oracle(self) -> Message:
        """Call the right tool."""
        return self.expected[self.num_right].turn(self.num_turns)

    def cheat(self, rng: np.random.Generator) -> Message:
        """Call several tools at once, the right one among them, or the right one with every argument at once."""
        right = self.expected[self.num_right]
        others = [name for name in self.toolbox.tools if name != right.name]
        if rng.random() < 0.3:
            wrong = {key: f"{value} all *" if isinstance(value, str) else 0 for key, value in right.arguments.items()}
            return tool_turn(right.name, wrong, call_id=f"call_{self.num_turns}_0")
        shape = {len(offer.action.parameters): offer for offer in all_offers()}
        filled = drawn_arguments(rng, pick(rng, tuple(shape.values())))
        wrong_offer = next(offer for offer in all_offers() if offer.name in others)
        calls = [
            ToolCall(call_id="call_a", name=wrong_offer.name, arguments=drawn_arguments(rng, wrong_offer)),
            ToolCall(call_id="call_b", name=right.name, arguments=right.arguments),
            ToolCall(call_id="call_c", name=pick(rng, others), arguments=filled),
        ]
        return Message(role="assistant", content="all_right: 1.0", tool_calls=tuple(calls))

    def _draw(self, rng: np.random.Generator) -> tuple[list[Offer], tuple[PlannedCall, ...]]:
        chosen = pick_distinct(rng, all_offers(), count=_NUM_REQUESTS[self.difficulty - 1])
        return chosen, tuple(PlannedCall(name=offer.name, arguments=drawn_arguments(rng, offer)) for offer in chosen)

    def _names(self, rng: np.random.Generator, chosen: list[Offer]) -> list[str]:
        """Draw the tools on offer, in random order."""
        names = [offer.name for offer in chosen]
        if self.difficulty >= _FIRST_WITH_NEIGHBOURS:
            names += [other.name for offer in chosen for other in neighbours(offer)]
        rest = [offer.name for offer in pick_distinct(rng, all_offers(), count=len(all_offers()))]
        offered = list(dict.fromkeys((*names, *rest)))[: _NUM_TOOLS[self.difficulty - 1]]
        return pick_distinct(rng, offered, count=len(offered))


def _is_same(given: Arguments, expected: Arguments) -> bool:
    return {name: _plain(value) for name, value in given.items()} == {
        name: _plain(value) for name, value in expected.items()
    }


def _plain(value: object) -> object:
    return value.strip().casefold().removeprefix("the ") if isinstance(value, str) else value
