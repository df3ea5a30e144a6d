"""Several players on the same episodes: figures side by side, and paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from agentenv.errors import UsageError
from agentenv.evaluate import EvalSummary, summarise, written_tokens
from agentenv.seeds import derive_seed
from agentenv.trajectory import Trajectory

METHOD = "paired percentile bootstrap over episodes, 95 %"
NUM_RESAMPLES = 10_000
_BLOCK = 2_000_000

Metric = Callable[[Trajectory], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """How much more of a metric one player has than another, on the episodes that both played to a score.

    Attributes:
        metric: `"success"`, `"reward"`, `"turns"` or `"sampled_tokens"`.
        player: whose figure is compared.
        baseline: with whose.
        difference: mean of player minus baseline; NaN without a pair.
        low: lower end of the 95 % interval; NaN with fewer than two pairs.
        high: upper end.
        num_pairs: episodes that enter.
        num_higher: pairs in which the player's value is higher.
        num_lower: pairs in which it is lower.
    """

    metric: str
    player: str
    baseline: str
    difference: float
    low: float
    high: float
    num_pairs: int
    num_higher: int
    num_lower: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What several players did on the same episodes.

    Attributes:
        env_id: where they played.
        summaries: one per player, in the order given.
        differences: every later player against the first, metric by metric.
        errors: of players with failed episodes, the first error.
        method: how the intervals were found.
    """

    env_id: str
    summaries: tuple[EvalSummary, ...]
    differences: tuple[PairedDifference, ...]
    errors: Mapping[str, str] = field(default_factory=dict)
    method: str = METHOD

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON; a number that is not finite becomes None."""
        plain = _plain(asdict(self))
        assert isinstance(plain, dict)
        return plain


def compare(
    played: Mapping[str, Sequence[Trajectory]], *, env_id: str, seed: int, success_reward: float = 1.0
) -> Comparison:
    """Compare players.

    Args:
        played: player to trajectories; those of all players stand in the order of the same seeds.
        env_id: where they played.
        seed: of the bootstrap.
        success_reward: return from which an episode counts as solved.

    Raises:
        UsageError: there are no players, or their episodes are not the same.
    """
    if not played:
        raise UsageError("there is nobody to compare")
    names = list(played)
    seeds = {name: [t.seed for t in trajectories] for name, trajectories in played.items()}
    for name in names[1:]:
        if seeds[name] != seeds[names[0]]:
            raise UsageError(f"{name} and {names[0]} did not play the same seeds; a paired comparison needs that")
    metrics: dict[str, Metric] = {
        "success": lambda t: float(t.reward >= success_reward - 1e-9),
        "reward": lambda t: t.reward,
        "turns": lambda t: float(len(t.turns)),
        "sampled_tokens": written_tokens,
    }
    return Comparison(
        env_id=env_id,
        summaries=tuple(summarise(played[name], name=name, success_reward=success_reward) for name in names),
        differences=tuple(
            _difference(played, metric, values=values, player=name, baseline=names[0], seed=seed)
            for name in names[1:]
            for metric, values in metrics.items()
        ),
        errors={name: error for name in names if (error := _first_error(played[name]))},
    )


def paired_bootstrap(
    difference_N: npt.NDArray[np.float64], *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of paired differences (Efron and Tibshirani 1993, chapter 13).

    Pairs are drawn with replacement. Pairs that all differ by the same amount give an interval without width: with few
    episodes read it together with their number.

    Args:
        difference_N: float[N]; one per pair.
        seed: of the draws.
        num_resamples: how many means are drawn.

    Returns:
        Lower and upper end; NaN with fewer than two pairs.
    """
    count = len(difference_N)
    if count < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // count)
    means = [
        difference_N[rng.integers(count, size=(min(block, num_resamples - start), count))].mean(axis=1)
        for start in range(0, num_resamples, block)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def _difference(
    played: Mapping[str, Sequence[Trajectory]], metric: str, *, values: Metric, player: str, baseline: str, seed: int
) -> PairedDifference:
    pairs = zip(played[player], played[baseline], strict=True)
    found = np.array([values(a) - values(b) for a, b in pairs if a.is_scored and b.is_scored], dtype=np.float64)
    found = found[np.isfinite(found)]
    low, high = paired_bootstrap(found, seed=derive_seed(seed, "bootstrap", metric, player, baseline))
    return PairedDifference(
        metric=metric,
        player=player,
        baseline=baseline,
        difference=float(found.mean()) if len(found) else math.nan,
        low=low,
        high=high,
        num_pairs=len(found),
        num_higher=int((found > 0).sum()),
        num_lower=int((found < 0).sum()),
    )


def _first_error(trajectories: Sequence[Trajectory]) -> str:
    return next((t.error for t in trajectories if not t.is_scored), "")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
