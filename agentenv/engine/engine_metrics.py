"""Reads how loaded vLLM or SGLang is from the text of their `/metrics` page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MAX_CHARS = 4_000_000
"""How much of a page is read; a server with many label sets writes a few hundred thousand characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """What an engine says of its load. Counters run since the server started.

    Attributes:
        cache_use: share of the key-value cache that running requests hold, in [0, 1]; of the fullest replica or pool.
            0 where the page does not say.
        num_running: requests that are computed.
        num_waiting: requests in the queue.
        num_prompt_tokens: prompt tokens of requests so far.
        num_cached_tokens: of which came from a prefix cache.
        num_output_tokens: tokens sampled so far.
    """

    cache_use: float
    num_running: int
    num_waiting: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """What one engine calls its figures; of several names the first that is there counts, for cache use the largest."""

    cache_use: tuple[str, ...]
    num_running: tuple[str, ...]
    num_waiting: tuple[str, ...]
    num_prompt_tokens: tuple[str, ...]
    num_cached_tokens: tuple[str, ...]
    num_output_tokens: tuple[str, ...]


_VLLM = _Names(
    cache_use=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),  # the second until 0.9
    num_running=("vllm:num_requests_running",),
    num_waiting=("vllm:num_requests_waiting",),
    num_prompt_tokens=("vllm:prompt_tokens_total",),
    num_cached_tokens=("vllm:prompt_tokens_cached_total", "vllm:prefix_cache_hits_total"),
    num_output_tokens=("vllm:generation_tokens_total",),
)
_SGLANG = _Names(
    # token_usage is rounded to two digits; the others are of the pools that a model may have beside each other
    cache_use=("sglang:token_usage", "sglang:full_token_usage", "sglang:swa_token_usage", "sglang:mamba_usage"),
    num_running=("sglang:num_running_reqs",),
    num_waiting=("sglang:num_queue_reqs",),
    num_prompt_tokens=("sglang:prompt_tokens_total",),
    num_cached_tokens=("sglang:cached_tokens_total",),
    num_output_tokens=("sglang:generation_tokens_total",),
)

# repetitions are possessive, so that a line of any length is read in linear time; label values may hold braces
_LINE = re.compile(r'([a-z0-9_:]++)(?:\{((?:[^"}]++|"(?:[^"\\]++|\\.)*+")*+)\})?[ \t]++([^ \t]++)')
_RANK = re.compile(r'(?:^|,)\s*(engine|dp_rank)="([^"]{0,32})"')


def read_engine_load(text: str) -> EngineLoad | None:
    """Return the load that a `/metrics` page of vLLM or SGLang tells; None where it tells none.

    Whatever the text is, nothing is raised: lines that cannot be read, and values that are negative or not finite, are
    passed over. Gauges of ranks that work on the same requests (tensor parallel) count once; data-parallel replicas add
    up.

    Args:
        text: in Prometheus' text format.
    """
    families = _families(text[: text.rfind("\n", 0, MAX_CHARS) + 1])  # a last line without its end may be torn
    for names in (_VLLM, _SGLANG):
        if any(name in families for name in (*names.num_running, *names.cache_use)):
            return _load(families, names)
    return None


_Family = list[tuple[str, float]]
"""Samples as (replica, value)."""


def _load(families: Mapping[str, _Family], names: _Names) -> EngineLoad:
    use = [value for name in names.cache_use for _, value in families.get(name, ())]
    return EngineLoad(
        cache_use=min(1.0, max(use, default=0.0)),
        num_running=_gauge(families, names.num_running),
        num_waiting=_gauge(families, names.num_waiting),
        num_prompt_tokens=_counter(families, names.num_prompt_tokens),
        num_cached_tokens=_counter(families, names.num_cached_tokens),
        num_output_tokens=_counter(families, names.num_output_tokens),
    )


def _families(text: str) -> dict[str, _Family]:
    found: dict[str, _Family] = {}
    for name, replica, value in _samples(text):
        found.setdefault(name, []).append((replica, value))
    return found


def _samples(text: str) -> Iterator[tuple[str, str, float]]:
    for line in text.split("\n"):
        if not line.startswith(("vllm:", "sglang:")):
            continue
        match = _LINE.match(line)
        if match is None or match[1] not in _WANTED:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0:
            rank = _RANK.search(match[2] or "")
            yield match[1], rank[2] if rank else "", value


_WANTED = frozenset(
    name
    for names in (_VLLM, _SGLANG)
    for group in (
        names.cache_use,
        names.num_running,
        names.num_waiting,
        names.num_prompt_tokens,
        names.num_cached_tokens,
        names.num_output_tokens,
    )
    for name in group
)


def _gauge(families: Mapping[str, _Family], names: tuple[str, ...]) -> int:
    largest: dict[str, float] = {}
    for replica, value in _first(families, names):
        largest[replica] = max(value, largest.get(replica, 0.0))
    return int(sum(largest.values()))


def _counter(families: Mapping[str, _Family], names: tuple[str, ...]) -> int:
    return int(sum(value for _, value in _first(families, names)))


def _first(families: Mapping[str, _Family], names: tuple[str, ...]) -> _Family:
    return next((families[name] for name in names if name in families), [])
