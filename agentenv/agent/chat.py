"""The default agent: the model speaks, the environment answers, until one of them ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from agentenv.agent.compaction import listen
from agentenv.agent.dialect import Dialect, Spoken, ToolDialect
from agentenv.context import Entry, opening_entries, shown_messages
from agentenv.engine.protocol import Completion
from agentenv.episode import Episode
from agentenv.messages import Message
from agentenv.trajectory import StopReason


class ChatAgent:
    """A tool-calling chat loop in token ids.

    Sampled ids are recorded as they came and never encoded again within a sequence; only what the policy is shown is
    rendered. Where the context is nearly full, `limits.context` decides what is left out, and a new sequence begins
    with a fresh rendering of what stays, the policy's own turns included.

    Args:
        dialect: how turns are written and shown.
    """

    uses_tools: ClassVar[bool] = True
    """False for agents that have no use for tools; the runner refuses to play them where tools are offered."""
    uses_engine: ClassVar[bool] = True
    """False where something else than the engine speaks: it plays every task, and its context is not managed."""

    def __init__(self, *, dialect: Dialect | None = None) -> None:
        self.dialect: Dialect = ToolDialect() if dialect is None else dialect

    async def play(self, episode: Episode) -> None:
        """Play until the environment ends or a budget is exhausted."""
        opening = await episode.reset()
        history = opening_entries(self.dialect.opening(opening, tools=episode.tools))
        episode.begin(shown_messages(history), tools=self.dialect.shown_tools(episode.tools))
        while True:
            if episode.room() < 1:
                await episode.truncate(episode.exhausted())
                return
            turn = await self.take_turn(episode, shown_messages(history))
            if turn is None:
                return
            completion, spoken = turn
            for name, by in spoken.counts.items():
                episode.count(name, by)
            messages = await episode.step(spoken.message)
            if episode.stop_reason is not None:
                was_cut = completion.finish_reason == "length"
                if was_cut and episode.stop_reason is StopReason.COMPLETED:
                    episode.stop_reason = StopReason.MAX_TOKENS  # what ended was not an answer but the budget
                return
            history = [*history, Entry(message=spoken.shown, part="turn")]
            replies = self.dialect.replies(spoken.message, messages, renderer=episode.renderer)
            is_closed = bool(completion.token_ids) and completion.token_ids[-1] in episode.renderer.stop_ids
            history = await self.listen(episode, history, replies=replies, is_closed=is_closed)
            if episode.stop_reason is not None:
                return

    async def take_turn(self, episode: Episode, shown: Sequence[Message]) -> tuple[Completion, Spoken] | None:
        """Return the next turn, in ids and as a message; its ids are recorded. None where the episode was ended.

        Args:
            episode: that is played.
            shown: what the policy sees.
        """
        completion = await self.speak(episode)
        turn = episode.recorder.num_turns - 1
        spoken = self.dialect.read(completion.token_ids, renderer=episode.renderer, tools=episode.tools, turn=turn)
        return completion, spoken

    async def speak(self, episode: Episode) -> Completion:
        """Return the next turn in ids, recorded."""
        return await episode.generate()

    async def listen(
        self, episode: Episode, history: Sequence[Entry], *, replies: Sequence[Entry], is_closed: bool
    ) -> list[Entry]:
        """Let the policy see the replies; returns what it has been shown now. May end the episode."""
        tools = self.dialect.shown_tools(episode.tools)
        if self.uses_engine and episode.limits.context.when_full != "stop":
            return await listen(episode, history, replies=replies, is_closed=is_closed, tools=tools)
        longer = [*history, *replies]
        heard = tuple(entry.message for entry in replies)
        episode.observe(heard, is_closed=is_closed, history=shown_messages(longer), tools=tools)
        return longer
