"""Packing and micro-batches: layout, token budget, balance, determinism."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentenv.errors import UsageError
from agentenv.trainers.packing import (
    TokenBudgetWarning,
    balance,
    micro_batches,
    pack,
    segment_lengths,
    segment_sum,
)
from agentenv.trainers.sample import Sample


def sample(sample_id: str, length: int) -> Sample:
    counts = np.arange(length, dtype=np.float32)
    return Sample(
        sample_id=sample_id,
        token_ids_T=np.arange(length, dtype=np.int32) + 100,
        is_sampled_T=counts > 0,
        behaviour_logprob_T=-counts,
        version_T=np.full(length, 3, dtype=np.int32),
        turn_T=np.zeros(length, dtype=np.int32),
        advantage_T=counts * 2,
        policy_weight_T=counts * 3,
        cross_entropy_weight_T=counts * 4,
        kl_weight_T=counts * 5,
    )


def test_packing_lays_samples_end_to_end_and_restarts_positions():
    batch = pack([sample("a/0/0", 3), sample("a/0/1", 1), sample("a/1/0", 2)])

    assert batch.token_ids_T.tolist() == [100, 101, 102, 100, 100, 101]
    assert batch.position_T.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.sequence_T.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.cu_seqlens_C.tolist() == [0, 3, 4, 6]
    assert batch.cu_seqlens_C.dtype == torch.int32
    assert batch.max_length == 3
    assert batch.is_sampled_T.tolist() == [False, True, True, False, False, True]
    assert batch.behaviour_logprob_T.tolist() == [0, -1, -2, 0, 0, -1]
    assert batch.advantage_T.tolist() == [0, 2, 4, 0, 0, 2]
    assert batch.policy_weight_T.tolist() == [0, 3, 6, 0, 0, 3]
    assert batch.cross_entropy_weight_T.tolist() == [0, 4, 8, 0, 0, 4]
    assert batch.kl_weight_T.tolist() == [0, 5, 10, 0, 0, 5]
    assert batch.version_T.tolist() == [3] * 6
    assert batch.turn_T.tolist() == [0] * 6


def test_a_packed_batch_counts_sequences_and_trajectories():
    batch = pack([sample("a/0/0", 3), sample("a/0/1", 1), sample("a/1/0", 2), sample("alone", 1)])

    assert (len(batch), batch.num_sequences, batch.num_trajectories) == (7, 4, 3)
    assert batch.trajectory_B.tolist() == [0, 0, 1, 2]


def test_a_packed_batch_moves_as_a_whole():
    batch = pack([sample("a/0/0", 3)])

    moved = batch.to("meta")

    assert moved.token_ids_T.device.type == moved.kl_weight_T.device.type == "meta"
    assert moved.sample_ids == batch.sample_ids
    assert batch.token_ids_T.device.type == "cpu"


def test_packing_nothing_or_an_empty_sample_is_refused():
    with pytest.raises(UsageError, match="0 samples"):
        pack([])
    with pytest.raises(UsageError, match="'a/0/1' has no token"):
        pack([sample("a/0/0", 2), sample("a/0/1", 0)])


def test_as_few_micro_batches_are_made_as_the_budget_allows():
    # 20 tokens in two bins of 10: the 8 leaves room for both ones
    assert balance([8, 5, 5, 1, 1], token_budget=10) == [[0, 3, 4], [1, 2]]


def test_even_costs_come_before_even_token_counts():
    # Two bins are enough. The long item keeps to itself: 36 against 4 * 9 = 36.
    assert balance([6, 3, 3, 3, 3], token_budget=12) == [[0], [1, 2, 3, 4]]


def test_a_sample_longer_than_the_budget_stands_alone_with_a_warning():
    samples = [sample("a/0/0", 2), sample("a/1/0", 9), sample("a/2/0", 2)]

    with pytest.warns(TokenBudgetWarning, match=r"1 of 3 samples .* 'a/1/0', has 9 tokens"):
        parts = micro_batches(samples, token_budget=4)

    assert [[s.sample_id for s in part] for part in parts] == [["a/0/0", "a/2/0"], ["a/1/0"]]


def test_samples_within_the_budget_cause_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(micro_batches([sample("a/0/0", 4), sample("a/1/0", 4)], token_budget=4)) == 2
        assert micro_batches([], token_budget=4) == []


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 120), max_size=60), token_budget=st.integers(1, 100))
def test_every_item_is_placed_once_in_order_and_within_the_budget(lengths: list[int], token_budget: int):
    parts = balance(lengths, token_budget=token_budget)

    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    assert all(part == sorted(part) for part in parts)
    assert [part[0] for part in parts] == sorted(part[0] for part in parts)
    assert all(len(part) == 1 or sum(lengths[index] for index in part) <= token_budget for part in parts)
    assert parts == balance(lengths, token_budget=token_budget)


def test_many_items_come_out_within_a_tenth_of_even_cost():
    lengths = np.random.default_rng(0).integers(50, 1000, size=400).tolist()

    parts = balance(lengths, token_budget=20_000)

    costs = [sum(lengths[index] ** 2 for index in part) for part in parts]
    assert len(parts) <= sum(lengths) / 20_000 + 2
    assert max(costs) <= 1.1 * sum(costs) / len(costs)


def test_a_budget_without_tokens_is_refused():
    with pytest.raises(UsageError, match="token_budget is 0"):
        balance([1], token_budget=0)


def test_segments_may_be_absent():
    sequence_T = torch.tensor([0, 0, 2])

    assert segment_lengths(sequence_T, num_sequences=4).tolist() == [2, 0, 1, 0]
    assert segment_sum(torch.tensor([1.0, 2.0, 5.0]), sequence_T, num_sequences=4).tolist() == [3.0, 0.0, 5.0, 0.0]
