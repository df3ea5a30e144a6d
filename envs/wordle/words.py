"""The words of Wordle, their split, and the marks that a guess earns."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from agentenv.env import Split

NUM_LETTERS = 5
TEST_EVERY = 5
"""Every fifth word of the sorted list is a secret of the test split, the others of the train split."""

RIGHT, MISPLACED, ABSENT = "right", "misplaced", "absent"


@functools.cache
def all_words() -> tuple[str, ...]:
    """Return the allowed guesses, sorted."""
    return tuple((Path(__file__).parent / "words.txt").read_text(encoding="ascii").split())


@functools.cache
def secrets(split: Split) -> tuple[str, ...]:
    """Return the words that may be hidden in a split."""
    return tuple(word for i, word in enumerate(all_words()) if (i % TEST_EVERY == 0) == (split == "test"))


def marks(guess: str, secret: str) -> tuple[str, ...]:
    """Return one mark per letter of a guess.

    A letter is `right` in its place, `misplaced` when the secret has it elsewhere, else `absent`. A letter that a
    guess has more often than the secret is marked only as often as the secret has it, right places first.
    """
    left = Counter(secret_letter for letter, secret_letter in zip(guess, secret, strict=True) if letter != secret_letter)
    out: list[str] = []
    for letter, secret_letter in zip(guess, secret, strict=True):
        if letter == secret_letter:
            out.append(RIGHT)
        elif left[letter] > 0:
            left[letter] -= 1
            out.append(MISPLACED)
        else:
            out.append(ABSENT)
    return tuple(out)


def consistent(words: Sequence[str], guess: str, seen: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words that would have given these marks to this guess."""
    return tuple(word for word in words if marks(guess, word) == seen)


def most_telling(words: Sequence[str]) -> str:
    """Return the word whose letters, each counted once, are shared with most other words; the first of equals."""
    in_place = Counter((i, letter) for word in words for i, letter in enumerate(word))
    anywhere = Counter(letter for word in words for letter in set(word))

    def score(word: str) -> int:
        return sum(anywhere[letter] for letter in set(word)) + sum(in_place[i, x] for i, x in enumerate(word))

    return max(words, key=score)
