"""The last exchanges in every observation, for players that see one observation at a time."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import gymnasium

from agentenv.errors import UsageError
from agentenv.messages import Message
from agentenv.spaces import Action
from agentenv.step import Step, observation_of
from agentenv.transcript import call_text
from agentenv.wrappers.agent_wrapper import AgentWrapper


class HistoryWindow(AgentWrapper):
    """Puts the opening and the last `num_turns` exchanges before what is new.

    An observation of this package is the new text only, because agent loops keep the history. A player without memory
    (a policy over single observations, an endpoint that is asked afresh every turn) needs this window instead. The
    agents that ship show the whole conversation anyway; they shorten it with `limits.context`.

    Args:
        env: what is wrapped.
        num_exchanges: how many of the last exchanges, the newest answer not counted.
        show_opening: repeat the task.
    """

    def __init__(self, env: gymnasium.Env[str, Action], *, num_exchanges: int = 4, show_opening: bool = True) -> None:
        if num_exchanges < 0:
            raise UsageError(f"num_exchanges is {num_exchanges}; at least 0 is needed")
        self.show_opening = show_opening
        self._task = ""
        # the newest exchange is told under "Now", so one more turn than exchanges is remembered
        self._exchanges: deque[tuple[str, str]] = deque(maxlen=num_exchanges + 1)
        super().__init__(env, num_exchanges=num_exchanges, show_opening=show_opening)

    def opening(self, step: Step) -> Step:
        """Forget the last episode."""
        self._task = observation_of(step.messages)
        self._exchanges.clear()
        return step

    def after(self, turn: Message, step: Step) -> Step:
        """Put the window before the answer."""
        self._exchanges.append((_said(turn), observation_of(step.messages)))
        if not step.messages:
            return step
        first = step.messages[0]
        window = self._window()
        images = tuple(image.at(image.position + len(window)) for image in first.images)
        shown = replace(first, content=window + first.content, images=images)
        return replace(step, messages=(shown, *step.messages[1:]))

    def _window(self) -> str:
        parts = [f"Task:\n{self._task}"] if self.show_opening else []
        earlier = list(self._exchanges)[:-1]
        if earlier:
            parts.append("Earlier:\n" + "\n".join(f"> {said}\n{answer}" for said, answer in earlier))
        parts.append(f"Now:\n> {self._exchanges[-1][0]}\n")
        return "\n\n".join(parts)


def _said(turn: Message) -> str:
    calls = [call_text(c.name, c.arguments) if c.status == "ok" else f"{c.status}: {c.raw}" for c in turn.tool_calls]
    return "\n".join(part for part in (turn.content, *calls) if part)
