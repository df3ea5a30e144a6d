"""The settings of a pool of replicas, and what it says of each of them."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from agentenv.config import Config
from agentenv.engine.concurrency import ConcurrencyConfig
from agentenv.engine.replica import ReplicaState


class PoolConfig(Config):
    """Replicas behind one engine."""

    probe_interval_s: float = Field(default=1.0, gt=0)
    """Seconds between two looks at every replica."""
    probe_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds that a replica may take to say how it is."""
    max_failed_probes: int = Field(default=3, ge=1)
    """Looks in a row after which a replica that is silent or not ready is taken out; one that fails is out at once."""
    control_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that a replica may take to pause, resume or forget."""
    update_timeout_s: float = Field(default=110.0, gt=0)
    """Seconds that a replica may take to load new weights."""
    restart_timeout_s: float = Field(default=900.0, gt=0)
    """Seconds that a replacement may take to start."""
    max_restarts: int = Field(default=3, ge=0)
    """Replacements of one replica within `restart_window_s`; after that it stays out."""
    restart_window_s: float = Field(default=3600.0, gt=0)
    """Seconds after which a replacement no longer counts."""
    restart_pause_s: float = Field(default=1.0, ge=0)
    """Seconds before the second attempt in a row; doubled with every further one."""
    concurrency: ConcurrencyConfig = ConcurrencyConfig()
    """Tokens in flight of one replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """A snapshot of one replica.

    Attributes:
        name: for people.
        state: where it stands.
        tokens_in_flight: prompts and expected outputs that it computes.
        requests_in_flight: requests that it computes.
        tokens_limit: bound on the former.
        num_restarts: how often another engine took its place.
        cache_use: share of its key-value cache in use, as it last said.
    """

    name: str
    state: ReplicaState
    tokens_in_flight: int
    requests_in_flight: int
    tokens_limit: int
    num_restarts: int
    cache_use: float
