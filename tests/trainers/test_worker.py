"""The worker: one update, whatever the micro-batch split; correction that really reaches the gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agentenv.errors import UsageError
from agentenv.trainers.config import AlgorithmConfig
from agentenv.trainers.correction import CorrectionConfig, preset
from agentenv.trainers.losses import LossConfig
from agentenv.trainers.model import PackedModel
from agentenv.trainers.optimizer import OptimizerConfig, learning_rate
from agentenv.trainers.tiny import make_tiny_model
from agentenv.trainers.worker import UpdatePlan, Worker
from tests.trainers.samples import policy_sample

PLAN = UpdatePlan(token_budget=10_000, num_steps=10, seed=0, version=0)


def worker_of(*, correction=None, loss=None, seed=1, **optimizer):
    torch.set_num_threads(1)
    model = PackedModel(make_tiny_model(40, seed=seed, hidden_size=16, num_layers=2, num_heads=2).double())
    algorithm = AlgorithmConfig(
        loss=LossConfig() if loss is None else loss, correction=preset("none") if correction is None else correction
    )
    settings = {"learning_rate": 1e-2, **optimizer}
    return Worker(model, optimizer=OptimizerConfig(**settings), algorithm=algorithm)


def weights_after(worker, samples, plan=PLAN, updates=1):
    metrics = {}
    for _ in range(updates):
        metrics = worker.update(samples, plan=plan)
    flat = torch.cat([p.detach().flatten() for p in worker.model.parameters()])
    return flat, metrics


@pytest.fixture
def samples():
    return [policy_sample(f"g/{i}/0", seed=i, length=8 + 3 * i, advantage=(-1.0) ** i) for i in range(6)]


def test_parameters_do_not_depend_on_the_micro_batch_split(samples):
    whole, _ = weights_after(worker_of(), samples, updates=3)
    split, _ = weights_after(worker_of(), samples, plan=replace(PLAN, token_budget=20), updates=3)
    assert torch.allclose(whole, split, rtol=0, atol=1e-9)


def test_parameters_do_not_depend_on_the_order_of_samples(samples):
    one, _ = weights_after(worker_of(), samples, updates=3)
    other, _ = weights_after(worker_of(), samples[::-1], updates=3)
    assert torch.allclose(one, other, rtol=0, atol=1e-9)


def test_a_positive_advantage_raises_the_probability_of_what_was_sampled():
    sample = policy_sample("g/0/0", seed=3, advantage=1.0)
    worker = worker_of()
    before = worker.logprobs([sample], token_budget=100)["g/0/0"][4:].sum()
    worker.update([sample], plan=PLAN)
    after = worker.logprobs([sample], token_budget=100)["g/0/0"][4:].sum()
    assert after > before


@pytest.mark.parametrize(
    "correction",
    [
        preset("token_tis"),
        preset("geo_rs"),
        preset("k3_rs"),
        preset("token_tis", mode="decoupled"),
        preset("none", mode="decoupled"),
    ],
    ids=["token_tis", "geo_rs", "k3_rs", "decoupled token_tis", "decoupled none"],
)
def test_switching_the_correction_changes_the_gradient(samples, correction):
    # half the samples claim to come from a policy under which their tokens were less likely
    shifted = [
        policy_sample(s.sample_id, seed=i, length=len(s), mu_shift=-1.0 * (i % 2)) for i, s in enumerate(samples)
    ]
    plain, _ = weights_after(worker_of(), shifted)
    corrected, _ = weights_after(worker_of(correction=correction), shifted)
    assert not torch.equal(plain, corrected)


def test_old_log_probs_are_kept_over_epochs_and_mini_batches(samples):
    loss = LossConfig(policy="ppo_clip", clip_low=0.0, clip_high=0.0)
    correction = CorrectionConfig(mode="decoupled", weight="none")
    worker = worker_of(loss=loss, correction=correction)
    metrics = worker.update(samples, plan=replace(PLAN, num_epochs=2, num_mini_batches=2))
    # after the first step the ratio to the anchor is no longer 1: an anchor taken anew each time would clip nothing
    assert metrics["clip_low"] + metrics["clip_high"] > 0


def test_a_batch_without_advantage_signal_takes_a_step_without_a_gradient(samples):
    flat = [policy_sample(s.sample_id, seed=i, advantage=0.0) for i, s in enumerate(samples)]
    worker = worker_of(loss=LossConfig(policy="ppo_clip"))
    metrics = worker.update(flat, plan=PLAN)
    assert metrics["grad_norm"] == 0
    assert metrics["skipped"] == 0


@pytest.mark.fault("a batch without anything to learn from", then="parameters are as before", metric="train/skipped")
def test_a_batch_without_a_token_to_learn_from_is_skipped_and_says_so(samples):
    nothing = [replace(s, policy_weight_T=np.zeros(len(s), dtype=np.float32)) for s in samples]
    worker = worker_of()
    assert worker.update(nothing, plan=PLAN) == {"skipped": 1.0}
    assert worker.optimizer_steps == 0


@pytest.mark.fault("gradient NaN or inf", then="parameters are as before", metric="train/non_finite_steps")
def test_a_gradient_that_is_not_finite_is_not_applied(samples):
    worker = worker_of()
    bad = replace(samples[0], advantage_T=np.full(len(samples[0]), np.nan, dtype=np.float32))
    before = torch.cat([p.detach().flatten() for p in worker.model.parameters()])
    metrics = worker.update([bad, *samples[1:]], plan=PLAN)
    after = torch.cat([p.detach().flatten() for p in worker.model.parameters()])
    assert metrics["non_finite_steps"] == 1
    assert torch.equal(before, after)


def test_the_engine_and_trainer_agree_when_mu_is_the_trainers_own(samples):
    worker = worker_of()
    scored = worker.logprobs(samples, token_budget=1000)
    own = [
        replace(s, behaviour_logprob_T=np.where(s.is_sampled_T, scored[s.sample_id].numpy(), 0).astype(np.float32))
        for s in samples
    ]
    metrics = worker.update(own, plan=PLAN)
    assert metrics["mismatch/k3"] < 1e-10
    assert metrics["mismatch/ess"] == pytest.approx(1.0)
    assert metrics["mismatch/probability_correlation"] == pytest.approx(1.0)


def test_the_learning_rate_warms_up_and_falls_linearly_to_zero():
    config = OptimizerConfig(learning_rate=1.0, schedule="linear", warmup_steps=2)
    rates = [learning_rate(config, step=step, num_steps=6) for step in range(7)]
    assert rates == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_the_cosine_schedule_is_half_way_down_in_the_middle():
    config = OptimizerConfig(learning_rate=2.0, schedule="cosine")
    assert learning_rate(config, step=0, num_steps=10) == 2.0
    assert learning_rate(config, step=5, num_steps=10) == pytest.approx(1.0)
    assert learning_rate(config, step=10, num_steps=10) == pytest.approx(0.0)


def test_a_kl_penalty_pulls_towards_the_reference(samples):
    flat = [policy_sample(s.sample_id, seed=i, advantage=0.0) for i, s in enumerate(samples)]
    loss = LossConfig(policy="ppo_clip", kl_coefficient=1.0, kl_estimator="k2")
    algorithm = AlgorithmConfig(loss=loss, correction=preset("none"))
    reference = worker_of(seed=2).model
    worker = Worker(
        worker_of().model, optimizer=OptimizerConfig(learning_rate=1e-2), algorithm=algorithm, reference=reference
    )
    kl = [worker.update(flat, plan=PLAN)["kl"] for _ in range(8)]
    assert kl[-1] < 0.5 * kl[0]


def test_a_kl_penalty_without_a_reference_is_refused():
    with pytest.raises(UsageError, match="no reference policy"):
        worker_of(loss=LossConfig(kl_coefficient=0.1))
