"""Updates that are not finite: kept, counted, and in the end a reason to stop."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from agentenv.errors import DataError, TrainingDiverged
from agentenv.trainers.bad_batch import BadBatches, load_batch
from agentenv.trainers.config import AlgorithmConfig
from agentenv.trainers.model import PackedModel
from agentenv.trainers.optimizer import OptimizerConfig
from agentenv.trainers.tiny import make_tiny_model
from agentenv.trainers.worker import UpdatePlan, Worker
from tests.trainers.samples import policy_sample

PLAN = UpdatePlan(token_budget=1000, num_steps=10, seed=0, version=0)
GOOD, BAD = {"non_finite_steps": 0.0}, {"non_finite_steps": 2.0}


def samples_of(advantage: float = 1.0):
    return [policy_sample(f"g/{i}/0", seed=i, length=8 + i, advantage=advantage) for i in range(2)]


def test_the_batch_of_a_bad_update_is_written_down_and_reads_back(tmp_path, caplog):
    guard = BadBatches(tmp_path / "bad", limit=3)
    samples = [replace(samples_of()[0], reward_T=np.ones(8, dtype=np.float32)), samples_of(np.nan)[1]]

    with caplog.at_level(logging.WARNING):
        guard.check(samples, BAD, step=7)

    back = load_batch(tmp_path / "bad" / "step_7.npz")
    assert [sample.sample_id for sample in back] == ["g/0/0", "g/1/0"]
    assert back[0].token_ids_T.tolist() == samples[0].token_ids_T.tolist()
    assert back[0].reward_T.tolist() == [1.0] * 8
    assert len(back[1].reward_T) == 0
    assert np.isnan(back[1].advantage_T[back[1].is_sampled_T]).all()
    assert "update 7: 2 optimizer steps had a gradient that is not finite" in caplog.text
    assert str(tmp_path / "bad" / "step_7.npz") in caplog.text


def test_good_updates_leave_nothing(tmp_path):
    BadBatches(tmp_path / "bad", limit=1).check(samples_of(), GOOD, step=1)

    assert not (tmp_path / "bad").exists()


def test_the_run_stops_at_the_limit_in_a_row_and_a_good_update_begins_the_count_anew(tmp_path):
    guard = BadBatches(tmp_path, limit=2)
    guard.check(samples_of(), BAD, step=1)
    guard.check(samples_of(), GOOD, step=2)
    guard.check(samples_of(), BAD, step=3)

    with pytest.raises(TrainingDiverged, match=r"update 4: .*step_4.npz.* These are 2 such updates in a row"):
        guard.check(samples_of(), BAD, step=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1.npz", "step_3.npz", "step_4.npz"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_infinite_or_missing_number_in_a_batch_is_found_through_the_whole_worker(tmp_path, bad):
    torch.set_num_threads(1)
    model = PackedModel(make_tiny_model(40, seed=1, hidden_size=16, num_layers=2, num_heads=2))
    worker = Worker(model, optimizer=OptimizerConfig(learning_rate=1e-2), algorithm=AlgorithmConfig())
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    guard = BadBatches(tmp_path, limit=1)
    batch = samples_of(bad)

    metrics = worker.update(batch, plan=PLAN)

    with pytest.raises(TrainingDiverged):
        guard.check(batch, metrics, step=1)
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in model.parameters()]))


def test_a_disk_that_takes_nothing_is_told_and_does_not_hide_the_fault(tmp_path):
    (tmp_path / "file").write_text("")
    guard = BadBatches(tmp_path / "file" / "bad", limit=1)

    with pytest.raises(TrainingDiverged, match="could not be written"):
        guard.check(samples_of(), BAD, step=1)


def test_another_file_is_no_batch(tmp_path):
    (tmp_path / "x.npz").write_text("hello")

    with pytest.raises(DataError, match="not a batch that training wrote"):
        load_batch(tmp_path / "x.npz")
