"""`HttpSearch`: the search tool over a retriever that answers by HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import httpx

from agentenv.errors import EpisodeError, ToolError, UsageError, describe
from agentenv.tool import tool
from agentenv.toolkit import Toolkit

MAX_QUERY_CHARS = 1_000
MAX_ANSWER_BYTES = 4 << 20


class HttpSearch(Toolkit):
    """Search by a service that takes `{"queries": [text], "topk": n, "return_scores": true}`.

    It answers `{"result": [[hit, ...]]}`; a hit is a text, or an object with `contents` or `text` and perhaps `id` and
    `title`, either itself or under `document`. This is what the retrievers of search agents commonly speak.

    Args:
        url: of the service; configured by its owner, so no allow-list is asked.
        num_hits: passages of one answer.
        timeout_s: seconds of one request.
        passage_chars: of one passage; longer ones are cut.
    """

    def __init__(self, url: str, *, num_hits: int = 5, timeout_s: float = 10.0, passage_chars: int = 2_000) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"url is {url!r}; it must begin with http:// or https://")
        if num_hits < 1:
            raise UsageError(f"num_hits is {num_hits}; at least 1 is needed")
        self._url = url
        self._num_hits = num_hits
        self._timeout_s = timeout_s
        self._passage_chars = passage_chars
        self._client: httpx.AsyncClient | None = None

    @tool(read_only=True, reaches_outside=True, idempotent=True)
    async def search(self, query: str) -> str:
        """Find the passages that fit a query best.

        Args:
            query: a few words or a question.
        """
        if not query.strip() or len(query) > MAX_QUERY_CHARS:
            raise ToolError(f"a query has 1 to {MAX_QUERY_CHARS:,} characters; this one has {len(query):,}")
        hits = self._hits(await self._asked(query))
        return "\n\n".join(self._shown(hit) for hit in hits[: self._num_hits]) or "Nothing was found; try other words."

    async def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _asked(self, query: str) -> object:
        if self._client is None:
            self._client = httpx.AsyncClient(trust_env=False, timeout=self._timeout_s)
        body = {"queries": [query], "topk": self._num_hits, "return_scores": True}
        try:
            async with self._client.stream("POST", self._url, json=body) as response:
                data = bytearray()
                async for part in response.aiter_bytes():
                    data += part
                    if len(data) > MAX_ANSWER_BYTES:
                        raise self._broken(f"it answered more than {MAX_ANSWER_BYTES:,} bytes")
                if response.status_code != 200:
                    raise self._broken(f"it answered {response.status_code}")
                return httpx.Response(200, content=bytes(data)).json()
        except (httpx.HTTPError, ValueError, RecursionError) as error:
            raise self._broken(describe(error)) from error

    def _hits(self, answer: object) -> Sequence[object]:
        result = cast(Mapping[str, Any], answer).get("result") if isinstance(answer, Mapping) else None
        if not isinstance(result, list) or len(result) != 1 or not isinstance(result[0], list):
            raise self._broken('its answer is not {"result": [[hit, ...]]}')
        return result[0]

    def _shown(self, hit: object) -> str:
        if isinstance(hit, Mapping) and isinstance(hit.get("document"), Mapping):
            hit = hit["document"]
        fields = cast(Mapping[str, object], hit) if isinstance(hit, Mapping) else {"text": hit}
        text = fields.get("contents", fields.get("text"))
        if not isinstance(text, str):
            raise self._broken("a hit has neither contents nor text")
        label = " ".join(str(fields[name]) for name in ("id", "title") if fields.get(name))
        cut = text if len(text) <= self._passage_chars else text[: self._passage_chars].rstrip() + " ..."
        return f"[{label}] {cut}" if label else cut

    def _broken(self, what: str) -> EpisodeError:
        return EpisodeError("tool", "search", f"the retriever at {self._url}: {what}")
