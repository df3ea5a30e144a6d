"""Advantage estimators against numbers worked out by hand, a plain loop and an exactly enumerated MDP.

Shapes: B trajectories, K turns, T packed tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentenv.trainers.credit import BLOCK_TOKENS, gae, grpo, rloo, to_tokens, turn_rtg_loo, whitened

Baseline = Callable[[Tensor, Tensor, Tensor], Tensor]


def everyone(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def test_grpo_divides_by_the_sample_standard_deviation():
    advantage_B = grpo(torch.tensor([0.0, 2.0], dtype=torch.float64), torch.tensor([0, 0]), is_scored_B=everyone(2))

    # mean 1, sample variance ((-1)^2 + 1^2) / (2 - 1) = 2; the population one would give +-1
    assert advantage_B.tolist() == pytest.approx([-1 / (math.sqrt(2) + 1e-6), 1 / (math.sqrt(2) + 1e-6)], rel=1e-12)


def test_grpo_without_std_centres_each_trajectory_within_its_own_group():
    reward_B = torch.tensor([1.0, 5.0, 0.0, 3.0])
    group_B = torch.tensor([7, 2, 7, 2])

    advantage_B = grpo(reward_B, group_B, is_scored_B=everyone(4), divide_by_std=False)

    # group 7 has mean 0.5, group 2 has mean 4
    assert advantage_B.tolist() == [0.5, 1.0, -0.5, -1.0]


def test_rloo_subtracts_the_mean_of_the_other_members():
    advantage_B = rloo(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([3, 3, 3]), is_scored_B=everyone(3))

    # 1 - (0 + 5) / 2, 0 - (1 + 5) / 2, 5 - (1 + 0) / 2
    assert advantage_B.tolist() == [-1.5, -3.0, 4.5]


@pytest.mark.parametrize("estimator", [grpo, rloo])
def test_a_group_of_one_has_advantage_zero_and_not_its_raw_reward(estimator: Callable[..., Tensor]):
    advantage_B = estimator(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 1, 1]), is_scored_B=everyone(3))

    assert advantage_B[0] == 0.0
    assert advantage_B[1] < 0.0 < advantage_B[2]


@pytest.mark.parametrize("estimator", [grpo, rloo])
def test_equal_rewards_give_exactly_zero(estimator: Callable[..., Tensor]):
    # ten times 0.1 sums to 0.9999999999999999; what is left of the mean must not pass for a signal
    reward_B = torch.full((10,), 0.1, dtype=torch.float64)

    advantage_B = estimator(reward_B, torch.zeros(10, dtype=torch.int64), is_scored_B=everyone(10))

    assert advantage_B.tolist() == [0.0] * 10


@pytest.mark.parametrize("estimator", [grpo, rloo])
def test_a_masked_member_leaves_the_baseline_and_gets_nothing(estimator: Callable[..., Tensor]):
    reward_B = torch.tensor([1.0, math.nan, 3.0, 5.0])
    is_scored_B = torch.tensor([True, False, True, True])

    advantage_B = estimator(reward_B, torch.zeros(4, dtype=torch.int64), is_scored_B=is_scored_B)
    without_B = estimator(reward_B[is_scored_B], torch.zeros(3, dtype=torch.int64), is_scored_B=everyone(3))

    assert advantage_B[1] == 0.0
    assert torch.equal(advantage_B[is_scored_B], without_B)


def test_turn_advantage_compares_returns_to_go_at_the_same_turn_index():
    # trajectory 0: rewards 1, 2, so returns-to-go 3, 2; trajectory 1: reward 4, so 4 and 0 once it has ended
    reward_K = torch.tensor([1.0, 2.0, 4.0])
    trajectory_K = torch.tensor([0, 0, 1])

    advantage_K = turn_rtg_loo(reward_K, trajectory_K, group_B=torch.tensor([0, 0]), is_scored_B=everyone(2))

    assert advantage_K.tolist() == [3.0 - 4.0, 2.0 - 0.0, 4.0 - 3.0]


def test_an_extra_turn_that_costs_one_is_not_paid_a_hidden_bonus():
    # Each turn costs 1. Centring rewards among the turns alive at an index and summing would call both episodes equal.
    reward_K = torch.tensor([-1.0, -1.0, -1.0])
    trajectory_K = torch.tensor([0, 1, 1])

    advantage_K = turn_rtg_loo(reward_K, trajectory_K, group_B=torch.tensor([0, 0]), is_scored_B=everyone(2))

    # short episode: -1 - (-2); long one: -2 - (-1), then -1 - 0
    assert advantage_K.tolist() == [1.0, -1.0, -1.0]


def test_a_masked_member_leaves_the_turn_baseline():
    reward_K = torch.tensor([1.0, 100.0, 100.0, 3.0])
    trajectory_K = torch.tensor([0, 1, 1, 2])
    is_scored_B = torch.tensor([True, False, True])

    advantage_K = turn_rtg_loo(reward_K, trajectory_K, group_B=torch.tensor([5, 5, 5]), is_scored_B=is_scored_B)

    assert advantage_K.tolist() == [1.0 - 3.0, 0.0, 0.0, 3.0 - 1.0]


def test_trajectories_without_turns_count_as_ended():
    advantage_K = turn_rtg_loo(
        torch.tensor([2.0]), torch.tensor([1]), group_B=torch.tensor([0, 0]), is_scored_B=everyone(2)
    )

    assert advantage_K.tolist() == [2.0]


@dataclass(frozen=True, kw_only=True)
class Path:
    """One way an episode can go: its actions' logit indices and values, and its turn rewards."""

    decisions: tuple[tuple[int, int], ...]
    rewards: tuple[float, ...]


