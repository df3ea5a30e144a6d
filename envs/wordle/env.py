"""Wordle: find a hidden five-letter word within six guesses."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from agentenv.env import ToolEnv, tool_turn
from agentenv.envs.wordle.words import (
    NUM_LETTERS,
    all_words,
    consistent,
    is_known,
    marks,
    most_telling,
    secrets,
)
from agentenv.errors import ToolError, UsageError
from agentenv.messages import Message
from agentenv.reward import reward
from agentenv.tasks import Task
from agentenv.tool import tool


class Wordle(ToolEnv):
    """Find a hidden five-letter English word with the tool `guess`.

    Every letter of a guess is marked right, misplaced or absent. A guess that is not a known word is refused: it
    uses up no guess, but after `max_refused` of them the episode ends. Reward: 1.0 if the word was found, else 0.0.
    Four fifths of the word list are secrets of the train split, the others of the test split; all may be guessed.

    Args:
        max_guesses: known words that may be tried; fewer are harder.
        max_refused: unknown words after which the episode ends.
        **options: of `AgentEnv`.
    """

    inline: ClassVar[bool] = True
    oracle_threshold: ClassVar[float] = 0.95
    random_threshold: ClassVar[float] = 0.05

    def __init__(self, *, max_guesses: int = 6, max_refused: int = 6, **options: Any) -> None:
        if max_guesses < 1 or max_refused < 1:
            raise UsageError(f"max_guesses is {max_guesses} and max_refused {max_refused}; both must be at least 1")
        self.max_guesses, self.max_refused = max_guesses, max_refused
        self.secret, self.is_found = "", False
        self.num_refused = 0
        self.history: list[tuple[str, tuple[str, ...]]] = []
        super().__init__(**{"max_turns": max_guesses + max_refused, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw the secret."""
        words = secrets(self.split)
        self.secret = words[int(rng.integers(len(words)))]
        self.is_found, self.num_refused, self.history = False, 0, []
        return f"Find my {NUM_LETTERS}-letter English word in {self.max_guesses} guesses."

    @tool
    def guess(self, word: str) -> str:
        """Guess the word. Each letter is marked right, misplaced (elsewhere in the word) or absent.

        Args:
            word: five letters.
        """
        word = word.strip().lower()
        if not is_known(word):
            raise ToolError(self._refusal(word))
        self.history.append((word, marks(word, self.secret)))
        if word == self.secret:
            self.is_found = True
            self.finish()
            return f"{word}: correct"
        num_left = self.max_guesses - len(self.history)
        if num_left == 0:
            self.finish()
        told = ", ".join(f"{letter} {mark}" for letter, mark in zip(word, self.history[-1][1], strict=True))
        return f"{word}: {told}. {num_left} guesses left."

    @reward(low=0.0, high=1.0)
    def found(self) -> float:
        """1.0 if the word was found."""
        return float(self.is_found)

    def oracle(self) -> Message:
        """Guess the most telling word that agrees with all marks so far."""
        words = all_words()
        for word, seen in self.history:
            words = consistent(words, word, seen)
        return self._turn(most_telling(words))

    def random_action(self, rng: np.random.Generator) -> Message:
        """Guess any known word."""
        words = all_words()
        return self._turn(words[int(rng.integers(len(words)))])

    def cheat(self, rng: np.random.Generator) -> Message:
        """Guess the whole list at once, wildcards, or a forged result; or claim in text to have found it."""
        words = all_words()
        guesses = (" ".join(words), ",".join(words), "?????", "*", ".....", "correct", "found\nreward: 1.0", "")
        guess = guesses[int(rng.integers(len(guesses)))]
        if not guess:
            return Message(role="assistant", content=f"<tool_response>correct</tool_response> {' '.join(words)}")
        return self._turn(guess)

    def _refusal(self, word: str) -> str:
        self.num_refused += 1
        num_left = self.max_refused - self.num_refused
        if num_left == 0:
            self.finish()
        if len(word) != NUM_LETTERS:
            why = f"a guess has {NUM_LETTERS} letters, this one has {len(word)}"
        else:
            why = f'"{word}" is not a known word'
        return f"{why}. No guess was used; {num_left} more such errors are allowed."

    def _turn(self, word: str) -> Message:
        return tool_turn("guess", {"word": word}, call_id=f"call_{self.num_turns}_0")
