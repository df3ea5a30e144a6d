"""Measures a policy: success with its interval, reward, cost, format compliance, pass@k, and how episodes ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from agentenv.runner import GroupSpec, Runner
from agentenv.seeds import derive_seed
from agentenv.tasks import Task
from agentenv.trajectory import Group, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSummary:
    """Figures of one evaluation. Infrastructure failures are counted apart and enter no mean.

    Attributes:
        name: which policy or phase.
        num_episodes: scored episodes.
        num_failed: infrastructure failures.
        success_rate: share of scored episodes whose return reached the success reward.
        success_low: lower end of the 95 % Wilson interval.
        success_high: upper end.
        mean_reward: mean return.
        mean_turns: mean number of assistant turns.
        mean_sampled_tokens: mean number of tokens that the policy wrote: an endpoint's own count where one played, NaN
            where it does not count.
        format_compliance: share of tool-call attempts that could be parsed; 1 where there were none.
        stop_reasons: how episodes ended, failures included.
        components: mean of every reward component, summed over an episode.
    """

    name: str
    num_episodes: int
    num_failed: int
    success_rate: float
    success_low: float
    success_high: float
    mean_reward: float
    mean_turns: float
    mean_sampled_tokens: float
    format_compliance: float
    stop_reasons: Mapping[str, int]
    components: Mapping[str, float]

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """Return the numbers as flat metrics."""
        return {
            "success": self.success_rate,
            "reward": self.mean_reward,
            "turns": self.mean_turns,
            "sampled_tokens": self.mean_sampled_tokens,
            "format_compliance": self.format_compliance,
            "failed": float(self.num_failed),
        }


def evaluation_groups(
    env_id: str,
    *,
    num_episodes: int,
    seed: int,
    env_kwargs: Mapping[str, object],
    tasks: Sequence[Task] = (),
    purpose: str = "eval",
) -> list[GroupSpec]:
    """Return one group of one episode per seed, or per task where tasks are given.

    Args:
        env_id: registered id.
        num_episodes: how many; tasks repeat when there are fewer.
        seed: of the evaluation.
        env_kwargs: constructor arguments.
        tasks: play these in order instead of letting the environment choose.
        purpose: keeps the seeds of different evaluations apart.
    """
    return [
        GroupSpec(
            group_id=f"{purpose}-{index}",
            env_id=env_id,
            env_kwargs=env_kwargs,
            task=tasks[index % len(tasks)] if tasks else None,
            seed=derive_seed(seed, purpose, index) % 2**31,
            run_seed=seed,
        )
        for index in range(num_episodes)
    ]


async def evaluate(
    runner: Runner, groups: Sequence[GroupSpec], *, name: str, success_reward: float = 1.0
) -> tuple[EvalSummary, list[Trajectory]]:
    """Play groups and summarise them; trajectories come in the order of the groups."""
    played: list[Group] = await runner.run_all(groups)
    trajectories = [trajectory for group in played for trajectory in group.trajectories]
    return summarise(trajectories, name=name, success_reward=success_reward), trajectories


def summarise(trajectories: Sequence[Trajectory], *, name: str, success_reward: float = 1.0) -> EvalSummary:
    """Summarise finished episodes."""
    scored = [t for t in trajectories if t.is_scored]
    solved = sum(t.reward >= success_reward - 1e-9 for t in scored)
    low, high = wilson_interval(solved, len(scored))
    calls = sum(turn.num_tool_calls for t in scored for turn in t.turns)
    malformed = sum(turn.num_malformed_calls for t in scored for turn in t.turns)
    return EvalSummary(
        name=name,
        num_episodes=len(scored),
        num_failed=len(trajectories) - len(scored),
        success_rate=solved / len(scored) if scored else math.nan,
        success_low=low,
        success_high=high,
        mean_reward=_mean([t.reward for t in scored]),
        mean_turns=_mean([len(t.turns) for t in scored]),
        mean_sampled_tokens=_mean([written_tokens(t) for t in scored]),
        format_compliance=1 - malformed / calls if calls else 1.0,
        stop_reasons=dict(sorted(Counter(t.stop_reason.value for t in trajectories).items())),
        components=_component_means(scored),
    )


def written_tokens(trajectory: Trajectory) -> float:
    """Return how many tokens the policy wrote; NaN where an endpoint played that does not say."""
    metrics = trajectory.metrics
    if metrics.get("unreported_turns"):
        return math.nan
    return metrics.get("reported_tokens", float(trajectory.num_sampled_tokens))


def wilson_interval(successes: int, trials: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion (E. B. Wilson, 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(num_samples: int, num_correct: int, *, k: int) -> float:
    """Return the unbiased estimate of pass@k: 1 - C(n-c, k) / C(n, k) (Chen et al., 2021, eq. 1).

    Raises:
        ValueError: k is larger than the number of samples.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}; it must lie in 1..{num_samples}, the number of samples")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def group_pass_at_k(groups: Sequence[Group], *, k: int, success_reward: float = 1.0) -> float:
    """Return the mean pass@k over groups that have at least k scored members."""
    values = [
        pass_at_k(len(g.scored), sum(t.reward >= success_reward - 1e-9 for t in g.scored), k=k)
        for g in groups
        if len(g.scored) >= k
    ]
    return _mean(values)


def _component_means(scored: Sequence[Trajectory]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for trajectory in scored:
        for components in (trajectory.reward_components, *(turn.reward_components for turn in trajectory.turns)):
            for key, value in components.items():
                totals[key] = totals.get(key, 0.0) + value
    return {key: value / len(scored) for key, value in sorted(totals.items())}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
