"""Importance weights, rejection masks and mismatch metrics, with numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from agentenv.errors import UsageError
from agentenv.trainers.correction import (
    PRESETS,
    Correction,
    CorrectionConfig,
    CorrectionMode,
    CorrectionName,
    correct,
    mismatch_metrics,
    preset,
)

MODES: list[CorrectionMode] = ["bypass", "decoupled"]


def apply(
    rho_T: list[float], *, config: CorrectionConfig, sequence: list[int] | None = None, active: list[bool] | None = None
) -> Correction:
    """Correct tokens whose pi is rho times a mu of 0.2."""
    behaviour_logprob_T = torch.full((len(rho_T),), math.log(0.2), dtype=torch.float64)
    sequence_T = torch.tensor(sequence or [0] * len(rho_T))
    return correct(
        behaviour_logprob_T + torch.tensor(rho_T, dtype=torch.float64).log(),
        behaviour_logprob_T,
        is_active_T=torch.tensor(active or [True] * len(rho_T)),
        sequence_T=sequence_T,
        num_sequences=int(sequence_T.max()) + 1,
        config=config,
    )


def measure(logprob_T: Tensor, behaviour_logprob_T: Tensor, **changes: Any) -> dict[str, float]:
    size = len(logprob_T)
    columns: dict[str, Any] = {
        "is_active_T": torch.ones(size, dtype=torch.bool),
        "is_kept_T": torch.ones(size, dtype=torch.bool),
        "sequence_T": torch.zeros(size, dtype=torch.int64),
        "num_sequences": 1,
        "advantage_T": torch.ones(size),
        "version_T": torch.zeros(size, dtype=torch.int64),
        "current_version": 0,
    }
    return mismatch_metrics(logprob_T, behaviour_logprob_T, **(columns | changes))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PRESETS)
def test_identical_logprobs_give_weights_of_exactly_one_and_no_mask(name: CorrectionName, mode: CorrectionMode):
    logprob_T = -5 * torch.rand(50, generator=torch.Generator().manual_seed(0))

    correction = correct(
        logprob_T,
        logprob_T.clone(),
        is_active_T=torch.ones(50, dtype=torch.bool),
        sequence_T=torch.arange(50) // 10,
        num_sequences=5,
        config=preset(name, mode=mode),
    )

    assert (correction.weight_T == 1).all()
    assert correction.is_kept_T.all()


def test_token_tis_truncates_pi_over_mu_at_two():
    correction = apply([0.25, 1.0, 1.5, 8.0], config=preset("token_tis", mode="decoupled"))

    assert correction.weight_T.tolist() == pytest.approx([0.25, 1.0, 1.5, 2.0])
    assert correction.is_kept_T.all()


def test_in_bypass_the_factor_completes_the_loss_ratio_to_the_named_weight():
    # the loss ratio is rho itself; rho times the factor is min(rho, 2), never rho times min(rho, 2)
    correction = apply([0.25, 1.0, 1.5, 8.0], config=preset("token_tis", mode="bypass"))

    assert correction.weight_T.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.25])


def test_without_a_weight_rule_the_factor_is_one_in_both_modes():
    for mode in MODES:
        assert apply([0.25, 8.0], config=preset("none", mode=mode)).weight_T.tolist() == [1.0, 1.0]


def test_a_sequence_level_weight_is_the_truncated_product_of_its_tokens():
    config = CorrectionConfig(mode="decoupled", weight="truncate", weight_level="sum", weight_cap=2.0)

    correction = apply([0.5, 0.5, 3.0, 3.0], sequence=[0, 0, 1, 1], config=config)

    assert correction.weight_T.tolist() == pytest.approx([0.25, 0.25, 2.0, 2.0])


def test_rejection_bounds_hold_for_pi_over_mu_and_not_for_its_inverse():
    config = CorrectionConfig(weight="none", mask="ratio", mask_level="token", mask_low=0.5, mask_high=5.0)

    # on the inverse ratio 4.0 (0.25) would go and 0.25 (4.0) would stay
    assert apply([0.25, 0.6, 4.0, 6.0], config=config).is_kept_T.tolist() == [False, True, True, False]


def test_geo_rs_rejects_whole_sequences_by_their_geometric_mean_ratio():
    # Sequence 0: sqrt(2 * 0.5) = 1 stays although its tokens are far off. 1: 1.002 goes. 2: 0.998 goes.
    correction = apply([2.0, 0.5, 1.002, 1.002, 0.998], sequence=[0, 0, 1, 1, 2], config=preset("geo_rs"))

    assert correction.is_kept_T.tolist() == [True, True, False, False, False]
    assert correction.weight_T.tolist() == [1.0] * 5


def test_k3_rs_rejects_sequences_with_a_large_mean_divergence():
    # k3(1.1) = 1.1 - 1 - log 1.1 = 0.0047; k3(1.2) = 0.2 - 0.1823 = 0.0177; their mean is 0.0112
    correction = apply([1.1, 1.1, 1.1, 1.2], sequence=[0, 0, 1, 1], config=preset("k3_rs"))

    assert correction.is_kept_T.tolist() == [True, True, False, False]


def test_observation_tokens_do_not_dilute_a_sequence_statistic():
    config = preset("geo_rs")

    bare = apply([1.0015, 1.0015], config=config)
    diluted = apply([1.0015, 50.0, 50.0, 1.0015], active=[True, False, False, True], config=config)

    assert not bare.is_kept_T.any()
    assert not diluted.is_kept_T.any()
    assert diluted.weight_T.tolist() == [1.0] * 4


def test_tokens_without_a_finite_behaviour_logprob_take_no_part():
    behaviour_logprob_T = torch.tensor([-1.0, -math.inf, math.nan, -1.0])

    correction = correct(
        torch.tensor([-1.0, -1.0, -1.0, -1.0]),
        behaviour_logprob_T,
        is_active_T=torch.ones(4, dtype=torch.bool),
        sequence_T=torch.zeros(4, dtype=torch.int64),
        num_sequences=1,
        config=CorrectionConfig(mode="decoupled", mask="ratio", mask_level="mean", mask_low=0.999, mask_high=1.001),
    )

    assert correction.weight_T.tolist() == [1.0] * 4
    assert correction.is_kept_T.all()


def test_log_ratios_are_clamped_and_weights_detached():
    logprob_T = torch.tensor([-1.0, -1.0], requires_grad=True)
    config = CorrectionConfig(mode="decoupled", weight_cap=1e30)

    correction = correct(
        logprob_T,
        torch.tensor([-400.0, 400.0]),
        is_active_T=torch.ones(2, dtype=torch.bool),
        sequence_T=torch.zeros(2, dtype=torch.int64),
        num_sequences=1,
        config=config,
    )

    assert not correction.weight_T.requires_grad
    assert correction.weight_T.tolist() == pytest.approx([math.exp(20), math.exp(-20)])


def test_half_precision_logprobs_are_compared_in_float32():
    correction = correct(
        torch.tensor([-9.0], dtype=torch.bfloat16),
        torch.tensor([-9.0625], dtype=torch.bfloat16),
        is_active_T=torch.tensor([True]),
        sequence_T=torch.tensor([0]),
        num_sequences=1,
        config=preset("token_tis", mode="decoupled"),
    )

    assert correction.weight_T.dtype == torch.float32
    assert correction.weight_T.item() == pytest.approx(math.exp(0.0625), rel=1e-6)


def test_only_a_mask_or_decoupled_mode_needs_a_pass_before_the_first_backward():
    assert not preset("none").needs_old_logprob
    assert not preset("token_tis").needs_old_logprob
    assert preset("token_tis", mode="decoupled").needs_old_logprob
    assert preset("geo_rs").needs_old_logprob


def test_an_unknown_preset_is_answered_with_the_near_miss():
    with pytest.raises(UsageError, match='Did you mean "token_tis"'):
        preset(cast(CorrectionName, "tokentis"))


def test_metrics_are_those_of_the_ratios_before_truncation():
    rho_T = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    behaviour_logprob_T = torch.tensor([0.2, 0.4, 0.1], dtype=torch.float64).log()

    metrics = measure(behaviour_logprob_T + rho_T.log(), behaviour_logprob_T)

    # log rho: -log 2, 0, 2 log 2; rho: mean 5.5 / 3, mean square (0.25 + 1 + 16) / 3 = 5.75
    log2 = math.log(2)
    assert metrics["k1"] == pytest.approx(-log2 / 3)
    assert metrics["k3"] == pytest.approx((5.5 - 3 - log2) / 3)
    assert metrics["chi2_token"] == pytest.approx(4.75)
    assert metrics["chi2_sequence"] == pytest.approx(3.0)  # product 2, squared, less 1
    assert metrics["ess"] == pytest.approx((5.5 / 3) ** 2 / 5.75)
    assert metrics["rho_min"] == pytest.approx(0.5)
    assert metrics["rho_mean"] == pytest.approx(5.5 / 3)
    assert metrics["rho_max"] == metrics["rho_p99"] == pytest.approx(4.0)
    assert metrics["log_ppl_difference"] == pytest.approx(-log2 / 3)


def test_the_percentile_leaves_one_in_a_hundred_above_it():
    rho_T = torch.arange(1, 201, dtype=torch.float64)

    assert measure(rho_T.log(), torch.zeros(200, dtype=torch.float64))["rho_p99"] == pytest.approx(198.0)


def test_identical_logprobs_measure_as_no_mismatch():
    logprob_T = torch.tensor([-0.5, -1.0, -2.0])

    metrics = measure(logprob_T, logprob_T)

    assert {name: metrics[name] for name in ("k1", "k3", "chi2_token", "chi2_sequence", "log_ppl_difference")} == {
        "k1": 0.0,
        "k3": 0.0,
        "chi2_token": 0.0,
        "chi2_sequence": 0.0,
        "log_ppl_difference": 0.0,
    }
    assert metrics["ess"] == metrics["rho_min"] == metrics["rho_max"] == 1.0
    assert metrics["probability_correlation"] == pytest.approx(1.0)


def test_sequence_metrics_weigh_sequences_and_skip_those_without_active_tokens():
    # sequence 0: log rho 0.2 over two tokens; sequence 1: inactive; sequence 2: 0.4 on one token
    metrics = measure(
        torch.tensor([0.1, 0.1, 7.0, 0.4], dtype=torch.float64),
        torch.zeros(4, dtype=torch.float64),
        is_active_T=torch.tensor([True, True, False, True]),
        sequence_T=torch.tensor([0, 0, 1, 2]),
        num_sequences=3,
    )

    assert metrics["log_ppl_difference"] == pytest.approx(-(0.1 + 0.4) / 2)
    assert metrics["chi2_sequence"] == pytest.approx((math.exp(0.4) + math.exp(0.8)) / 2 - 1)


def test_probabilities_that_move_against_each_other_have_correlation_minus_one():
    behaviour_T = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)

    assert measure((0.5 - behaviour_T).log(), behaviour_T.log())["probability_correlation"] == pytest.approx(-1.0)
    assert measure(torch.full((2,), -1.0), torch.full((2,), -1.0))["probability_correlation"] == 1.0
    assert measure(torch.full((2,), -1.0), torch.full((2,), -2.0))["probability_correlation"] == 0.0


def test_masked_fractions_are_split_by_the_sign_of_the_advantage():
    metrics = measure(
        torch.zeros(5),
        torch.zeros(5),
        advantage_T=torch.tensor([1.0, 1.0, -1.0, 0.0, 1.0]),
        is_kept_T=torch.tensor([False, True, True, False, True]),
    )

    assert metrics["dropped_positive"] == pytest.approx(1 / 3)
    assert metrics["dropped_negative"] == 0.0


def test_ages_speak_of_the_oldest_and_newest_active_token_of_known_version():
    metrics = measure(
        torch.zeros(4),
        torch.zeros(4),
        version_T=torch.tensor([-1, 5, 7, 0]),
        is_active_T=torch.tensor([True, True, True, False]),
        current_version=8,
    )

    assert (metrics["age_oldest"], metrics["age_newest"]) == (3.0, 1.0)
    assert "age_oldest" not in measure(torch.zeros(1), torch.zeros(1), version_T=torch.tensor([-1]))


def test_tokens_without_a_finite_behaviour_logprob_are_counted_and_left_out():
    metrics = measure(torch.zeros(4), torch.tensor([0.0, -math.inf, 0.0, math.nan]))

    assert metrics["non_finite"] == 0.5
    assert metrics["k3"] == 0.0


def test_nothing_active_means_nothing_measured():
    assert measure(torch.zeros(2), torch.zeros(2), is_active_T=torch.zeros(2, dtype=torch.bool)) == {}


def test_only_tokens_of_the_current_version_count_as_fresh():
    rho_T = torch.tensor([1.1, 2.0, 1.2], dtype=torch.float64)
    zeros_T = torch.zeros(3, dtype=torch.float64)

    metrics = measure(rho_T.log(), zeros_T, version_T=torch.tensor([7, 6, 7]), current_version=7)

    # k3(1.1) = 0.0047, k3(1.2) = 0.0177; the token of version 6 differs because of an update
    assert metrics["k3_fresh"] == pytest.approx((0.1 - math.log(1.1) + 0.2 - math.log(1.2)) / 2)
    assert "k3_fresh" not in measure(rho_T.log(), zeros_T, version_T=torch.full((3,), 6), current_version=7)
