"""Losses against numbers worked out by hand, and gradients that do not depend on how a batch is cut."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from agentenv.errors import UsageError
from agentenv.trainers.correction import CorrectionMode, CorrectionName, correct, preset
from agentenv.trainers.losses import (
    AGGREGATIONS,
    KL_ESTIMATORS,
    POLICY_LOSSES,
    AggregationName,
    Denominators,
    KLName,
    LossConfig,
    PolicyLossName,
    active_tokens,
    count_denominators,
    mean_metrics,
    packed_loss,
)
from agentenv.trainers.packing import PackedBatch, pack
from agentenv.trainers.sample import Sample

VOCABULARY = 7


class Unbounded(LossConfig):
    """Without the bound for negative advantages."""

    dual_clip = None


PLAIN_PPO = LossConfig(policy="ppo_clip")


def sample(
    name: str,
    *,
    mu: Sequence[float],
    advantage: Sequence[float],
    policy: Sequence[float] | None = None,
    cross_entropy: Sequence[float] | None = None,
    kl: Sequence[float] | None = None,
) -> Sample:
    """A sample whose tokens were sampled with probabilities `mu`; weights default to policy 1, the others 0."""
    size = len(mu)
    with np.errstate(divide="ignore"):
        logprob_T = np.log(np.array(mu)).astype(np.float32)
    return Sample(
        sample_id=f"g/{name}/0",
        token_ids_T=np.zeros(size, dtype=np.int32),
        is_sampled_T=np.ones(size, dtype=np.bool_),
        behaviour_logprob_T=logprob_T,
        version_T=np.zeros(size, dtype=np.int32),
        turn_T=np.zeros(size, dtype=np.int32),
        advantage_T=np.array(advantage, dtype=np.float32),
        policy_weight_T=np.array(policy or [1.0] * size, dtype=np.float32),
        cross_entropy_weight_T=np.array(cross_entropy or [0.0] * size, dtype=np.float32),
        kl_weight_T=np.array(kl or [0.0] * size, dtype=np.float32),
    )


def loss_and_gradient(batch: PackedBatch, pi: Sequence[float], *, config: LossConfig, **columns: Any):
    """Return loss, gradient by log pi, and metrics of a batch that is the whole global batch."""
    logprob_T = torch.tensor(pi, dtype=torch.float64).log().requires_grad_()
    denominators = count_denominators(batch, is_kept_T=columns.get("is_kept_T"))
    loss, metrics = packed_loss(batch, logprob_T=logprob_T, denominators=denominators, config=config, **columns)
    (gradient_T,) = torch.autograd.grad(loss, logprob_T)
    return loss.item(), gradient_T.tolist(), mean_metrics([metrics])


def test_ppo_clip_stops_the_gradient_outside_its_bounds_and_only_in_the_pushed_direction():
    # ratios 0.5, 1.5 with A = 1; 0.5, 1.5 with A = -1
    batch = pack([sample("0", mu=[0.4, 0.4, 0.4, 0.4], advantage=[1, 1, -1, -1])])

    loss, gradient, metrics = loss_and_gradient(batch, [0.2, 0.6, 0.2, 0.6], config=PLAIN_PPO)

    # -min(rA, clip(r, 0.8, 1.28) A): -0.5, -1.28, +0.8, +1.5; d/dlog pi is -rA where unclipped
    assert loss == pytest.approx((-0.5 - 1.28 + 0.8 + 1.5) / 4)
    assert gradient == pytest.approx([-0.5 / 4, 0.0, 0.0, 1.5 / 4])
    assert (metrics["clip_high"], metrics["clip_low"], metrics["dual_clip"]) == (0.25, 0.25, 0.0)


def test_dual_clip_bounds_the_loss_of_a_negative_advantage():
    batch = pack([sample("0", mu=[0.1, 0.1], advantage=[-2, 2])])

    loss, gradient, metrics = loss_and_gradient(batch, [0.5, 0.5], config=PLAIN_PPO)
    unbounded, _, _ = loss_and_gradient(batch, [0.5, 0.5], config=Unbounded(policy="ppo_clip"))

    # ratio 5: 3 * 2 instead of 5 * 2; the positive one stays at -1.28 * 2
    assert loss == pytest.approx((6.0 - 2.56) / 2)
    assert unbounded == pytest.approx((10.0 - 2.56) / 2)
    assert gradient == [0.0, 0.0]
    assert metrics["dual_clip"] == 0.5


def test_dppo_drops_tokens_that_have_moved_too_far_in_the_pushed_direction_and_keeps_their_penalty():
    # pi - mu: +0.3, -0.3, +0.3, -0.3 for A = 1, 1, -1, -1: the first and the last have gone too far
    batch = pack([sample("0", mu=[0.2, 0.6, 0.2, 0.6], advantage=[1, 1, -1, -1])])

    loss, gradient, metrics = loss_and_gradient(
        batch, [0.5, 0.3, 0.5, 0.3], config=LossConfig(policy="dppo_tv", log_ratio_penalty=0.01)
    )

    up, down = math.log(2.5), math.log(0.5)  # log ratios
    assert loss == pytest.approx((-0.5 + 2.5 + 0.01 * (2 * up**2 + 2 * down**2)) / 4)
    assert gradient == pytest.approx(
        [0.02 * up / 4, (-0.5 + 0.02 * down) / 4, (2.5 + 0.02 * up) / 4, 0.02 * down / 4], rel=1e-5
    )
    assert metrics["tv_dropped"] == 0.5


def test_decoupled_ratio_is_anchored_at_the_old_policy_also_in_the_only_minibatch():
    # were log pi_old thrown away, the ratio would be 1 and nothing would be clipped
    batch = pack([sample("0", mu=[0.5], advantage=[1])])
    old_logprob_T = torch.tensor([0.25]).log()

    loss, gradient, _ = loss_and_gradient(
        batch, [0.5], config=PLAIN_PPO, old_logprob_T=old_logprob_T, weight_T=torch.tensor([0.5])
    )

    # r = 0.5 / 0.25 = 2, clipped at 1.28, times the importance weight pi_old / mu = 0.5
    assert loss == pytest.approx(-0.64)
    assert gradient == [0.0]


@pytest.mark.parametrize(("name", "mode"), [("token_tis", "bypass"), ("token_tis", "decoupled"), ("geo_rs", "bypass")])
def test_switching_a_correction_on_changes_the_gradient(name: CorrectionName, mode: CorrectionMode):
    batch = pack([sample("0", mu=[0.1, 0.1], advantage=[1, 1]), sample("1", mu=[0.5], advantage=[1])])
    pi = [0.5, 0.1, 0.5]
    config = LossConfig(policy="dppo_tv", tv_limit=1.0)
    corrections = [
        correct(
            torch.tensor(pi).log(),
            batch.behaviour_logprob_T,
            is_active_T=active_tokens(batch).policy_T,
            sequence_T=batch.sequence_T,
            num_sequences=batch.num_sequences,
            config=preset(which, mode=mode),
        )
        for which in ("none", name)
    ]

    plain, corrected = (
        loss_and_gradient(batch, pi, config=config, weight_T=each.weight_T, is_kept_T=each.is_kept_T)[1]
        for each in corrections
    )

    assert plain != pytest.approx(corrected, rel=1e-3)


def test_in_bypass_token_tis_makes_the_truncated_ratio_the_coefficient_of_the_gradient():
    batch = pack([sample("0", mu=[0.1, 0.4], advantage=[1, 1])])
    config = LossConfig(policy="dppo_tv", tv_limit=1.0, log_ratio_penalty=0.0)
    correction = correct(
        torch.tensor([0.5, 0.6]).log(),
        batch.behaviour_logprob_T,
        is_active_T=batch.is_sampled_T,
        sequence_T=batch.sequence_T,
        num_sequences=1,
        config=preset("token_tis"),
    )

    _, gradient, _ = loss_and_gradient(batch, [0.5, 0.6], config=config, weight_T=correction.weight_T)

    # ratios 5 and 1.5, of which the first is cut to 2
    assert gradient == pytest.approx([-2.0 / 2, -1.5 / 2], rel=1e-6)


def test_rejected_tokens_leave_numerator_and_denominator():
    batch = pack([sample("0", mu=[0.5, 0.5], advantage=[3, 1]), sample("1", mu=[0.5], advantage=[2])])
    is_kept_T = torch.tensor([False, True, True])

    loss, gradient, metrics = loss_and_gradient(batch, [0.5] * 3, config=PLAIN_PPO, is_kept_T=is_kept_T)

    assert count_denominators(batch, is_kept_T=is_kept_T).policy_tokens == 2
    assert loss == pytest.approx(-(1 + 2) / 2)
    assert gradient == pytest.approx([0.0, -0.5, -1.0])
    assert metrics["policy_loss"] == pytest.approx(-1.5)


def test_tokens_without_a_finite_behaviour_logprob_leave_numerator_and_denominator():
    batch = pack([sample("0", mu=[0.5, 0.0, 0.5], advantage=[1, 5, 1])])
    batch = dataclasses.replace(batch, behaviour_logprob_T=batch.behaviour_logprob_T.clone())
    batch.behaviour_logprob_T[2] = math.nan

    for policy in POLICY_LOSSES:
        loss, gradient, _ = loss_and_gradient(batch, [0.5] * 3, config=LossConfig(policy=policy))

        assert loss == pytest.approx(-1.0)
        assert gradient == pytest.approx([-1.0, 0.0, 0.0])


def test_log_ratios_beyond_twenty_neither_overflow_nor_pull():
    batch = pack([sample("0", mu=[1.0], advantage=[-1])])
    config = Unbounded(policy="ppo_clip")

    loss, gradient, _ = loss_and_gradient(batch, [math.exp(-300)], config=config)

    assert loss == pytest.approx(0.8)
    assert gradient == [0.0]


def test_half_precision_logprobs_give_float32_ratios():
    batch = pack([sample("0", mu=[0.5], advantage=[1])])
    logprob_T = torch.tensor([0.5]).log().bfloat16().requires_grad_()

    loss, _ = packed_loss(batch, logprob_T=logprob_T, denominators=count_denominators(batch), config=PLAIN_PPO)

    assert loss.dtype == torch.float32


def test_cross_entropy_is_the_weighted_mean_of_minus_log_pi():
    batch = pack([sample("0", mu=[1.0, 1.0, 1.0], advantage=[0] * 3, policy=[0] * 3, cross_entropy=[0, 1, 0.5])])

    loss, gradient, metrics = loss_and_gradient(batch, [0.9, 0.5, 0.25], config=LossConfig())

    assert loss == pytest.approx((math.log(2) + 0.5 * math.log(4)) / 2)
    assert gradient == pytest.approx([0.0, -0.5, -0.25])
    assert metrics == {"cross_entropy": pytest.approx((math.log(2) + math.log(4)) / 2)}


def test_kl_estimators_are_those_of_pi_against_the_reference():
    log_ratio_T = torch.tensor([0.5, -0.5], dtype=torch.float64)

    assert KL_ESTIMATORS["k1"](log_ratio_T).tolist() == [0.5, -0.5]
    assert KL_ESTIMATORS["k2"](log_ratio_T).tolist() == [0.125, 0.125]
    # r - 1 - log r with r = pi_ref / pi
    assert KL_ESTIMATORS["k3"](log_ratio_T).tolist() == pytest.approx(
        [math.exp(-0.5) - 1 + 0.5, math.exp(0.5) - 1 - 0.5]
    )


def test_k1_and_k3_average_to_the_kl_and_the_gradient_of_k2_to_its_gradient():
    logit_V = torch.tensor([0.2, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    reference_V = torch.tensor([0.5, 0.1, -0.3], dtype=torch.float64).log_softmax(0)
    logprob_V = logit_V.log_softmax(0)
    probability_V = logprob_V.exp()
    kl = (probability_V * (logprob_V - reference_V)).sum()
    (true_gradient_V,) = torch.autograd.grad(kl, logit_V, retain_graph=True)

    def expected(name: KLName) -> tuple[float, Tensor]:
        mean = (probability_V.detach() * KL_ESTIMATORS[name](logprob_V - reference_V)).sum()
        return mean.item(), torch.autograd.grad(mean, logit_V, retain_graph=True)[0]

    assert expected("k1")[0] == pytest.approx(kl.item())
    assert expected("k3")[0] == pytest.approx(kl.item())
    assert torch.allclose(expected("k2")[1], true_gradient_V)
    assert torch.allclose(expected("k1")[1], torch.zeros(3, dtype=torch.float64))


def test_kl_and_entropy_enter_with_their_coefficients():
    batch = pack([sample("0", mu=[0.5, 0.5], advantage=[0, 0], kl=[0.5, 0])])
    config = LossConfig(policy="ppo_clip", kl_coefficient=0.1, kl_estimator="k1", entropy_coefficient=0.01)

    loss, gradient, metrics = loss_and_gradient(
        batch,
        [0.5, 0.5],
        config=config,
        ref_logprob_T=torch.tensor([0.25, 0.1]).log(),
        entropy_T=torch.tensor([1.0, 3.0]),
    )

    # KL log 2, at half weight, on one token; mean entropy 2
    assert loss == pytest.approx(0.1 * 0.5 * math.log(2) - 0.01 * 2.0)
    assert gradient == pytest.approx([0.05, 0.0])
    assert (metrics["kl"], metrics["entropy"]) == (pytest.approx(math.log(2)), 2.0)


def test_a_coefficient_without_its_column_is_refused():
    batch = pack([sample("0", mu=[0.5], advantage=[1])])

    with pytest.raises(UsageError, match="no reference log-probs"):
        loss_and_gradient(batch, [0.5], config=LossConfig(kl_coefficient=0.1))
    with pytest.raises(UsageError, match="there is no entropy"):
        loss_and_gradient(batch, [0.5], config=LossConfig(entropy_coefficient=0.1))


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", (1 + 2 + 6) / 3),
        ("seq_mean_token_sum", ((1 + 2) + 6) / 2),
        ("seq_mean_token_mean", (1.5 + 6) / 2),
        ("seq_mean_token_sum_norm", ((1 + 2) / 10 + 6 / 10) / 2),
    ],
)
def test_aggregations_by_hand(aggregation: AggregationName, expected: float):
    # the third sequence has no token in the loss and counts in no mean
    batch = pack(
        [
            sample("0", mu=[0.5, 0.5], advantage=[-1, -2]),
            sample("1", mu=[0.5, 0.5], advantage=[-6, -50], policy=[1, 0]),
            sample("2", mu=[0.5], advantage=[-70], policy=[0]),
        ]
    )
    length_norm = 10 if aggregation == "seq_mean_token_sum_norm" else None
    config = LossConfig(policy="ppo_clip", aggregation=aggregation, length_norm=length_norm)

    assert loss_and_gradient(batch, [0.5] * 5, config=config)[0] == pytest.approx(expected)


def test_a_length_norm_is_demanded_exactly_where_it_is_used():
    with pytest.raises(ValidationError, match="length_norm is None"):
        LossConfig(aggregation="seq_mean_token_sum_norm")
    with pytest.raises(ValidationError, match="length_norm is 5"):
        LossConfig(length_norm=5)


def test_a_batch_with_nothing_to_learn_has_zero_loss_and_a_graph():
    batch = pack([sample("0", mu=[0.5], advantage=[1], policy=[0])])

    loss, gradient, metrics = loss_and_gradient(batch, [0.5], config=LossConfig())

    assert (loss, gradient, metrics) == (0.0, [0.0], {})


def random_samples(count: int) -> list[Sample]:
    """Ragged samples with every component, rejected sequences, odd weights and one NaN behaviour log-prob."""
    rng = np.random.default_rng(3)
    samples: list[Sample] = []
    for index in range(count):
        size = int(rng.integers(2, 30))
        is_sampled_T = rng.random(size) < 0.7
        is_sampled_T[0] = False
        weight_T = is_sampled_T * rng.choice([0.5, 1.0], size)
        behaviour_logprob_T = (np.log(rng.uniform(0.05, 1.0, size)) * is_sampled_T).astype(np.float32)
        if index == 1:
            behaviour_logprob_T[-1] = np.nan
        samples.append(
            Sample(
                sample_id=f"g/{index}/0",
                token_ids_T=rng.integers(0, VOCABULARY, size).astype(np.int32),
                is_sampled_T=is_sampled_T,
                behaviour_logprob_T=behaviour_logprob_T,
                version_T=np.zeros(size, dtype=np.int32),
                turn_T=np.zeros(size, dtype=np.int32),
                advantage_T=(rng.standard_normal(size) * is_sampled_T).astype(np.float32),
                policy_weight_T=weight_T.astype(np.float32),
                cross_entropy_weight_T=(~is_sampled_T * rng.choice([0.0, 0.1], size)).astype(np.float32),
                kl_weight_T=is_sampled_T.astype(np.float32),
            )
        )
    return samples


def with_observations(sample: Sample, *, extra: int) -> Sample:
    """Append observation tokens, which carry no weight."""
    zeros = np.zeros(extra, dtype=np.float32)
    return dataclasses.replace(
        sample,
        token_ids_T=np.concatenate([sample.token_ids_T, np.ones(extra, dtype=np.int32)]),
        is_sampled_T=np.concatenate([sample.is_sampled_T, zeros.astype(np.bool_)]),
        version_T=np.concatenate([sample.version_T, zeros.astype(np.int32)]),
        turn_T=np.concatenate([sample.turn_T, zeros.astype(np.int32)]),
        **{
            name: np.concatenate([getattr(sample, name), zeros])
            for name in (
                "behaviour_logprob_T",
                "advantage_T",
                "policy_weight_T",
                "cross_entropy_weight_T",
                "kl_weight_T",
            )
        },
    )


def model_gradient(parts: Sequence[Sequence[Sample]], *, config: LossConfig) -> Tensor:
    """Gradient of a small float64 model, accumulated over micro-batches in the order of a training step."""
    generator = torch.Generator().manual_seed(0)
    weight_VV = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64).requires_grad_()
    reference_VV = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    old_VV = weight_VV.detach() + 0.1 * torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    batches = [pack(part) for part in parts]
    corrections = [
        correct(
            logprobs(old_VV, batch)[0],
            batch.behaviour_logprob_T.double(),
            is_active_T=active_tokens(batch).policy_T,
            sequence_T=batch.sequence_T,
            num_sequences=batch.num_sequences,
            config=preset("token_tis", mode="decoupled").model_copy(
                update={"mask": "ratio", "mask_level": "mean", "mask_low": 0.3, "mask_high": 1.5}
            ),
        )
        for batch in batches
    ]
    counts = [count_denominators(b, is_kept_T=c.is_kept_T) for b, c in zip(batches, corrections, strict=True)]
    denominators = reduce(Denominators.__add__, counts)
    for batch, correction in zip(batches, corrections, strict=True):
        logprob_T, entropy_T = logprobs(weight_VV, batch)
        loss, _ = packed_loss(
            batch,
            logprob_T=logprob_T,
            denominators=denominators,
            config=config,
            old_logprob_T=logprobs(old_VV, batch)[0],
            weight_T=correction.weight_T,
            is_kept_T=correction.is_kept_T,
            entropy_T=entropy_T,
            ref_logprob_T=logprobs(reference_VV, batch)[0],
        )
        loss.backward()
    assert weight_VV.grad is not None
    return weight_VV.grad


def logprobs(weight_VV: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of a bigram model that sees the sequence's first token at its start."""
    previous_T = batch.token_ids_T.roll(1)
    previous_T = torch.where(batch.position_T == 0, batch.token_ids_T, previous_T)
    logprob_TV = weight_VV[previous_T].log_softmax(-1)
    entropy_T = -(logprob_TV.exp() * logprob_TV).sum(-1)
    return logprob_TV.gather(1, batch.token_ids_T[:, None])[:, 0], entropy_T