# Three states, two actions. From state 0, action 0 stops with reward 1 and action 1 goes on to state 1 with -0.5; from
# state 1, action 0 stops with 3 and action 1 goes on to state 2 with 0.25; state 2 ends with -2 or 1.
PATHS = (
    Path(decisions=((0, 0),), rewards=(1.0,)),
    Path(decisions=((0, 1), (1, 0)), rewards=(-0.5, 3.0)),
    Path(decisions=((0, 1), (1, 1), (2, 0)), rewards=(-0.5, 0.25, -2.0)),
    Path(decisions=((0, 1), (1, 1), (2, 1)), rewards=(-0.5, 0.25, 1.0)),
)


def decision_logprobs(logit_S: Tensor, path: Path) -> Tensor:
    return torch.stack(
        [torch.nn.functional.logsigmoid(logit_S[s] if action else -logit_S[s]) for s, action in path.decisions]
    )


def true_gradient(logit_S: Tensor) -> Tensor:
    value = torch.stack([decision_logprobs(logit_S, path).sum().exp() * sum(path.rewards) for path in PATHS]).sum()
    return torch.autograd.grad(value, logit_S)[0]


def expected_policy_gradient(logit_S: Tensor, *, group_size: int, advantage: Baseline) -> Tensor:
    """Enumerate every possible group and average its policy gradient, exactly."""
    total_S = torch.zeros_like(logit_S)
    for group in itertools.product(PATHS, repeat=group_size):
        logprobs = [decision_logprobs(logit_S, path) for path in group]
        probability = torch.cat(logprobs).sum().exp().detach()
        reward_K = torch.tensor([r for path in group for r in path.rewards], dtype=torch.float64)
        trajectory_K = torch.tensor([i for i, path in enumerate(group) for _ in path.rewards])
        advantage_K = advantage(reward_K, trajectory_K, torch.zeros(group_size, dtype=torch.int64))
        surrogate = (advantage_K * torch.cat(logprobs)).sum() / group_size
        total_S += probability * torch.autograd.grad(surrogate, logit_S)[0]
    return total_S


def among_survivors(reward_K: Tensor, trajectory_K: Tensor, group_B: Tensor) -> Tensor:
    """The tempting wrong baseline: rewards centred among episodes still alive at the index, then summed to the end."""
    turn_K = torch.tensor([int((trajectory_K[:k] == trajectory_K[k]).sum()) for k in range(len(trajectory_K))])
    centred_K = torch.stack([reward_K[k] - reward_K[turn_K == turn_K[k]].mean() for k in range(len(reward_K))])
    later = (trajectory_K[:, None] == trajectory_K[None]) & (turn_K[None] >= turn_K[:, None])
    return (later * centred_K[None]).sum(1)


