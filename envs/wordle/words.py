"""The words of Wordle, their split, and the marks that a guess earns."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

from agentenv.splits import Split

NUM_LETTERS = 5
TEST_EVERY = 5
"""Every fifth word of the sorted list is a secret of the test split, the others of the train split."""

RIGHT, MISPLACED, ABSENT = "right", "misplaced", "absent"


@functools.cache
def all_words() -> tuple[str, ...]:
    """Return the allowed guesses, sorted."""
    return tuple((Path(__file__).parent / "words.txt").read_text(encoding="ascii").split())


def is_known(word: str) -> bool:
    """True for a word of the list."""
    return word in _known()


@functools.cache
def secrets(split: Split) -> tuple[str, ...]:
    """Return the words that may be hidden in a split."""
    return tuple(word for i, word in enumerate(all_words()) if (i % TEST_EVERY == 0) == (split == "test"))


def marks(guess: str, secret: str) -> tuple[str, ...]:
    """Return one mark per letter of a guess.

    A letter is `right` in its place, `misplaced` when the secret has it elsewhere, else `absent`. A letter that a
    guess has more often than the secret is marked only as often as the secret has it, right places first.
    """
    out = [RIGHT if letter == hidden else ABSENT for letter, hidden in zip(guess, secret, strict=True)]
    unmatched = [hidden for letter, hidden in zip(guess, secret, strict=True) if letter != hidden]
    for i, letter in enumerate(guess):
        if out[i] == ABSENT and letter in unmatched:
            out[i] = MISPLACED
            unmatched.remove(letter)
    return tuple(out)


@functools.lru_cache(maxsize=1024)
def consistent(words: tuple[str, ...], guess: str, seen: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words that would have given these marks to this guess."""
    return tuple(word for word in words if marks(guess, word) == seen)


@functools.cache
def _known() -> frozenset[str]:
    return frozenset(all_words())


@functools.lru_cache(maxsize=1024)
def most_telling(words: tuple[str, ...]) -> str:
    """Return the word whose letters, each counted once, are shared with most other words; the first of equals."""
    in_place = Counter((i, letter) for word in words for i, letter in enumerate(word))
    anywhere = Counter(letter for word in words for letter in set(word))

    def score(word: str) -> int:
        return sum(anywhere[letter] for letter in set(word)) + sum(in_place[i, x] for i, x in enumerate(word))

    return max(words, key=score)
