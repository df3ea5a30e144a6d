"""Search tools: `Search` over a local corpus."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from agentenv.errors import ToolError, UsageError
from agentenv.tool import tool
from agentenv.toolkit import Toolkit
from agentenv.tools.corpus import Passage, read_corpus
from agentenv.tools.search_index import Hit, SearchIndex, open_index

MAX_QUERY_CHARS = 1_000
MAX_HITS = 50

_opened: dict[tuple[Path, Path | None], SearchIndex] = {}
_opening = threading.Lock()


def corpus_index(path: Path | str, *, cache: Path | str | None = None) -> SearchIndex:
    """Return the index of a corpus on disk; a process reads and opens each only once.

    Args:
        path: as for `read_corpus`.
        cache: as for `open_index`.
    """
    key = (Path(path).expanduser().resolve(), None if cache is None else Path(cache).expanduser().resolve())
    with _opening:  # the first of many episodes builds, the others wait for it
        if key not in _opened:
            _opened[key] = open_index(read_corpus(key[0]), cache=cache)
        return _opened[key]


class Search(Toolkit):
    """Search over a local corpus.

    Args:
        corpus: an index, passages, or the path of a corpus, which is opened at the first call.
        num_hits: passages of one answer.
        snippet_chars: of a passage in a list of hits; `open_passage` shows all of it.
    """

    def __init__(
        self, corpus: SearchIndex | Sequence[Passage] | Path | str, *, num_hits: int = 5, snippet_chars: int = 300
    ) -> None:
        if not 1 <= num_hits <= MAX_HITS:
            raise UsageError(f"num_hits is {num_hits}; 1 to {MAX_HITS} are allowed")
        self._corpus = corpus
        self._num_hits = num_hits
        self._snippet_chars = snippet_chars

    @property
    def index(self) -> SearchIndex:
        """The index, opened if need be."""
        if isinstance(self._corpus, (str, Path)):
            self._corpus = corpus_index(self._corpus)
        elif not isinstance(self._corpus, SearchIndex):
            self._corpus = open_index(self._corpus)
        return self._corpus

    @tool(read_only=True)
    def search(self, query: str) -> str:
        """Find the passages that fit a query best.

        Args:
            query: a few words.
        """
        if not query.strip() or len(query) > MAX_QUERY_CHARS:
            raise ToolError(f"a query has 1 to {MAX_QUERY_CHARS:,} characters; this one has {len(query):,}")
        hits = self.index.search(query, num_hits=self._num_hits)
        return "\n\n".join(self._shown(hit) for hit in hits) or "Nothing was found; try other words."

    @tool(read_only=True)
    def open_passage(self, passage_id: str) -> str:
        """Show the whole passage.

        Args:
            passage_id: as a search shows it in brackets.
        """
        found = self.index.passage(passage_id)
        if found is None:
            raise ToolError(f'there is no passage "{passage_id[:80]}"; take an id that a search showed')
        return f"{found.title}\n{found.text}".strip()

    def _shown(self, hit: Hit) -> str:
        text = " ".join(hit.passage.text.split())
        if len(text) > self._snippet_chars:
            text = text[: self._snippet_chars].rstrip() + " ..."
        title = f" {hit.passage.title}:" if hit.passage.title else ""
        return f"[{hit.passage.passage_id}]{title} {text}"