@pytest.mark.parametrize("group_size", [2, 3])
def test_turn_advantage_is_unbiased_by_exact_enumeration_of_an_mdp(group_size: int):
    logit_S = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64, requires_grad=True)

    def leave_one_out(reward_K: Tensor, trajectory_K: Tensor, group_B: Tensor) -> Tensor:
        return turn_rtg_loo(reward_K, trajectory_K, group_B=group_B, is_scored_B=everyone(len(group_B)))

    gradient_S = expected_policy_gradient(logit_S, group_size=group_size, advantage=leave_one_out)

    assert torch.allclose(gradient_S, true_gradient(logit_S), rtol=1e-12, atol=1e-14)


def test_the_enumeration_exposes_a_baseline_among_survivors_as_biased():
    logit_S = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64, requires_grad=True)

    gradient_S = expected_policy_gradient(logit_S, group_size=3, advantage=among_survivors)

    # a shrunk estimate would be forgivable; this one points elsewhere
    cosine = torch.nn.functional.cosine_similarity(gradient_S, true_gradient(logit_S), dim=0)
    assert cosine < 0.9


def test_gae_carries_over_observation_tokens_unchanged():
    # sampled, observation, sampled; gamma 0.5, lambda 0.5
    reward_T = torch.tensor([0.0, 0.0, 4.0])
    value_T = torch.tensor([1.0, 99.0, 2.0])

    advantage_T, return_T = gae(
        reward_T,
        value_T,
        sequence_T=torch.zeros(3, dtype=torch.int64),
        is_sampled_T=torch.tensor([True, False, True]),
        gamma=0.5,
        lam=0.5,
    )

    # last: 4 - 2 = 2; first: delta = 0 + 0.5 * 2 - 1 = 0, plus 0.25 * 2 = 0.5
    assert advantage_T.tolist() == [0.5, 0.0, 2.0]
    assert return_T.tolist() == [1.5, 0.0, 4.0]


def test_a_reward_on_an_observation_token_belongs_to_the_sampled_token_before_it():
    sequence_T = torch.tensor([0, 0, 0, 0, 1])
    is_sampled_T = torch.tensor([False, True, False, True, False])
    value_T = torch.zeros(5)
    on_observation_T = torch.tensor([9.0, 0.0, 6.0, 1.0, 5.0])
    on_action_T = torch.tensor([0.0, 6.0, 0.0, 1.0, 0.0])

    advantage_T, _ = gae(on_observation_T, value_T, sequence_T=sequence_T, is_sampled_T=is_sampled_T, lam=1.0)
    expected_T, _ = gae(on_action_T, value_T, sequence_T=sequence_T, is_sampled_T=is_sampled_T, lam=1.0)

    # nothing was done before the 9, nor in the sequence of the 5
    assert advantage_T.tolist() == expected_T.tolist() == [0.0, 7.0, 0.0, 1.0, 0.0]


