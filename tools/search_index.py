"""A BM25 index (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework") that is built once per corpus.

Passages are scored when the index is built, by `bm25s` in Lucene's variant, so that a query only adds up columns of a
sparse matrix. It adds in single precision, leaves out what cannot be among the best, and adds the rest up exactly.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agentenv.errors import DataError, UsageError
from agentenv.tools.corpus import Passage, digest

_FORMAT = "1"
_WORD = re.compile(r"\w+")
_ARRAYS = ("scores", "passages", "starts", "best")

_STOPPED = """
a an and are as at be but by for from had has have he her his i if in into is it its no not of on or she that the their
them then there these they this to was we were what when where which who will with you your
"""
STOP_WORDS = frozenset(_STOPPED.split())
"""English words that are neither indexed nor searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A passage and its score; higher is better."""

    passage: Passage
    score: float


class SearchIndex:
    """Finds passages.

    Made by `open_index`. Reading is safe from many threads, and processes share the arrays' pages.

    Args:
        passages: the corpus.
        vocabulary: column by word.
        arrays: `scores` and `passages` (one entry per word and passage that holds it), `starts` (first entry of every
            column, then the number of entries) and `best` (largest score of every column).
    """

    def __init__(
        self, passages: Sequence[Passage], *, vocabulary: Mapping[str, int], arrays: Mapping[str, NDArray]
    ) -> None:
        self.passages = passages
        self._vocabulary = vocabulary
        self._scores = np.asarray(arrays["scores"])  # a plain view: slicing a memmap is slow
        self._rows = np.asarray(arrays["passages"])
        self._starts: list[int] = arrays["starts"].tolist()
        self._best: list[float] = arrays["best"].tolist()
        self._by_id: dict[str, Passage] | None = None

    def search(self, query: str, *, num_hits: int) -> list[Hit]:
        """Return the best passages that share a word with the query, best first; ties in the order of the corpus."""
        if num_hits < 1:
            raise UsageError(f"num_hits is {num_hits}; at least 1 is needed")
        counts = Counter(column for word in words(query) if (column := self._vocabulary.get(word)) is not None)
        if not counts:
            return []
        rows = self._candidates(counts, num_hits)
        scores = self._exact(rows, counts)
        order = np.lexsort((rows, -scores))[:num_hits]
        return [Hit(passage=self.passages[int(rows[i])], score=float(scores[i])) for i in order]

    def passage(self, passage_id: str) -> Passage | None:
        """Return the passage of this id, or None."""
        if self._by_id is None:
            self._by_id = {passage.passage_id: passage for passage in self.passages}
        return self._by_id.get(passage_id)

    def _candidates(self, counts: Mapping[int, int], num_hits: int) -> NDArray:
        """Return passages, ascending, among which the best `num_hits` are."""
        total = np.zeros(len(self.passages), dtype=np.float32)
        for column, count in counts.items():
            rows, scores = self._column(column)
            total[rows] += scores if count == 1 else scores * np.float32(count)
        # the k-th best among the passages of one word bounds the k-th best of all from below
        frequent = [column for column in counts if self._starts[column + 1] - self._starts[column] >= num_hits]
        floor = 0.0
        if frequent:
            anchor = max(frequent, key=lambda column: counts[column] * self._best[column])
            floor = _kth_largest(total[self._column(anchor)[0]], num_hits)
        found = np.flatnonzero(total * _WIDER >= floor) if floor else np.flatnonzero(total)
        sums = total[found]
        return found[sums * _WIDER >= _kth_largest(sums, num_hits)]

    def _exact(self, rows: NDArray, counts: Mapping[int, int]) -> NDArray:
        """Return the scores of passages, added up in double precision."""
        out = np.zeros(len(rows))
        for column, count in counts.items():
            held, scores = self._column(column)
            places = np.minimum(np.searchsorted(held, rows), len(held) - 1)
            out += np.where(held[places] == rows, scores[places] * float(count), 0.0)
        return out

    def _column(self, column: int) -> tuple[NDArray, NDArray]:
        """Return the passages that hold a word, ascending, and what it adds to their scores."""
        start, end = self._starts[column], self._starts[column + 1]
        return self._rows[start:end], self._scores[start:end]


_WIDER = np.float32(1 + 1e-5)
"""Sums in single precision are widened by this before a passage is left out because of one."""


def _kth_largest(scores: NDArray, k: int) -> float:
    """Return the k-th largest score, or 0 where there are fewer."""
    if len(scores) < k:
        return 0.0
    return float(np.partition(scores, len(scores) - k)[len(scores) - k])


def words(text: str) -> list[str]:
    """Return the words of a text as the index knows them: lower case, without stop words."""
    return [word for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]


def open_index(passages: Sequence[Passage], *, cache: Path | str | None = None) -> SearchIndex:
    """Return the index of a corpus, from the cache where it was built before.

    Args:
        passages: the corpus.
        cache: folder for built indexes, each named by its content; None takes `$XDG_CACHE_HOME/agentenv/search`, or
            that of `~/.cache`.

    Raises:
        DataError: the corpus is empty or holds no word.
        UsageError: bm25s is not installed.
    """
    if not passages:
        raise DataError("the corpus is empty; search needs at least one passage")
    folder = Path(cache).expanduser() if cache is not None else _default_cache()
    place = folder / f"{digest(passages)}-{_FORMAT}"
    built = _load(place)
    if built is None:
        built = _build(passages)
        _save(place, *built)
    return SearchIndex(passages, vocabulary=built[0], arrays=built[1])


def _build(passages: Sequence[Passage]) -> tuple[dict[str, int], dict[str, NDArray]]:
    try:
        import bm25s
    except ImportError as error:
        raise UsageError('search needs bm25s; run `pip install "agentenv[search]"`') from error
    vocabulary: dict[str, int] = {}
    ids = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in words(f"{passage.title} {passage.text}")]
        for passage in passages
    ]
    if not vocabulary:
        raise DataError(f"none of the {len(passages)} passages of the corpus holds a word that can be searched")
    model = bm25s.BM25(method="lucene")
    model.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    starts = np.asarray(model.scores["indptr"], dtype=np.int64)
    scores = np.asarray(model.scores["data"], dtype=np.float32)
    rows = np.asarray(model.scores["indices"], dtype=np.int64)
    rows, scores = _sorted_columns(rows, scores, starts)
    best = np.maximum.reduceat(scores, starts[:-1]).astype(np.float64)
    return vocabulary, {"scores": scores, "passages": rows, "starts": starts, "best": best}


def _sorted_columns(rows: NDArray, scores: NDArray, starts: NDArray) -> tuple[NDArray, NDArray]:
    """Put the passages of every column into ascending order."""
    columns = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((rows, columns))
    return rows[order], scores[order]


def _load(place: Path) -> tuple[dict[str, int], dict[str, NDArray]] | None:
    """Return a built index, or None where there is none that can be read."""
    try:
        vocabulary = json.loads((place / "vocabulary.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    except (OSError, ValueError, EOFError):
        return None
    if len(arrays["starts"]) != len(vocabulary) + 1 or len(arrays["scores"]) != arrays["starts"][-1]:
        return None
    return {word: column for column, word in enumerate(vocabulary)}, arrays


def _save(place: Path, vocabulary: Mapping[str, int], arrays: Mapping[str, NDArray]) -> None:
    """Write a built index so that a reader sees all of it or nothing."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=place.parent, prefix=".new-"))
    try:
        (new / "vocabulary.json").write_text(json.dumps(list(vocabulary)), encoding="utf-8")
        for name, array in arrays.items():
            np.save(new / f"{name}.npy", array)
        shutil.rmtree(place, ignore_errors=True)  # one that could not be read
        os.replace(new, place)
    except OSError:
        if _load(place) is None:  # else another process was faster
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "agentenv" / "search"
