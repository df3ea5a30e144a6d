"""Two processes train as one does: sharded, replicated, with split sequences, whatever the micro-batches."""

from dataclasses import replace

import pytest
import torch

from agentenv.config import load_config
from agentenv.errors import ConfigError
from agentenv.trainers.config import AlgorithmConfig, RunConfig
from agentenv.trainers.correction import CorrectionConfig
from agentenv.trainers.losses import LossConfig
from agentenv.trainers.mfu import MACHINE_METRICS
from agentenv.trainers.packing import balance, share_out
from tests.trainers.parallel_runs import Case, outcome_of, outcomes_of
from tests.trainers.processes import run_ranks

# a mask needs log-probs before the first backward pass, and a mean over each sequence needs whole sequences
INVOLVED = AlgorithmConfig(
    correction=CorrectionConfig(mode="decoupled", mask="ratio", mask_level="mean", mask_low=0.5, mask_high=1.05),
    loss=LossConfig(aggregation="seq_mean_token_mean", kl_coefficient=0.1, entropy_coefficient=0.01),
)
CASES = {
    "fsdp": Case(),
    "fsdp, many micro-batches": Case(token_budget=25),
    "fsdp, one sample per pack": Case(token_budget=1),
    "hsdp 2 x 1": Case(parallel={"replicas": 2}, token_budget=25),
    "sequence 2": Case(parallel={"sequence": 2}),
    "sequence 2, many micro-batches": Case(parallel={"sequence": 2}, token_budget=25),
    "masks, reference, mini-batches": Case(algorithm=INVOLVED, token_budget=25, num_epochs=2, num_mini_batches=2),
    "masks with sequence 2": Case(parallel={"sequence": 2}, algorithm=INVOLVED, token_budget=25),
    "a rank without work": Case(lengths=(12,)),
    "checkpointing full": Case(parallel={"activation_checkpointing": "full"}, token_budget=25),
    "checkpointing selective": Case(parallel={"activation_checkpointing": "selective", "sequence": 2}),
    "offload": Case(parallel={"offload": True}, token_budget=25),
}
BAD = Case(bad_sample=2, token_budget=25)
MIXED = Case(dtype=torch.float32, parallel={"compute_dtype": "bfloat16"}, token_budget=25)


@pytest.fixture(scope="module")
def several():
    """What two ranks return, per case."""
    return run_ranks(outcomes_of, {**CASES, "bad": BAD, "mixed": MIXED})


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one_in_loss_gradient_metrics_and_parameters(several, name):
    alone = outcome_of(replace(CASES[name], parallel={}))
    first, second = several[0][name], several[1][name]

    assert max(metrics["grad_norm"] for metrics in alone.metrics) > 1e-3
    for mine, theirs, others in zip(alone.metrics, first.metrics, second.metrics, strict=True):
        assert _timeless(theirs) == _timeless(others), "every rank returns the same"
        assert _timeless(theirs) == pytest.approx(_timeless(mine), rel=1e-6, abs=1e-12)
    _assert_equal(alone.weights, first.weights)
    _assert_equal(alone.logprobs, first.logprobs)
    _assert_equal(alone.logprobs, second.logprobs)
    assert second.weights == {}


def test_a_number_that_is_not_finite_on_one_rank_makes_all_skip_the_step(several):
    untouched = outcome_of(replace(BAD, num_updates=0))
    for outcome in (several[0]["bad"], several[1]["bad"]):
        assert [metrics["non_finite_steps"] for metrics in outcome.metrics] == [1, 1, 1]
    _assert_equal(untouched.weights, several[0]["bad"].weights)


def test_mixed_precision_computes_in_bfloat16_over_masters_that_stay_float32(several):
    exact, mixed = outcome_of(replace(MIXED, parallel={})), several[0]["mixed"]
    assert mixed.dtypes == {torch.float32}
    gaps = [float((exact.logprobs[name] - mixed.logprobs[name]).abs().max()) for name in exact.logprobs]
    assert 1e-4 < max(gaps) < 0.1, "another precision, but the same model"
    assert mixed.metrics[0]["grad_norm"] == pytest.approx(exact.metrics[0]["grad_norm"], rel=0.05)


def test_compiling_and_selective_checkpointing_exclude_each_other(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "env: {id: agentenv/GuessNumber-v0}\nmodel: {path: nowhere}\n"
        "trainer: {parallel: {compile: true, activation_checkpointing: selective}}\n"
    )
    with pytest.raises(ConfigError, match="compile: true and activation_checkpointing: selective exclude each other"):
        load_config(RunConfig, path)


def test_every_rank_gets_a_micro_batch_where_the_samples_allow_it():
    assert len(balance([4, 4, 4], token_budget=100)) == 1
    assert len(balance([4, 4, 4], token_budget=100, multiple_of=2)) == 2
    # 24 tokens need three bins of 8; four are a multiple of 2
    assert len(balance([4] * 6, token_budget=8, multiple_of=2)) == 4


def test_shares_have_even_costs_and_at_most_a_fair_number_of_items():
    # 9 | 5; the 4 joins the 5; the 1 goes where there is room: two items each
    assert share_out([9, 5, 4, 1], num_shares=2) == [[0, 3], [1, 2]]
    assert share_out([3], num_shares=2) == [[0], []]


def _timeless(metrics):
    return {name: value for name, value in metrics.items() if name not in MACHINE_METRICS}


def _assert_equal(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-9)
