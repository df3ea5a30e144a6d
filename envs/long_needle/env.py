"""LongNeedle: follow a trail of sentences that lie scattered in a long text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from agentenv.answer_env import AnswerEnv, Question
from agentenv.envs.wordle.words import all_words
from agentenv.errors import UsageError

_NUM_SENTENCES = (40, 100, 300, 1000, 3000)
_NUM_CODES = 100_000
_MIN_SENTENCES = 24
_COLOURS = ("green", "blue", "grey")
_NUM_NAMES, _NUM_FILLER_NAMES = 120, 100
"""The first names follow the trails (at most 18 people), the last ones fill the text."""
_PLACES = ("at the harbour", "behind the mill", "in the old school", "by the bridge", "on the hill", "near the station")
_THINGS = ("a bicycle", "two lamps", "a wooden chest", "some flour", "an umbrella", "three keys", "a red boat")
_VERBS = ("repairs", "sells", "paints", "looks for", "has lost", "keeps")


class LongNeedle(AnswerEnv):
    """Find out which code the last holder of a key wrote down; who gave it to whom is scattered in a long text.

    Other people hold keys of other colours and write down codes too. Reward: 1.0 if the code after the last `####` is
    the right one, else 0.0.

    Args:
        difficulty: 1 to 5: how often the key changes hands; the text has 40, 100, 300, 1,000 or 3,000 sentences.
        num_sentences: length of the text instead; None takes the one of the difficulty.
        **options: of `AgentEnv`.
    """

    answer_form = "the five digits of the code"

    def __init__(self, *, num_sentences: int | None = None, **options: Any) -> None:
        if num_sentences is not None and num_sentences < _MIN_SENTENCES:
            raise UsageError(f"num_sentences is {num_sentences}; at least {_MIN_SENTENCES} are needed")
        self.num_sentences = num_sentences
        self.names: list[str] = []
        self.needles: list[str] = []
        super().__init__(**options)

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw the trail and two false ones."""
        self.names = [all_words()[i].capitalize() for i in rng.permutation(len(all_words()))[:_NUM_NAMES]]
        names = iter(self.names)
        codes = [f"{rng.integers(_NUM_CODES):05d}" for _ in _COLOURS]
        trails = [self._trail(names, colour, code) for colour, code in zip(_COLOURS, codes, strict=True)]
        self.needles = [sentence for _, sentences in trails for sentence in sentences]
        asked = f"{trails[0][0]} had the green key first. Which code did the last holder of the green key write down?"
        return Question(prompt=asked, answer=codes[0], content=" ".join(self.needles))

    def complete(self, rng: np.random.Generator, question: Question) -> Question:
        """Scatter the sentences of the trails among others that do not matter."""
        length = self.num_sentences or _NUM_SENTENCES[self.difficulty - 1]
        fillers = _fillers(rng, self.names[-_NUM_FILLER_NAMES:], count=length - len(self.needles))
        lines = fillers + self.needles
        text = " ".join(lines[i] for i in rng.permutation(len(lines)))
        return replace(question, prompt=f"{text}\n\n{question.prompt}")

    def guess(self, rng: np.random.Generator) -> str:
        """Guess a code."""
        return f"{rng.integers(_NUM_CODES):05d}"

    def _trail(self, names: Iterator[str], colour: str, code: str) -> tuple[str, list[str]]:
        holders = [next(names) for _ in range(self.difficulty + 1)]
        given = [f"{a} gave the {colour} key to {b}." for a, b in itertools.pairwise(holders)]
        return holders[0], [*given, f"{holders[-1]} wrote down the code {code}."]


def _fillers(rng: np.random.Generator, names: list[str], *, count: int) -> list[str]:
    who, what, where, verb = (rng.integers(len(choices), size=count) for choices in (names, _THINGS, _PLACES, _VERBS))
    return [
        f"{names[a]} {_VERBS[b]} {_THINGS[c]} {_PLACES[d]}." for a, b, c, d in zip(who, verb, what, where, strict=True)
    ]
