"""How much one engine may have in flight: grows while it copes, shrinks when its cache or its queue fills. Pure."""

from __future__ import annotations

from pydantic import Field, model_validator

from agentenv.config import Config
from agentenv.engine.protocol import EngineHealth


class ConcurrencyConfig(Config):
    """The bound on tokens in flight of one replica, which follows the engine's own figures."""

    start_tokens: int = Field(default=65_536, ge=1)
    """Tokens in flight (prompts and expected outputs) that a replica may have at first; what its cache holds, say."""
    lowest_tokens: int = Field(default=4_096, ge=1)
    """The bound never falls below."""
    highest_tokens: int = Field(default=4_194_304, ge=1)
    """The bound never rises above."""
    step_tokens: int = Field(default=8_192, ge=1)
    """The bound grows by this with every look at an engine that is fully used and copes."""
    factor: float = Field(default=0.75, gt=0, lt=1)
    """The bound shrinks to this share when the engine does not cope."""
    full_cache: float = Field(default=0.95, gt=0, le=1)
    """Share of the key-value cache in use from which the engine does not cope: it would soon evict what it computed."""
    long_queue: float = Field(default=0.25, gt=0)
    """Waiting requests, as a share of the running ones, from which the engine does not cope."""
    settling_looks: int = Field(default=3, ge=0)
    """Looks after a cut in which the bound is left alone, because what is in flight has to end first."""

    @model_validator(mode="after")
    def _in_order(self) -> ConcurrencyConfig:
        if not self.lowest_tokens <= self.start_tokens <= self.highest_tokens:
            raise ValueError(
                f"lowest_tokens {self.lowest_tokens}, start_tokens {self.start_tokens} and highest_tokens "
                f"{self.highest_tokens} must not fall"
            )
        return self


class ConcurrencyLimit:
    """A bound by additive increase and multiplicative decrease (Chiu and Jain 1989, doi:10.1016/0169-7552(89)90019-6).

    Args:
        config: how it moves.

    Attributes:
        tokens: the bound.
    """

    def __init__(self, config: ConcurrencyConfig) -> None:
        self.config = config
        self.tokens = config.start_tokens
        self._looks_to_settle = 0

    def observe(self, health: EngineHealth, *, tokens_in_flight: int) -> int:
        """Take one look at the engine into account; returns the new bound.

        Args:
            health: what the engine says of itself.
            tokens_in_flight: what we count for it.
        """
        config = self.config
        if self._looks_to_settle:
            self._looks_to_settle -= 1
        elif self._is_overloaded(health):
            # a bound far above what is in flight would not bind after a cut: begin at what there is
            cut = int(min(self.tokens, max(tokens_in_flight, 1)) * config.factor)
            self.tokens = max(config.lowest_tokens, cut)
            self._looks_to_settle = config.settling_looks
        elif tokens_in_flight >= _FULLY_USED * self.tokens:
            self.tokens = min(config.highest_tokens, self.tokens + config.step_tokens)
        return self.tokens

    def restart(self) -> None:
        """Begin anew, for an engine that took the place of another one."""
        self.tokens = self.config.start_tokens
        self._looks_to_settle = 0

    def _is_overloaded(self, health: EngineHealth) -> bool:
        if health.cache_use >= self.config.full_cache:
            return True
        # one that waits while the next step is prepared is no queue
        return health.num_waiting > max(1, self.config.long_queue * health.num_running)


_FULLY_USED = 0.8  # below this share of the bound in flight, the bound is not what holds requests back
