"""A scripted user: states its wants one by one, tells a fact when asked, and says honestly what it cannot tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from agentenv.users.brief import Fact, UserBrief, UserTurn
from agentenv.users.hearing import Heard, asked_slots, hear

_GREETINGS = ("Hi! {}", "Hello. {}", "Hi there, {}", "{}", "Good morning. {}")
_CHATTY_ENDS = (
    "I hope that helps.",
    "Thanks for looking into it!",
    "Sorry for the trouble.",
    "It has been a long day.",
)
_PUZZLED = (
    "I am not sure what you mean.",
    "Sorry, I cannot answer that.",
    "I do not know, sorry.",
    "I do not understand, can you put it differently?",
)
_CONSENTS = ("Yes, please go ahead.", "Yes, please.", "Yes, that is right.")
_NEXTS = ("Thanks. {}", "Okay. {}", "Good. One more thing: {}", "Alright. {}")
_ENDS = ("Thank you, that is all.", "Thanks, bye.", "That is all I needed. Goodbye.")
_WAITS = ("Okay, I will wait.", "Sure, take your time.")
_ENOUGH = "This leads nowhere. I will try elsewhere, goodbye."
_OUT_OF_TURNS = "I have to go now, goodbye."


class ScriptedUser:
    """Plays a brief by rules; a function of the brief, the seed and what the agent says.

    Every turn of the agent is understood by `hear`. A question for a slot is answered with its fact. A refusal is
    argued with once, if the want says so. Any other statement is taken as the outcome of the present want, and the next
    one is stated; after the last the user leaves satisfied. Turns that bring nothing cost patience.

    Args:
        brief: what it wants and knows.
        rng: for its choice of words.
        critic: asked about every statement of the agent; what it returns is said as feedback, costs patience, and the
            want stays open. An empty text accepts.

    Attributes:
        counts: `turns`, `puzzled` (not understood), `repeated` (told before), `insisted`, `feedback`.
        revealed: names of the slots whose facts were told, those that it said it does not know included.
    """

    def __init__(
        self, brief: UserBrief, *, rng: np.random.Generator, critic: Callable[[str], str] | None = None
    ) -> None:
        self.brief = brief
        self.critic = critic
        self.counts: Counter[str] = Counter()
        self.revealed: set[str] = set()
        self.patience = brief.persona.patience
        self._rng = rng
        self._slots = tuple(fact.slot for fact in brief.facts)
        self._facts = {fact.slot.name: fact for fact in brief.facts}
        self._want = 0
        self._has_insisted = False

    def begin(self) -> UserTurn:
        """State the first want."""
        self.counts["turns"] += 1
        text = self.brief.wants[0].text
        return UserTurn(text=text if self.brief.persona.verbosity == "terse" else self._pick(_GREETINGS).format(text))

    def reply(self, text: str) -> UserTurn:
        """Answer what the agent said."""
        self.counts["turns"] += 1
        if self.counts["turns"] >= self.brief.max_turns:
            return UserTurn(text=_OUT_OF_TURNS, end="turn_cap")
        heard = hear(text)
        asked = asked_slots(text, self._slots)
        if asked:
            return self._told([self._facts[slot.name] for slot in asked])
        if heard.is_refusal and self._insists():
            return self._useless(self.brief.wants[self._want].insist, count="insisted")
        if heard.requests and not heard.is_closing:
            return UserTurn(text=self._pick(_CONSENTS)) if heard.asks_consent else self._puzzled()
        return self._heard_statement(text, heard)

    def close(self) -> None:
        """Do nothing: a scripted user holds nothing."""

    def _heard_statement(self, text: str, heard: Heard) -> UserTurn:
        if not text.strip():
            return self._puzzled()
        if heard.is_waiting and not (heard.is_closing or heard.is_refusal):
            return self._useless(self._pick(_WAITS), count="waited")
        complaint = "" if self.critic is None else self.critic(text)
        if complaint:
            return self._useless(complaint, count="feedback")
        return self._next_want()

    def _next_want(self) -> UserTurn:
        self._want += 1
        self._has_insisted = False
        if self._want >= len(self.brief.wants):
            return UserTurn(text=self._pick(_ENDS), end="satisfied")
        return UserTurn(text=self._pick(_NEXTS).format(self.brief.wants[self._want].text))

    def _told(self, facts: Sequence[Fact]) -> UserTurn:
        persona = self.brief.persona
        fresh = [fact for fact in facts if fact.slot.name not in self.revealed]
        told = (fresh or list(facts))[: persona.facts_per_turn]
        self.revealed.update(fact.slot.name for fact in told)
        said = " ".join(self._phrased(fact) for fact in told)
        if persona.verbosity == "chatty":
            said = f"{said} {self._pick(_CHATTY_ENDS)}"
        return UserTurn(text=said) if fresh else self._useless(said, count="repeated")

    def _phrased(self, fact: Fact) -> str:
        if self.brief.persona.verbosity == "terse" and fact.value:
            return f"{fact.slot.label}: {fact.value}."
        return fact.spoken

    def _insists(self) -> bool:
        wants = self.brief.wants[self._want].insist and not self._has_insisted
        self._has_insisted = True
        return bool(wants)

    def _puzzled(self) -> UserTurn:
        return self._useless(self._pick(_PUZZLED), count="puzzled")

    def _useless(self, text: str, *, count: str) -> UserTurn:
        """Say something that costs patience; without any left the user leaves."""
        self.counts[count] += 1
        self.patience -= 1
        return UserTurn(text=_ENOUGH, end="gave_up") if self.patience <= 0 else UserTurn(text=text)

    def _pick(self, texts: tuple[str, ...]) -> str:
        return texts[int(self._rng.integers(len(texts)))]
