"""The default agent: the model speaks, the environment answers, until one of them ends it."""

from __future__ import annotations

from agentenv.engine.protocol import Completion
from agentenv.episode import Episode
from agentenv.messages import Message
from agentenv.trajectory import StopReason


class ChatAgent:
    """A tool-calling chat loop in token ids.

    Sampled ids are recorded as they came and never encoded again; only the environment's messages are rendered.
    """

    async def play(self, episode: Episode) -> None:
        """Play until the environment ends or a budget is exhausted."""
        opening = await episode.reset()
        episode.recorder.begin(episode.renderer.prompt_ids(opening, tools=episode.tools))
        while True:
            if episode.room() < 1:
                await episode.truncate(_exhausted(episode))
                return
            completion = await self.speak(episode)
            turn = self.read(episode, completion)
            messages = await episode.step(turn)
            was_cut = completion.finish_reason == "length"
            if episode.stop_reason is not None:
                if was_cut and episode.stop_reason is StopReason.COMPLETED:
                    episode.stop_reason = StopReason.MAX_TOKENS  # what ended was not an answer but the budget
                return
            is_closed = bool(completion.token_ids) and completion.token_ids[-1] in episode.renderer.stop_ids
            episode.observe(messages, is_closed=is_closed)

    async def speak(self, episode: Episode) -> Completion:
        """Return the next turn in ids, recorded."""
        return await episode.generate()

    def read(self, episode: Episode, completion: Completion) -> Message:
        """Return the turn as a message."""
        turn = episode.recorder.num_turns - 1
        return episode.renderer.parse(completion.token_ids, tools=episode.tools, turn=turn)


def _exhausted(episode: Episode) -> StopReason:
    if len(episode.recorder.token_ids) >= episode.limits.max_context_tokens:
        return StopReason.CONTEXT_OVERFLOW
    return StopReason.MAX_TOKENS