def plain_gae(reward: list[float], value: list[float], *, sequence: list[int], gamma: float, lam: float) -> list[float]:
    out = [0.0] * len(reward)
    for t in reversed(range(len(reward))):
        continues = t + 1 < len(reward) and sequence[t + 1] == sequence[t]
        next_value, next_advantage = (value[t + 1], out[t + 1]) if continues else (0.0, 0.0)
        out[t] = reward[t] + gamma * next_value - value[t] + gamma * lam * next_advantage
    return out


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_gae_equals_the_plain_loop_and_ignores_where_observations_stand(
    lengths: list[int], gamma: float, lam: float, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    sequence_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    is_sampled_T = torch.rand(len(sequence_T), generator=generator) < 0.6
    reward_T = torch.randn(len(sequence_T), generator=generator, dtype=torch.float64) * is_sampled_T
    value_T = torch.randn(len(sequence_T), generator=generator, dtype=torch.float64)

    advantage_T, return_T = gae(
        reward_T, value_T, sequence_T=sequence_T, is_sampled_T=is_sampled_T, gamma=gamma, lam=lam
    )

    reward, value, sequence = (x[is_sampled_T].tolist() for x in (reward_T, value_T, sequence_T))
    expected = plain_gae(reward, value, sequence=sequence, gamma=gamma, lam=lam)
    assert advantage_T[is_sampled_T].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert torch.equal(return_T[is_sampled_T], advantage_T[is_sampled_T] + value_T[is_sampled_T])
    assert not advantage_T[~is_sampled_T].any()
    assert not return_T[~is_sampled_T].any()


def test_gae_crosses_the_blocks_that_it_works_in():
    size = BLOCK_TOKENS + 17
    generator = torch.Generator().manual_seed(1)
    sequence_T = (torch.arange(size) > 5).long()  # the second sequence reaches into both blocks
    is_sampled_T = torch.rand(size, generator=generator) < 0.5
    reward_T = torch.randn(size, generator=generator, dtype=torch.float64) * is_sampled_T
    value_T = torch.randn(size, generator=generator, dtype=torch.float64)

    advantage_T, _ = gae(reward_T, value_T, sequence_T=sequence_T, is_sampled_T=is_sampled_T, gamma=1.0, lam=1.0)

    reward, value, sequence = (x[is_sampled_T].tolist() for x in (reward_T, value_T, sequence_T))
    expected = plain_gae(reward, value, sequence=sequence, gamma=1.0, lam=1.0)
    assert advantage_T[is_sampled_T].tolist() == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_a_reward_finds_its_earner_across_whole_blocks_of_observations():
    size = 3 * BLOCK_TOKENS
    is_sampled_T = torch.zeros(size, dtype=torch.bool)
    is_sampled_T[3] = True
    reward_T, value_T = torch.zeros(size), torch.zeros(size)
    reward_T[BLOCK_TOKENS + 1], reward_T[-1] = 2.0, 5.0

    def earned(sequence_T: Tensor) -> float:
        advantage_T, _ = gae(reward_T, value_T, sequence_T=sequence_T, is_sampled_T=is_sampled_T)
        assert advantage_T.count_nonzero() <= 1
        return advantage_T[3].item()

    token_T = torch.arange(size)
    assert earned(torch.zeros(size, dtype=torch.int64)) == 7.0
    assert earned((token_T > 2 * BLOCK_TOKENS).long()) == 2.0  # the 5 stands in a sequence without an action
    assert earned((token_T > 10).long()) == 0.0


def test_whitening_changes_the_advantages_of_sampled_tokens_and_never_the_returns():
    reward_T, value_T = torch.tensor([1.0, 7.0, 3.0]), torch.zeros(3)
    sequence_T, is_sampled_T = torch.tensor([0, 0, 1]), torch.tensor([True, False, True])

    plain_T, return_T = gae(reward_T, value_T, sequence_T=sequence_T, is_sampled_T=is_sampled_T)
    white_T, same_return_T = gae(reward_T, value_T, sequence_T=sequence_T, is_sampled_T=is_sampled_T, whiten=True)

    # 1 + 7 from the observation, and 3: mean 5.5, sample deviation 2.5 sqrt(2)
    assert plain_T.tolist() == [8.0, 0.0, 3.0]
    assert white_T.tolist() == pytest.approx([math.sqrt(0.5), 0.0, -math.sqrt(0.5)])
    assert torch.equal(return_T, same_return_T)
    assert whitened(torch.tensor([4.0])).tolist() == [0.0]


def test_a_trajectory_advantage_lies_on_its_sampled_tokens_only():
    advantage_T = to_tokens(
        torch.tensor([2.0, -3.0]),
        torch.tensor([0, 0, 1, 1]),
        is_sampled_T=torch.tensor([False, True, True, False]),
    )

    assert advantage_T.tolist() == [0.0, 2.0, -3.0, 0.0]
