"""Queries per CPU-second of a search over 100,000 passages, on one thread.

Words are drawn as in natural text (Zipf-Mandelbrot), after stop words: the most frequent one stands in every sixth
passage. A query is five words of one passage.
"""

from __future__ import annotations

import json
import tempfile

import numpy as np

from agentenv.tools.corpus import Passage
from agentenv.tools.search_index import open_index
from tests.bench.measure import cpu_seconds, figure

PASSAGES, VOCABULARY, QUERIES = 100_000, 50_000, 500
LEAST_QUERIES_PER_S = 2_000.0


def figures() -> list[dict[str, object]]:
    """Measure and return the figures, each with its target."""
    rng = np.random.default_rng(0)
    weight = 1 / (np.arange(VOCABULARY) + 31)
    drawn = rng.choice(VOCABULARY, size=(PASSAGES, 60), p=weight / weight.sum())
    lengths = rng.integers(20, 61, PASSAGES)
    passages = [
        Passage(passage_id=str(index), text=" ".join(f"w{word}" for word in row[:length]))
        for index, (row, length) in enumerate(zip(drawn, lengths, strict=True))
    ]
    queries = [" ".join(f"w{word}" for word in drawn[index, :5]) for index in rng.integers(PASSAGES, size=QUERIES)]
    with tempfile.TemporaryDirectory() as cache:
        index = open_index(passages, cache=cache)
        reopen_s = cpu_seconds(lambda: open_index(passages, cache=cache), repeats=2)

        def search() -> None:
            for query in queries:
                index.search(query, num_hits=5)

        search_s = cpu_seconds(search, repeats=3)
    return [
        figure("search_queries", QUERIES / search_s, unit="queries/CPU-s", at_least=LEAST_QUERIES_PER_S),
        figure("search_reopen", reopen_s, unit="CPU-s"),
    ]


if __name__ == "__main__":
    for line in figures():
        print(json.dumps(line))
