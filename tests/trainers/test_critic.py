"""PPO's critic: the value loss by hand, and what training with it does."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from agentenv.errors import UsageError
from agentenv.trainers.config import AlgorithmConfig
from agentenv.trainers.correction import preset
from agentenv.trainers.critic import CriticConfig, add_critic, with_advantages
from agentenv.trainers.lora import LoraConfig, add_lora
from agentenv.trainers.losses import LossConfig, count_denominators, packed_loss, value_loss
from agentenv.trainers.model import PackedModel
from agentenv.trainers.optimizer import OptimizerConfig
from agentenv.trainers.packing import pack
from agentenv.trainers.sample import Sample
from agentenv.trainers.state import load_state, save_state
from agentenv.trainers.tiny import make_tiny_model
from agentenv.trainers.worker import UpdatePlan, Worker
from tests.trainers.samples import policy_sample

PLAN = UpdatePlan(token_budget=10_000, num_steps=100, seed=0, version=0)
VOCAB = 40


def worker_of(*, critic: CriticConfig | None = None, lora: bool = False, learning_rate: float = 1e-2) -> Worker:
    torch.set_num_threads(1)
    model = PackedModel(make_tiny_model(VOCAB, seed=1, hidden_size=16, num_layers=2, num_heads=2).double())
    if lora:
        add_lora(model.causal_lm, LoraConfig(rank=4), seed=0)
    critic = CriticConfig() if critic is None else critic
    add_critic(model, critic)
    algorithm = AlgorithmConfig(
        advantage="gae", loss=LossConfig(policy="ppo_clip"), correction=preset("none"), critic=critic
    )
    return Worker(model, optimizer=OptimizerConfig(learning_rate=learning_rate), algorithm=algorithm)


def rewarded(name: str, *, seed: int, reward: float, length: int = 12) -> Sample:
    """An episode whose prompt tells how it will end: the first token is the reward."""
    sample = policy_sample(name, seed=seed, length=length, advantage=0.0)
    ids = sample.token_ids_T.copy()
    ids[0] = int(reward)
    reward_T = np.zeros(length, dtype=np.float32)
    reward_T[-1] = reward
    return replace(sample, token_ids_T=ids, reward_T=reward_T)


def batch_of_episodes() -> list[Sample]:
    return [rewarded(f"g/{i}/0", seed=i, reward=float(i % 2), length=8 + i) for i in range(8)]


def flat(worker: Worker) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in worker.model.parameters()])


def critic_with(**values: Any) -> CriticConfig:
    """Return a critic whose constants may differ from the usual ones."""
    constants = {name: values.pop(name) for name in ("clip", "coefficient") if name in values}
    return type("OtherCritic", (CriticConfig,), constants)(**values)


def test_the_value_loss_is_half_the_larger_of_two_squared_errors():
    value_T = torch.tensor([1.0, 0.5, 0.1, 3.0])
    old_T = torch.tensor([0.0, 0.0, 0.0, 0.0])
    return_T = torch.tensor([1.0, 1.0, 1.0, 1.0])

    loss_T, is_clipped_T = value_loss(value_T, old_value_T=old_T, return_T=return_T, clip=0.2)

    # moved by at most 0.2: 0.2, 0.2, 0.1, 0.2, so the errors are 0.8, 0.8, 0.9, 0.8 against 0, 0.5, 0.9, 2
    assert loss_T.tolist() == pytest.approx([0.32, 0.32, 0.405, 2.0])
    assert is_clipped_T.tolist() == [True, True, False, False]
    assert value_loss(value_T, old_value_T=old_T, return_T=return_T, clip=None)[0].tolist() == pytest.approx(
        [0.0, 0.125, 0.405, 2.0]
    )


def test_a_value_that_moved_far_enough_towards_its_return_has_no_gradient():
    value_T = torch.tensor([0.5, 0.1], requires_grad=True)

    loss_T, _ = value_loss(value_T, old_value_T=torch.zeros(2), return_T=torch.ones(2), clip=0.2)
    loss_T.sum().backward()

    assert value_T.grad is not None
    assert value_T.grad.tolist() == pytest.approx([0.0, -0.9])


def test_the_value_loss_joins_the_policy_loss_with_its_coefficient_and_the_same_denominator():
    samples = [replace(policy_sample("g/0/0", seed=0, length=6, advantage=0.0), return_T=np.full(6, 2.0, np.float32))]
    batch = pack(samples)
    critic = critic_with(clip=None, coefficient=0.25)

    loss, metrics = packed_loss(
        batch,
        logprob_T=batch.behaviour_logprob_T,
        denominators=count_denominators(batch) + count_denominators(batch),
        config=LossConfig(policy="ppo_clip"),
        value_T=torch.zeros(6),
        critic=critic,
    )

    # two tokens of four in the global batch, each with 0.25 * 2^2 / 2
    assert float(loss) == pytest.approx(0.25)
    assert metrics["value_loss"].tolist() == [4.0, 2.0]


def test_explained_variance_is_one_for_a_critic_that_knows_and_zero_for_one_that_does_not():
    samples = batch_of_episodes()
    knowing = {s.sample_id: torch.full((len(s),), float(s.token_ids_T[0])) for s in samples}
    ignorant = {s.sample_id: torch.zeros(len(s)) for s in samples}

    assert with_advantages(samples, knowing, whiten=False)[1]["explained_variance"] == pytest.approx(1.0)
    # lambda 1, so that the returns are the rewards themselves
    assert with_advantages(samples, ignorant, whiten=False, lam=1.0)[1]["explained_variance"] == pytest.approx(0.0)


def test_whitened_advantages_have_mean_zero_and_deviation_one_over_all_sampled_tokens():
    samples = batch_of_episodes()
    values = {s.sample_id: torch.zeros(len(s)) for s in samples}

    filled, _ = with_advantages(samples, values, whiten=True)

    advantage_N = np.concatenate([s.advantage_T[s.is_sampled_T] for s in filled])
    assert advantage_N.mean() == pytest.approx(0.0, abs=1e-6)
    assert advantage_N.std(ddof=1) == pytest.approx(1.0, abs=1e-5)
    assert not any(s.advantage_T[~s.is_sampled_T].any() for s in filled)


@pytest.mark.parametrize("kind", ["head", "separate"])
def test_a_value_is_that_of_the_state_before_its_token(kind):
    worker = worker_of(critic=CriticConfig(kind=kind))
    assert worker.model.critic is not None
    torch.nn.init.normal_(worker.model.critic.head.weight)
    sample = rewarded("g/0/0", seed=0, reward=1.0)
    other_ids = sample.token_ids_T.copy()
    other_ids[7] = (other_ids[7] + 1) % VOCAB

    one = worker.values([sample], token_budget=100)["g/0/0"]
    other = worker.values([replace(sample, token_ids_T=other_ids)], token_budget=100)["g/0/0"]

    assert one[0] == 0
    assert torch.allclose(one[:8], other[:8])
    assert not torch.isclose(one[8:], other[8:]).any()


@pytest.mark.parametrize("kind", ["head", "separate"])
def test_the_critic_learns_to_explain_the_returns(kind):
    worker = worker_of(critic=critic_with(kind=kind, learning_rate=1e-2, clip=None))
    history = [worker.update(batch_of_episodes(), plan=PLAN) for _ in range(40)]

    assert history[0]["critic/explained_variance"] < 0.1
    assert history[-1]["critic/explained_variance"] > 0.8
    assert history[-1]["value_loss"] < 0.3 * history[0]["value_loss"]


@pytest.mark.parametrize("kind", ["head", "separate"])
def test_ppo_with_a_critic_learns_a_bandit(kind):
    """The policy says one token after the prompt; token 7 pays 1. Samples are drawn from the policy itself."""
    worker = worker_of(critic=CriticConfig(kind=kind, learning_rate=1e-2))
    generator = np.random.default_rng(0)

    def probabilities() -> np.ndarray:
        options = [arm(token, reward=0.0, name=f"p/{token}/0") for token in range(VOCAB)]
        scored = worker.logprobs(options, token_budget=10_000)
        return np.array([math.exp(float(scored[o.sample_id][1])) for o in options])

    before = probabilities()[7]
    for step in range(60):
        chance = probabilities()
        drawn = generator.choice(VOCAB, size=64, p=chance / chance.sum())
        samples = [
            arm(int(token), reward=float(token == 7), name=f"{step}/{i}/0", logprob=math.log(chance[token]))
            for i, token in enumerate(drawn)
        ]
        worker.update(samples, plan=PLAN)

    assert before < 0.1
    assert probabilities()[7] > 0.9


def arm(token: int, *, reward: float, name: str, logprob: float = -1.0) -> Sample:
    sample = policy_sample(name, seed=0, length=2)
    is_sampled_T = np.array([False, True])
    return replace(
        sample,
        token_ids_T=np.array([3, token], dtype=np.int32),
        is_sampled_T=is_sampled_T,
        behaviour_logprob_T=np.array([0.0, logprob], dtype=np.float32),
        version_T=np.array([-1, 0], dtype=np.int32),
        turn_T=np.array([-1, 0], dtype=np.int32),
        policy_weight_T=is_sampled_T.astype(np.float32),
        kl_weight_T=is_sampled_T.astype(np.float32),
        reward_T=np.array([0.0, reward], dtype=np.float32),
    )


def test_the_value_loss_reaches_the_policys_body_through_a_head_and_not_through_a_separate_critic():
    moved = {}
    for kind in ("head", "separate"):
        worker = worker_of(critic=CriticConfig(kind=kind))
        assert worker.model.critic is not None
        torch.nn.init.normal_(worker.model.critic.head.weight)
        before = {n: p.detach().clone() for n, p in worker.model.causal_lm.named_parameters()}
        # one sample with one token: whitening makes its advantage 0, so that only the value loss has a gradient
        worker.update([arm(5, reward=1.0, name="g/0/0")], plan=PLAN)
        moved[kind] = any(not torch.equal(p, before[n]) for n, p in worker.model.causal_lm.named_parameters())

    assert moved == {"head": True, "separate": False}


def test_the_coefficient_of_the_value_loss_changes_the_gradient():
    ends = []
    for coefficient in (0.5, 1.5):
        worker = worker_of(critic=critic_with(coefficient=coefficient))
        worker.update(batch_of_episodes(), plan=PLAN)
        worker.update(batch_of_episodes(), plan=PLAN)
        ends.append(flat(worker))

    assert not torch.allclose(*ends)


def test_an_update_with_a_critic_does_not_depend_on_the_micro_batch_split():
    ends = []
    for budget in (10_000, 30):
        worker = worker_of()
        for _ in range(3):
            worker.update(batch_of_episodes(), plan=replace(PLAN, token_budget=budget))
        ends.append(flat(worker))

    assert torch.allclose(*ends, rtol=0, atol=1e-9)


def test_the_critics_own_parameters_have_their_own_learning_rate():
    worker = worker_of(critic=CriticConfig(learning_rate=3e-3), learning_rate=2e-2)

    metrics = worker.update(batch_of_episodes(), plan=PLAN)

    assert metrics["learning_rate"] == 2e-2
    assert {group["lr"] for group in worker.optimizer.param_groups} == {2e-2, 3e-3}


@pytest.mark.parametrize("kind", ["head", "separate"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_critic_goes_on_from_a_checkpoint_bit_for_bit(tmp_path, kind, lora):
    first, second = (worker_of(critic=CriticConfig(kind=kind), lora=lora) for _ in range(2))
    first.update(batch_of_episodes(), plan=PLAN)
    save_state(tmp_path, model=first.model, optimizer=first.optimizer)
    load_state(tmp_path, model=second.model, optimizer=second.optimizer)
    second.optimizer_steps = first.optimizer_steps
    for worker in (first, second):
        worker.update(batch_of_episodes(), plan=PLAN)

    assert torch.equal(flat(first), flat(second))


def test_gae_without_a_critic_is_refused():
    model = PackedModel(make_tiny_model(VOCAB, seed=1, hidden_size=16, num_layers=2, num_heads=2))

    with pytest.raises(UsageError, match="advantage is gae, but the policy has no critic"):
        Worker(model, optimizer=OptimizerConfig(), algorithm=AlgorithmConfig(advantage="gae"))


def test_gae_and_dropped_groups_exclude_each_other():
    with pytest.raises(ValueError, match="gae and drop_zero_variance exclude each other"):
        AlgorithmConfig(advantage="gae", drop_zero_variance=True)
