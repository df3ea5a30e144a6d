"""Sampling: what is drawn, with which log-prob, and that a draw depends on nothing but seed and position."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from agentenv.engine.sampling import draw, sampling_rows, seed_state, uniforms


def logits_of(*rows: list[float]) -> Tensor:
    """Return logits whose softmax is the given probabilities."""
    return torch.tensor(rows, dtype=torch.float32).log()


def draw_with(
    logit_BV: Tensor,
    uniform: list[float],
    *,
    temperature: list[float] | None = None,
    top_p: list[float] | None = None,
    top_k: list[int] | None = None,
) -> tuple[list[int], list[float]]:
    count, vocab_size = logit_BV.shape
    rows = sampling_rows(
        temperature_B=np.array(temperature or [1.0] * count),
        top_p_B=np.array(top_p or [1.0] * count),
        top_k_B=np.array(top_k or [0] * count, dtype=np.int64),
        vocab_size=vocab_size,
        device=torch.device("cpu"),
    )
    token_B, logprob_B = draw(logit_BV.clone(), rows, uniform_B=torch.tensor(uniform, dtype=torch.float64))
    return token_B.tolist(), logprob_B.tolist()


def test_a_uniform_is_looked_up_in_the_cumulative_distribution():
    # cumulative: 0.1, 0.3, 1.0
    logit_BV = logits_of(*[[0.1, 0.2, 0.7]] * 4)

    tokens, logprobs = draw_with(logit_BV, [0.05, 0.15, 0.29, 0.31])

    assert tokens == [0, 1, 1, 2]
    assert logprobs == pytest.approx([math.log(0.1), math.log(0.2), math.log(0.2), math.log(0.7)], abs=1e-6)


def test_logprobs_are_those_of_the_logits_over_the_temperature():
    # logits (ln 4, 0) over temperature 2 are (ln 2, 0): probabilities 2/3 and 1/3
    logit_BV = torch.tensor([[math.log(4.0), 0.0], [math.log(4.0), 0.0]])

    tokens, logprobs = draw_with(logit_BV, [0.66, 0.67], temperature=[2.0, 2.0])

    assert tokens == [0, 1]
    assert logprobs == pytest.approx([math.log(2 / 3), math.log(1 / 3)], abs=1e-6)


def test_greedy_takes_the_likeliest_token_and_scores_it_at_temperature_1():
    logit_BV = logits_of([0.2, 0.5, 0.3], [0.2, 0.5, 0.3])

    tokens, logprobs = draw_with(logit_BV, [0.99, 0.99], temperature=[0.0, 1.0])

    assert tokens == [1, 2]
    assert logprobs == pytest.approx([math.log(0.5), math.log(0.3)], abs=1e-6)


def test_top_k_draws_among_the_k_likeliest_but_scores_under_all():
    # the two likeliest are tokens 2 (0.5) and 0 (0.3): of their mass, 0.625 and 0.375, the likeliest first
    logit_BV = logits_of(*[[0.3, 0.2, 0.5]] * 3)

    tokens, logprobs = draw_with(logit_BV, [0.62, 0.63, 0.999], top_k=[2, 2, 2])

    assert tokens == [2, 0, 0]
    assert logprobs == pytest.approx([math.log(0.5), math.log(0.3), math.log(0.3)], abs=1e-6)


@pytest.mark.parametrize(("top_p", "kept"), [(0.45, {2}), (0.55, {2, 0}), (0.85, {2, 0, 1}), (1.0, {0, 1, 2})])
def test_top_p_keeps_the_smallest_set_that_reaches_its_mass(top_p: float, kept: set[int]):
    uniform = [step / 50 for step in range(50)]
    logit_BV = logits_of(*[[0.3, 0.2, 0.5]] * 50)

    tokens, _ = draw_with(logit_BV, uniform, top_p=[top_p] * 50)

    assert set(tokens) == kept


def test_top_p_is_taken_of_what_top_k_left():
    # top-k 2 leaves 0.5 and 0.3, that is 0.625 and 0.375: the first alone reaches 0.6
    uniform = [step / 50 for step in range(50)]

    tokens, _ = draw_with(logits_of(*[[0.3, 0.2, 0.5]] * 50), uniform, top_p=[0.6] * 50, top_k=[2] * 50)

    assert set(tokens) == {2}


def test_rows_with_different_settings_do_not_disturb_each_other():
    logit_BV = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    uniform = [0.1, 0.3, 0.5, 0.7, 0.9, 0.99]
    settings = {
        "temperature": [1.0, 0.0, 0.5, 1.0, 2.0, 1.0],
        "top_p": [1.0, 1.0, 0.9, 0.5, 1.0, 1.0],
        "top_k": [0, 0, 0, 3, 7, 1],
    }

    together = draw_with(logit_BV, uniform, **settings)
    alone = [
        draw_with(logit_BV[row : row + 1], uniform[row : row + 1], **{k: v[row : row + 1] for k, v in settings.items()})
        for row in range(6)
    ]

    assert together[0] == [tokens[0] for tokens, _ in alone]
    assert together[1] == pytest.approx([logprobs[0] for _, logprobs in alone], abs=1e-6)


@pytest.mark.parametrize("vocab_size", [640, 2000, 2047])
def test_many_rows_are_drawn_like_single_ones(vocab_size: int):
    # 128 rows are searched block by block, a single row in one go
    logit_BV = torch.randn(128, vocab_size, generator=torch.Generator().manual_seed(1)) * 3
    uniform = np.random.default_rng(0).random(128).tolist()

    together, logprobs = draw_with(logit_BV, uniform)
    alone = [draw_with(logit_BV[row : row + 1], uniform[row : row + 1]) for row in range(128)]

    assert together == [tokens[0] for tokens, _ in alone]
    expected_B = logit_BV.double().log_softmax(-1).gather(1, torch.tensor(together)[:, None])[:, 0]
    assert logprobs == pytest.approx(expected_B.tolist(), abs=2e-6)


@pytest.mark.parametrize("count", [1, 200])
def test_a_token_of_probability_0_is_never_drawn(count: int):
    # three tokens have all the mass, and 3 * (1 - 2**-53) rounds to 3: the extremes must still land on one of them
    logit_V = torch.full((700,), -math.inf)
    logit_V[[3, 250, 500]] = 0.0

    lowest, _ = draw_with(logit_V.repeat(count, 1), [0.0] * count)
    highest, _ = draw_with(logit_V.repeat(count, 1), [1 - 2**-53] * count)

    assert set(lowest) == {3}
    assert set(highest) == {500}


def test_frequencies_follow_the_distribution():
    probability_V = torch.tensor([0.02, 0.08, 0.4, 0.2, 0.3])
    uniform = uniforms(seed_state(7).reshape(1), np.arange(40_000)).tolist()

    tokens, _ = draw_with(probability_V.log().repeat(40_000, 1), uniform)

    frequency_V = np.bincount(tokens, minlength=5) / 40_000
    # four standard deviations of the rarest and of the commonest: 0.0028 and 0.0098
    assert np.abs(frequency_V - probability_V.numpy()).max() < 0.0098


def test_a_row_without_finite_logits_says_so_and_spares_the_others():
    logit_BV = logits_of([0.5, 0.5], [0.5, 0.5], [0.5, 0.5])
    logit_BV[1, 0] = math.nan

    tokens, logprobs = draw_with(logit_BV, [0.1, 0.1, 0.9])

    assert [math.isfinite(value) for value in logprobs] == [True, False, True]
    assert tokens[0] == 0
    assert tokens[2] == 1


def test_a_uniform_is_a_function_of_seed_and_position():
    states = np.array([seed_state(1), seed_state(2), seed_state(-1), seed_state(2**70 + 1)])
    positions = np.array([5, 5, 9, 0])

    together = uniforms(states, positions)

    assert together.tolist() == [uniforms(states[i : i + 1], positions[i : i + 1])[0] for i in range(4)]
    assert ((together >= 0) & (together < 1)).all()
    # a seed counts modulo 2**64
    assert seed_state(2**70 + 1) == seed_state(1)


def test_neighbouring_seeds_positions_and_streams_are_unrelated():
    by_position = uniforms(seed_state(0).reshape(1), np.arange(10_000))
    by_seed = uniforms(np.array([seed_state(seed) for seed in range(10_000)]), np.zeros(10_000, dtype=np.int64))
    by_stream = uniforms(
        np.array([seed_state(0, stream=stream) for stream in range(10_000)]), np.zeros(10_000, dtype=np.int64)
    )

    for series in (by_position, by_seed, by_stream):
        # the mean of 10,000 uniforms has standard deviation 0.0029, their lag-1 correlation 0.01
        assert abs(series.mean() - 0.5) < 0.012
        assert abs(np.corrcoef(series[:-1], series[1:])[0, 1]) < 0.04
    assert abs(np.corrcoef(by_position, by_seed)[0, 1]) < 0.04
