"""How alike two texts are: exact match, token F1, and ROUGE-L and ROUGE-N, all in [0, 1]."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

from agentenv.errors import UsageError

MAX_WORDS = 20_000
"""Of a text of which ROUGE is taken; what follows is not looked at."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return a text in lower case, without punctuation, English articles and extra space.

    As the evaluation of SQuAD does it (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: str | Iterable[str]) -> float:
    """Return 1.0 when the normalised answer equals a normalised reference, else 0.0."""
    said = normalised(answer)
    return float(any(said == normalised(reference) for reference in _listed(references)))


def token_f1(answer: str, references: str | Iterable[str]) -> float:
    """Return the best F1 of the answer's words against a reference's, counted with repetition, after normalising.

    Two texts without a word are alike (1.0); one without a word shares nothing with another (0.0).
    """
    return max(_f1_of_words(normalised(answer).split(), normalised(text).split()) for text in _listed(references))


def rouge_n(answer: str, references: str | Iterable[str], *, n: int = 2) -> float:
    """Return the best F1 of n-grams (ROUGE-N of Lin 2004, https://aclanthology.org/W04-1013/, as an F-measure).

    Words are runs of letters and digits in lower case. A text shorter than `n` words has no n-gram and scores 0.
    """
    if n < 1:
        raise UsageError(f"n is {n}; at least 1 is needed")
    said = _ngrams(_words(answer), n)
    return max(_overlap(said, _ngrams(_words(text), n)) for text in _listed(references))


def rouge_l(answer: str, references: str | Iterable[str]) -> float:
    """Return the best F1 of the longest common subsequence of words (ROUGE-L of Lin 2004, eq. 2 to 4 with beta 1)."""
    said = _words(answer)
    return max(_rouge_l_of_words(said, _words(text)) for text in _listed(references))


def _listed(references: str | Iterable[str]) -> list[str]:
    found = [references] if isinstance(references, str) else list(references)
    if not found:
        raise UsageError("there is no reference; at least one is needed")
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())[:MAX_WORDS]


def _f1_of_words(said: Sequence[str], wanted: Sequence[str]) -> float:
    if not said or not wanted:
        return float(not said and not wanted)
    return _overlap(Counter(said), Counter(wanted))


def _ngrams(words: Sequence[str], n: int) -> Counter[object]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _overlap(said: Counter, wanted: Counter) -> float:
    common = (said & wanted).total()
    return _f1(common, said.total(), wanted.total())


def _rouge_l_of_words(said: Sequence[str], wanted: Sequence[str]) -> float:
    return _f1(_common_subsequence(said, wanted), len(said), len(wanted))


def _f1(common: int, num_said: int, num_wanted: int) -> float:
    return 2 * common / (num_said + num_wanted) if common else 0.0


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    Bit-parallel (Crochemore et al. 2001, "A fast and practical bit-vector algorithm for the longest common
    subsequence problem"): one big-integer addition per word of `second`.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & full
    return len(first) - row.bit_count()