@pytest.mark.parametrize("policy", POLICY_LOSSES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_gradient_depends_neither_on_the_split_nor_on_row_order_nor_on_observation_tokens(
    policy: PolicyLossName, aggregation: AggregationName
):
    config = LossConfig(
        policy=policy,
        aggregation=aggregation,
        length_norm=32 if aggregation == "seq_mean_token_sum_norm" else None,
        kl_coefficient=0.05,
        entropy_coefficient=0.01,
    )
    samples = random_samples(12)
    whole = model_gradient([samples], config=config)
    variants = {
        "split": [samples[:1], samples[1:7], samples[7:]],
        "one by one": [[sample] for sample in samples],
        "row order": [samples[::-1]],
        "both": [samples[8:], samples[3:8], samples[:3]],
        "observations": [[with_observations(sample, extra=i) for i, sample in enumerate(samples)]],
    }

    for name, parts in variants.items():
        difference = (model_gradient(parts, config=config) - whole).abs().max() / whole.abs().max()
        assert difference <= 1e-6, name
    assert whole.abs().max() > 1e-3


def test_metrics_average_over_tokens_and_not_over_micro_batches():
    long = pack([sample("0", mu=[0.5] * 3, advantage=[1, 1, 1])])
    short = pack([sample("1", mu=[0.5], advantage=[5])])
    both = count_denominators(long) + count_denominators(short)

    parts = [
        packed_loss(b, logprob_T=b.behaviour_logprob_T.clone(), denominators=both, config=PLAIN_PPO)[1]
        for b in (long, short)
    ]

    assert mean_metrics(parts)["policy_loss"] == pytest.approx(-(3 * 1 + 5) / 4)
    assert "cross_entropy" not in mean_metrics(parts)
