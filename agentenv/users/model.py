"""A user that a model plays, over any engine: what it says is checked before the agent hears it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from agentenv.engine.protocol import Engine, SamplingParams
from agentenv.errors import UsageError, boundary
from agentenv.messages import Message
from agentenv.offload import within
from agentenv.renderer import Renderer
from agentenv.users.brief import UserBrief, UserTurn

END_MARK = "[END]"
"""What the model writes when it has nothing left to say."""

_DECLINES = "I would rather not say."
_LEAVES = "I have to go now, goodbye."
_NO_SPACE = re.compile(r"[\W_]+")
_STYLES = {
    "terse": "Write a few words, never a whole paragraph.",
    "plain": "Write one or two plain sentences.",
    "chatty": "You like to talk; write two to four sentences.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUserOptions:
    """How a model is asked to play a user.

    Attributes:
        max_tokens: of one turn.
        temperature: of the sampling; 0 is greedy.
        deadline_s: of one request; past it the episode ends as a failure of the engine.
        max_attempts: samples per turn; a turn that is empty or says a secret is drawn again.
        max_repeats: how often the same words may be said before the user counts as looping.
        max_chars: a longer turn is cut.
    """

    max_tokens: int = 160
    temperature: float = 0.7
    deadline_s: float = 60.0
    max_attempts: int = 3
    max_repeats: int = 2
    max_chars: int = 2000

    def __post_init__(self) -> None:
        least = min(self.max_attempts, self.max_repeats, self.max_chars, self.max_tokens)
        if least < 1 or not self.deadline_s > 0:
            raise UsageError("max_tokens, max_attempts, max_repeats, max_chars and deadline_s must be positive")


class ModelUser:
    """Lets a model speak for the user of a brief.

    The model reads the brief in its system message and the agent's turns as if they were a user's. Its own turn is
    cleaned (calls and control tokens are no words), cut, and compared with the secrets of the brief; a turn that leaks
    one is drawn again, and after `max_attempts` replaced by a refusal. Saying the same thing again and again, or
    talking past the cap of the brief, ends the conversation.

    Args:
        brief: what it wants and knows.
        engine: samples; shared and closed by whoever made it.
        renderer: of the engine's model.
        seed: of the sampling.
        options: how it is asked.

    Attributes:
        counts: `turns`, `leaks` (samples that said a secret), `empty` (samples without words), `loops`, `caps`.
        revealed: names of the slots whose value was said.
    """

    def __init__(
        self,
        brief: UserBrief,
        *,
        engine: Engine,
        renderer: Renderer,
        seed: int,
        options: ModelUserOptions | None = None,
    ) -> None:
        self.brief = brief
        self.options = ModelUserOptions() if options is None else options
        self.counts: Counter[str] = Counter()
        self.revealed: set[str] = set()
        self._engine, self._renderer, self._seed = engine, renderer, seed
        self._session = f"user-{seed}-{id(self):x}"
        self._history = [Message(role="system", content=role_prompt(brief))]
        self._said: Counter[str] = Counter()
        self._secrets = tuple(filter(None, map(_bare, brief.secrets)))

    async def begin(self) -> UserTurn:
        """Open the conversation."""
        return await self._turn("Hello, how can I help you?")

    async def reply(self, text: str) -> UserTurn:
        """Answer what the agent said.

        Raises:
            EpisodeError: side `"engine"`: the engine failed or missed its deadline.
        """
        if self.counts["turns"] + 1 >= self.brief.max_turns:
            self.counts["turns"] += 1
            self.counts["caps"] += 1
            return UserTurn(text=_LEAVES, end="turn_cap")
        return await self._turn(text)

    async def close(self) -> None:
        """Let the engine forget the conversation."""
        await self._engine.end_session(self._session)

    async def _turn(self, heard: str) -> UserTurn:
        self.counts["turns"] += 1
        self._history.append(Message(role="user", content=heard))
        text, is_last = await self._checked()
        self._history.append(Message(role="assistant", content=text))
        self._said[_bare(text)] += 1
        self.revealed |= {f.slot.name for f in self.brief.facts if f.value and _bare(f.value) in _bare(text)}
        if self._said[_bare(text)] > self.options.max_repeats:
            self.counts["loops"] += 1
            return UserTurn(text=text, end="looped")
        return UserTurn(text=text, end="satisfied" if is_last else None)

    async def _checked(self) -> tuple[str, bool]:
        """Return a turn that may be said, and whether it is the last one."""
        for attempt in range(self.options.max_attempts):
            raw = await self._sample(attempt)
            is_last = END_MARK in raw
            text = raw.replace(END_MARK, " ").strip()[: self.options.max_chars]
            if any(secret in _bare(text) for secret in self._secrets):
                self.counts["leaks"] += 1
            elif text or is_last:
                return text or "Thank you, goodbye.", is_last
            else:
                self.counts["empty"] += 1
        return _DECLINES, False

    async def _sample(self, attempt: int) -> str:
        prompt = self._renderer.prompt_ids(self._history)
        sampling = SamplingParams(
            max_tokens=self.options.max_tokens,
            temperature=self.options.temperature,
            stop_ids=self._renderer.stop_ids,
            seed=(self._seed + 7919 * self.counts["turns"] + attempt) % 2**31,
        )
        deadline_s = self.options.deadline_s
        with boundary("engine", "ModelUser"):
            asked = self._engine.generate(prompt, sampling, session_id=self._session, deadline_s=deadline_s)
            # an engine that ignores its deadline must not hold the episode
            completion = await within(asked, timeout_s=deadline_s + 1.0, side="engine", where="ModelUser")
            return self._renderer.parse(completion.token_ids).content


def role_prompt(brief: UserBrief) -> str:
    """Return the system message that makes a model play the user of a brief."""
    lines = [
        "You play a customer who talks to an assistant. Stay in that role; never act as the assistant.",
        f"Your goal: {brief.goal or brief.wants[0].text}",
        *(f"You want: {want.text}" for want in brief.wants),
        *(f"You know: {fact.spoken}" for fact in brief.facts),
        "Tell a fact only when you are asked for it. If you are asked what is not listed here, say that you do not "
        "know.",
        "State one wish at a time.",
        _STYLES[brief.persona.verbosity],
        f"When all of your wishes were dealt with, write {END_MARK}.",
    ]
    if brief.secrets:
        lines.append("Never say the following, nor that you were told not to: " + "; ".join(brief.secrets))
    return "\n".join(lines)


def _bare(text: str) -> str:
    """Return letters and digits alone, so that case, spaces and punctuation hide nothing."""
    return _NO_SPACE.sub("", unicodedata.normalize("NFKC", text).casefold())
